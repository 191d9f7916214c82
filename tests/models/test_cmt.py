"""CMT: the port computes what the official code computes, for the one input size that its position tables have."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from timm.data import resolve_data_config
from torch.utils.flop_counter import FlopCounterMode

import repro.models.cmt as cmt
from repro.errors import ModelError
from repro.models.official import StateDictError, load_official, official_keys

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def official_weights(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that anyone can draw again: each from a generator seeded by its official name, scaled by its kind."""
    weights = {}
    for key, shape in keys.items():
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0)
            continue
        values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
        if key.endswith("running_var"):
            values = 1 + np.abs(values)
        elif key.endswith(("running_mean", "bias")):
            values = 0.1 * values
        elif len(shape) <= 1:
            values = 0.1 * values + 0.8
        else:
            values = values / np.sqrt(np.prod(shape[1:]))
        weights[key] = torch.from_numpy(values.astype(np.float32))
    return weights


def small(**arguments: Any) -> cmt.CMT:
    """A narrow, shallow model: what these tests ask does not depend on the width."""
    widths = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "head_chs": 16, "num_classes": 3}
    return timm.create_model("cmt_ti", **{**widths, **arguments})


@pytest.mark.parametrize("name", ["cmt_ti", "cmt_xs"])
def test_a_variant_has_the_official_layout_logits_and_cost(name):
    expected = golden(name)
    keys = json.loads(str(expected["keys"]))
    model = timm.create_model(name).eval()
    own = model.state_dict()
    assert {official: list(own[key].shape) for official, key in official_keys(model).items()} == keys
    assert sum(p.numel() for p in model.parameters()) == int(expected["params"])
    load_official(model, official_weights(keys))
    size = int(expected["res"])
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32))
    with torch.inference_mode():
        logits = model(images).numpy()
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)
    counter = FlopCountAnalysis(model, images[:1]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert counter.total() == int(expected["fvcore"])


@pytest.mark.parametrize(("name", "size", "params", "gmacs"), [("cmt_ti", 160, 9.5, 0.6), ("cmt_xs", 192, 15.2, 1.5)])
def test_the_published_size_and_cost(name, size, params, gmacs):
    model = timm.create_model(name, device="meta").eval()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == params
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    assert round(counter.get_total_flops() / 2e9, 1) == gmacs


@pytest.mark.parametrize(("img_size", "tables"), [(96, (576, 9)), ((64, 128), (512, 8))])
def test_another_input_size_has_tables_of_its_own(img_size, tables):
    model = small(img_size=img_size).eval()
    assert model.stages[0].relative_pos.shape == (1, *tables)
    size = img_size if isinstance(img_size, tuple) else (img_size, img_size)
    assert model(torch.zeros(1, 3, *size)).shape == (1, 3)


def test_images_of_another_size_are_refused():
    # A turned image has as many positions as the tables, and would be read wrongly without a word.
    turned = torch.zeros(1, 3, 128, 64)
    model = small(img_size=(64, 128)).eval()
    with pytest.raises(ModelError, match="64x128 images, not 128x64"):
        model(turned)
    with pytest.raises(torch.jit.Error, match="64x128 images, not 128x64"):
        torch.jit.script(model)(turned)
    features = small(img_size=(64, 128), features_only=True).eval()
    with pytest.raises(ModelError, match="64x128 images, not 128x64"):
        features(turned)


@pytest.mark.parametrize("img_size", [0, 100, (160, 150)])
def test_a_size_that_no_table_fits_is_refused(img_size):
    with pytest.raises(ModelError, match="multiples of 32"):
        timm.create_model("cmt_ti", img_size=img_size, device="meta")


def test_weights_for_another_size_are_refused_by_their_official_names():
    model = small(img_size=64)
    larger = {official: model.state_dict()[key] for official, key in official_keys(model).items()}
    larger["relative_pos_b"] = torch.zeros(2, 400, 25)
    with pytest.raises(StateDictError, match=r"relative_pos_b has shape \[2, 400, 25\], the model \[2, 64, 4\]"):
        load_official(model, larger)


def test_features():
    model = timm.create_model("cmt_xs", features_only=True).eval()
    with torch.inference_mode():
        features = model(torch.zeros(1, 3, 192, 192))
    assert [tuple(f.shape[1:]) for f in features] == [(52, 48, 48), (104, 24, 24), (208, 12, 12), (416, 6, 6)]
    assert model.feature_info.channels() == [52, 104, 208, 416]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


def test_intermediates_are_what_the_stages_give():
    model = small(img_size=64).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        final, stages = model.forward_intermediates(images)
        assert torch.equal(model.forward_head(final), model(images))
        assert torch.equal(model.stages[1](stages[0]), stages[1])
        early = model.forward_intermediates(images, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], stages[1])
        model.prune_intermediate_layers([1], prune_norm=True)
        assert (len(model.stages), model.num_features) == (2, 16)
        assert torch.equal(model(images), stages[1])


@pytest.mark.parametrize("averaged", [True, False, None])
def test_a_training_checkpoint_gives_the_weights_that_are_evaluated(averaged):
    model = small(img_size=64)
    trained = official_weights({o: list(model.state_dict()[key].shape) for o, key in official_keys(model).items()})
    other = {key: value + 1 for key, value in trained.items()}
    checkpoint = {True: {"model": other, "model_ema": trained}, False: {"model": trained, "model_ema": None}}
    model.load_state_dict(cmt.checkpoint_filter_fn(checkpoint.get(averaged, trained), model), strict=True)
    own = model.state_dict()
    assert all(torch.equal(own[key], trained[official]) for official, key in official_keys(model).items())


@pytest.mark.parametrize(("name", "size"), [("cmt_ti", 160), ("cmt_xs", 192)])
def test_the_images_are_prepared_as_in_the_official_evaluation(name, size):
    config = resolve_data_config(model=timm.create_model(name, device="meta"))
    assert config["input_size"] == (3, size, size)
    assert config["interpolation"] == "bicubic"
    assert int(size / config["crop_pct"]) == int(256 / 224 * size)


def test_checkpointed_gradients_are_the_gradients():
    torch.manual_seed(0)
    model = small(img_size=64, drop_rate=0.0).train()
    images = torch.randn(2, 3, 64, 64)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(images).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in model.stages)
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)
