"""EfficientMod: the port computes what the official code computes, and nothing in it depends on the input size."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from torch.utils.flop_counter import FlopCounterMode

import repro.models.efficientmod as efficientmod
from repro.models.official import load_official, official_keys

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
VARIANTS = {
    "efficientmod_xxs": "efficientMod_xxs",
    "efficientmod_xs": "efficientMod_xs",
    "efficientmod_s": "efficientMod_s",
    "efficientmod_s_conv": "efficientMod_s_Conv",
}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{VARIANTS[name]}.npz") as data:
        return dict(data)


def official_weights(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that anyone can draw again: each from a generator seeded by its official name, scaled by its kind."""
    weights = {}
    for key, shape in keys.items():
        values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
        if key.endswith("bias"):
            values = 0.1 * values
        elif len(shape) <= 1:
            values = 0.1 * values + (0.8 if key.endswith("weight") else 0.0)
        else:
            values = values / np.sqrt(np.prod(shape[1:]))
        weights[key] = torch.from_numpy(values.astype(np.float32))
    return weights


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_the_official_layout_and_logits(name):
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


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [
        ("efficientmod_xxs", 4.7, 0.6),
        ("efficientmod_xs", 6.6, 0.8),
        ("efficientmod_s", 12.9, 1.4),
        ("efficientmod_s_conv", 12.9, None),
    ],
)
def test_the_published_size_and_cost(name, params, gmacs):
    model = timm.create_model(name, device="meta").eval()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == params
    with FlopCounterMode(display=False) as counter:  # on the meta device it sees attention
        model(torch.empty(1, 3, 224, 224, device="meta"))
    if gmacs is not None:
        assert round(counter.get_total_flops() / 2e9, 1) == gmacs


@pytest.mark.parametrize("size", [(224, 224), (100, 65)])
def test_features_of_any_size(size):
    model = timm.create_model("efficientmod_xs", features_only=True).eval()
    with torch.inference_mode():
        features = model(torch.zeros(1, 3, *size))
    assert model.feature_info.channels() == [32, 64, 144, 288]
    for feature, channels, reduction in zip(features, [32, 64, 144, 288], [4, 8, 16, 32], strict=True):
        assert feature.shape == (1, channels, -(-size[0] // reduction), -(-size[1] // reduction))


def test_features_stop_before_the_step_to_the_next_stage():
    model = timm.create_model("efficientmod_xxs").eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        final, stages = model.forward_intermediates(images, norm=True)
        assert torch.equal(final, model.forward_features(images))
        assert torch.equal(stages[-1], final)
        assert torch.equal(model.stages[1](stages[0]), stages[1])
        early = model.forward_intermediates(images, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], stages[1])
        pruned = timm.create_model("efficientmod_xxs").eval()
        pruned.load_state_dict(model.state_dict())
        pruned.prune_intermediate_layers([1], prune_norm=True)
        assert (len(pruned.stages), pruned.num_features) == (2, 64)
        assert torch.equal(pruned(images), stages[1])


def test_stochastic_depth_grows_to_the_rate_of_the_last_block():
    model = timm.create_model("efficientmod_s", device="meta")
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    blocks = 4 + 4 + 12 + 8
    steps = [0.02 * i / (blocks - 1) for i in range(1, blocks)]
    # An attention block has two branches, both dropped at its rate: 4 blocks close each of the last two stages.
    expected = [rate for i, rate in enumerate(steps, 1) for _ in range(2 if 16 <= i < 20 or i >= 24 else 1)]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_official_weights_start_a_model_with_other_classes_and_channels():
    weights = official_weights(json.loads(str(golden("efficientmod_xxs")["keys"])))
    model = timm.create_model(
        "efficientmod_xxs",
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": dict(weights)},
        num_classes=5,
        in_chans=1,
    ).eval()
    own = model.state_dict()
    names = {official: key for official, key in official_keys(model).items() if not official.startswith("head.")}
    stem = names.pop("patch_embed.proj.weight")
    assert torch.allclose(own[stem], weights["patch_embed.proj.weight"].sum(1, keepdim=True), atol=1e-6)
    assert all(torch.equal(own[key], weights[official]) for official, key in names.items())
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 5)


def test_checkpointed_gradients_are_the_gradients():
    torch.manual_seed(0)
    model = timm.create_model("efficientmod_xxs", embed_dims=(8, 8, 16, 24), num_classes=3).train()
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


def test_an_expansion_of_one_has_no_activation():
    mlp = efficientmod.ModulationMlp(8, 1).eval()
    x = torch.randn(1, 4, 4, 8)
    torch.testing.assert_close(mlp(x), mlp.fc2(mlp.fc1(x) * mlp.context_layer(x)))
    mlp = efficientmod.ModulationMlp(8, 3).eval()
    context = mlp.context_layer(x).repeat(1, 1, 1, 3)
    torch.testing.assert_close(mlp(x), mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x)) * context))
