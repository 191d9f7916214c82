"""EMO: the port computes what the official code computes, at any input size."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import repro.models.emo as emo
from repro.errors import ModelError
from repro.models.official import load_official, official_keys

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name.upper()}.npz") as data:
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


def official_images(size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("emo_1m", 1.3, 261), ("emo_2m", 2.3, 439), ("emo_5m", 5.1, 903), ("emo_6m", 6.1, 961)],
)
def test_a_variant_has_the_official_layout_logits_and_cost(name, params, macs):
    expected = golden(name)
    keys = json.loads(str(expected["keys"]))
    model = timm.create_model(name).eval()
    own = model.state_dict()
    assert {official: list(own[key].shape) for official, key in official_keys(model).items()} == keys
    load_official(model, official_weights(keys))
    images = official_images(224)
    with torch.inference_mode():
        logits = model(images).numpy()
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)

    count = sum(p.numel() for p in model.parameters())
    assert count == int(expected["params"])
    assert math.floor(count / 1e5) / 10 == params  # the publication cuts the digits off
    counter = FlopCountAnalysis(model, images[:1]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert counter.total() == int(expected["fvcore"])
    assert round(counter.total() / 1e6) == macs


def test_padded_windows_are_the_official_ones():
    # At 256 px the attending stages have 16x16 and 8x8 positions, for windows of 7x7. The official code's logits:
    expected = [
        [-0.833527, 1.618226, -0.409625, -0.091169],
        [-0.832953, 1.619318, -0.410284, -0.091396],
    ]
    model = timm.create_model("emo_1m").eval()
    load_official(model, official_weights(json.loads(str(golden("emo_1m")["keys"]))))
    with torch.inference_mode():
        logits = model(official_images(256))[:, :4].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (6, 9), (5, 7), (1, 4)])
def test_a_window_is_every_nth_position(height, width):
    torch.manual_seed(0)
    attention = emo.GridAttention(dim=8, head_dim=4, window_size=3).eval()
    x = torch.randn(2, 8, height, width)
    rows, cols = math.ceil(height / 3), math.ceil(width / 3)
    padded = torch.zeros(2, 8, 3 * rows, 3 * cols)
    padded[:, :, :height, :width] = x
    expected = torch.empty_like(padded)
    for row in range(rows):
        for col in range(cols):
            window = padded[:, :, row::rows, col::cols]
            tokens = window.flatten(2).transpose(1, 2)
            q, k = attention.qk(window).flatten(2).transpose(1, 2).chunk(2, dim=-1)
            heads = [
                torch.softmax(q[..., h : h + 4] @ k[..., h : h + 4].mT / 2, dim=-1) @ tokens[..., h : h + 4]
                for h in (0, 4)
            ]
            expected[:, :, row::rows, col::cols] = torch.cat(heads, dim=-1).mT.reshape(2, 8, 3, 3)
    torch.testing.assert_close(attention(x), expected[:, :, :height, :width])


def test_a_scripted_model_takes_other_sizes():
    model = timm.create_model("emo_1m", num_classes=3).eval()
    scripted = torch.jit.script(model)
    for size in ((64, 64), (96, 224)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(scripted(images), model(images))


def test_features_at_four_strides():
    model = timm.create_model("emo_6m", features_only=True, in_chans=1).eval()
    shapes = [tuple(feature.shape) for feature in model(torch.randn(1, 1, 64, 96))]
    assert shapes == [(1, 48, 16, 24), (1, 72, 8, 12), (1, 160, 4, 6), (1, 320, 2, 3)]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


def test_intermediates_are_what_the_stages_give():
    model = timm.create_model("emo_1m").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        final, (third, fourth) = model.forward_intermediates(images, indices=2, norm=True)
        torch.testing.assert_close(fourth, final)
        torch.testing.assert_close(model.forward_head(final), model(images))
        assert torch.equal(model.stages[3](third), model.forward_intermediates(images, 1, intermediates_only=True)[0])
        assert model.prune_intermediate_layers([1], prune_head=False) == [1]
        assert [part.shape[1] for part in model.forward_intermediates(images)[1]] == [32, 48]
    assert model.num_features == 48
    assert isinstance(model.head, nn.Identity)


def test_a_training_checkpoint_holds_the_weights_under_net():
    model = timm.create_model("emo_1m")
    weights = official_weights(json.loads(str(golden("emo_1m")["keys"])))
    for checkpoint in (weights, {"net": weights, "epoch": 300}):
        model.load_state_dict(emo.checkpoint_filter_fn(checkpoint, model), strict=True)
        assert torch.equal(model.stages[2][1].norm.weight, weights["stage3.1.norm.norm.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "max"}, "not by 'max'"),
        ({"global_pool": ""}, "num_classes=0"),
        ({"head_dims": (None, None, 20, 20)}, "168 channels do not split into attention heads of width 20"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        timm.create_model("emo_1m", **options)
