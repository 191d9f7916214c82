"""Weight files: what is read, what is refused, and what is said of weights that do not fit."""

from __future__ import annotations

import argparse
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

import repro.models  # noqa: F401 - registers the ported families
from repro.models.loading import CheckpointError, load_weights, read_weights


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return timm.create_model("mobilenetv3_small_050", num_classes=7).eval()


def fresh(classes=7):
    return timm.create_model("mobilenetv3_small_050", num_classes=classes)


@pytest.mark.parametrize("write", ["zip", "legacy", "bare"])
def test_code_in_a_weight_file_is_never_run(tmp_path, write):
    path = tmp_path / "hostile.pth"
    marker = tmp_path / "ran"

    class Touch:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    if write == "bare":
        path.write_bytes(pickle.dumps({"model": Touch()}))
    else:
        torch.save({"model": Touch()}, path, _use_new_zipfile_serialization=write == "zip")
    with pytest.raises(CheckpointError) as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda tensors: tensors, ()),
        (lambda tensors: {"model": tensors, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, ("model",)),
        (lambda tensors: {"state_dict": tensors, "state_dict_ema": tensors}, ("state_dict_ema",)),
        (lambda tensors: {"model": {k: v + 1 for k, v in tensors.items()}, "model_ema": tensors}, ("model_ema",)),
        (lambda tensors: {"ema": {"module": tensors}}, ("ema", "module")),
        (lambda tensors: {"model": {f"module.{name}": value for name, value in tensors.items()}}, ("model",)),
    ],
)
def test_wrappers_are_taken_off_by_rule(tmp_path, small, wrap, found):
    path = tmp_path / "weights.pth"
    torch.save(wrap(small.state_dict()), path)
    assert read_weights(path).wrapper == found
    loaded = load_weights(fresh(), path)
    assert not loaded.training
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), small(x))


def test_a_named_wrapper_wins_and_must_be_there(tmp_path, small):
    path = tmp_path / "weights.pth"
    torch.save({"model": small.state_dict(), "model_ema": {"x": torch.ones(1)}}, path)
    assert read_weights(path, "model").wrapper == ("model",)
    with pytest.raises(CheckpointError, match="no 'ema' in the file; it has model, model_ema"):
        read_weights(path, "ema")


def test_safetensors(tmp_path, small):
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in small.state_dict().items()}, path)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(load_weights(fresh(), path)(x), small(x))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>no such file</html>", "not a weight file"),
        (b"PK\x03\x04 and nothing more", "not a whole weight file"),
        (b"\x80\x02broken", "not a"),
    ],
)
def test_other_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)


def test_a_file_cut_short_is_told(tmp_path, small):
    for name in ("weights.pth", "weights.safetensors"):
        whole, cut = tmp_path / f"whole_{name}", tmp_path / name
        if name.endswith("pth"):
            torch.save(small.state_dict(), whole)
        else:
            save_file({key: value.contiguous() for key, value in small.state_dict().items()}, whole)
        cut.write_bytes(whole.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match="not a whole"):
            read_weights(cut)


def test_every_missing_extra_and_misshapen_key_is_named_and_nothing_is_written(tmp_path, small):
    tensors = dict(small.state_dict())
    tensors.pop("conv_stem.weight")
    tensors["stranger"] = torch.ones(1)
    tensors["classifier.weight"] = torch.ones(9, 1024)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": tensors}, path)
    model = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        load_weights(model, path)
    for text in ("missing key conv_stem.weight", "unexpected key stranger", "classifier.weight has shape [9, 1024]"):
        assert text in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["iformer_t", "poolformer_s12", "convnext_atto", "sbcformer_xs", "swiftformer_xs"])
def test_another_architectures_file_is_refused_by_every_kind_of_family(tmp_path, small, name):
    path = tmp_path / "weights.pth"
    torch.save({"model": small.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"does not fit .*missing key .*unexpected key conv_stem\.weight"):
        load_weights(timm.create_model(name, num_classes=7), path)
