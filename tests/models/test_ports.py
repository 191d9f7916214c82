"""Every ported model: the official code's logits, layout and counts, in every way a network is used."""

from __future__ import annotations

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import repro.models  # noqa: F401 - registers the ports
from repro.measure.macs import count, second_count
from repro.models import StateDictError, load_official
from repro.models.official import official_keys
from repro.models.reparam import to_form
from repro.results.sources import ported, source_of
from tests.models.golden import FOLDER, Golden, weights

GOLDEN = {
    "sbcformer_xs": "SBCFormer_XS",
    "sbcformer_s": "SBCFormer_S",
    "sbcformer_b": "SBCFormer_B",
    "sbcformer_l": "SBCFormer_L",
    "casvit_xs": "rcvit_xs",
    "casvit_s": "rcvit_s",
    "casvit_m": "rcvit_m",
    "emo_1m": "EMO_1M",
    "emo_2m": "EMO_2M",
    "emo_5m": "EMO_5M",
    "emo_6m": "EMO_6M",
    "edgevit_xxs": "edgevit_xxs",
    "edgevit_xs": "edgevit_xs",
    "efficientmod_xxs": "efficientMod_xxs",
    "efficientmod_xs": "efficientMod_xs",
    "efficientmod_s": "efficientMod_s",
    "efficientmod_s_conv": "efficientMod_s_Conv",
    "repnext_m3": "repnext_m3",
    "repnext_m4": "repnext_m4",
    "mobile_former_294m": "mobile_former_294m",
    "mobile_former_508m": "mobile_former_508m",
    "cmt_ti": "cmt_ti",
    "cmt_xs": "cmt_xs",
}
SMALL = (
    "sbcformer_xs",
    "casvit_xs",
    "emo_1m",
    "edgevit_xxs",
    "efficientmod_xxs",
    "repnext_m3",
    "mobile_former_294m",
    "cmt_ti",
)


def loaded(name: str) -> tuple[nn.Module, Golden]:
    golden = Golden.read(GOLDEN[name])
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    own = model.state_dict()
    built = {official: own[key] for official, key in official_keys(model).items()}
    load_official(model, weights(golden.keys, built))
    return model, golden


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", GOLDEN)
def test_official_logits_layout_and_counts(name):
    model, golden = loaded(name)
    images = golden.images()
    with torch.no_grad():
        assert worst(model(images), golden.logits) < 1e-4
    assert sum(parameter.numel() for parameter in model.parameters()) == golden.params
    assert set(official_keys(model)) == set(golden.keys)
    analysis = FlopCountAnalysis(model, images[:1])
    analysis.tracer_warnings("none").unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analysis.total() == golden.fvcore


@pytest.mark.parametrize("name", GOLDEN)
def test_two_counters_agree_and_nothing_is_left_out(name):
    model = timm.create_model(name).eval()
    example = torch.zeros(1, *model.default_cfg["input_size"])
    assert count(model, example).total("macs") == second_count(model, example)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_every_form_gives_the_same_logits(name):
    model, golden = loaded(name)
    images = golden.images()
    with torch.no_grad():
        for form in ("reparameterised", "folded"):
            assert worst(to_form(model, form, images)(images), golden.logits) < 1e-3 * float(golden.logits.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_training(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).train()
    images = torch.randn(2, *model.default_cfg["input_size"])
    loss = nn.functional.cross_entropy(model(images), torch.tensor([1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_scripts_and_traces(name):
    model, golden = loaded(name)
    images = golden.images()[:1]
    with torch.no_grad():
        expected = model(images)
        assert worst(torch.jit.script(model)(images), expected) < 1e-5
        assert worst(torch.jit.trace(model, images)(images), expected) < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_that_does_not_fit_is_named_and_loads_nothing(name):
    golden = Golden.read(GOLDEN[name])
    model = timm.create_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    own = model.state_dict()
    good = weights(golden.keys, {official: own[key] for official, key in official_keys(model).items()})
    matrices = [key for key, value in good.items() if value.dim() > 1]
    bad = dict(good)
    del bad[matrices[0]]
    bad["head.no_such_key"] = torch.zeros(1)
    bad[matrices[-1]] = torch.zeros(3, 3)
    with pytest.raises(StateDictError) as caught:
        load_official(model, bad)
    message = str(caught.value)
    assert f"missing key {matrices[0]}" in message
    assert "unexpected key head.no_such_key" in message
    assert f"{matrices[-1]} has shape [3, 3]" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_class_counts_and_headless(name):
    model = timm.create_model(name, num_classes=7).eval()
    images = torch.randn(1, *model.default_cfg["input_size"])
    with torch.no_grad():
        assert model(images).shape == (1, 7)
        model.reset_classifier(0)
        assert model(images).dim() == 2


@pytest.mark.parametrize("name", GOLDEN)
def test_records_know_the_file_behind_a_port(name):
    assert name in ported()
    assert ported()[name].name in source_of("timm", name)


def test_every_golden_file_is_used():
    detectors = {"mask_rcnn_r50", "semantic_fpn_r50"}
    assert {path.stem for path in FOLDER.glob("*.npz")} - detectors <= set(GOLDEN.values())
