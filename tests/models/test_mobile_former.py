"""Mobile-Former: the port computes what the official code computes, at any input size."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import repro.models.mobile_former as mobile_former
from repro.errors import ModelError
from repro.models.official import load_official, official_keys

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


def official_images(size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "params", "macs"), [("mobile_former_294m", 11.4, 294), ("mobile_former_508m", 14.0, 508)]
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
    assert round(count / 1e6, 1) == params
    counter = FlopCountAnalysis(model, images[:1]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert counter.total() == int(expected["fvcore"])
    # the publication's own count is not documented; with BatchNorm and attention counted it is met to half a percent
    assert counter.total() / 1e6 == pytest.approx(macs, rel=6e-3)


def test_another_input_size_has_the_official_logits():
    expected = [
        [0.067970, 0.373043, -0.414127, 0.101353],
        [0.066137, 0.373183, -0.414364, 0.102971],
    ]
    model = timm.create_model("mobile_former_294m").eval()
    load_official(model, official_weights(json.loads(str(golden("mobile_former_294m")["keys"]))))
    with torch.inference_mode():
        logits = model(official_images(160))[:, :4].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bias", "first", "second"), [(0, 1, 0), (100, 2, 1), (-100, 0, -1)])
def test_dynamic_relu_is_a_relu_whose_slopes_move_by_one(bias, first, second):
    activation = mobile_former.DynamicRelu(dim=3, token_dim=8)
    nn.init.zeros_(activation.fc2.weight)
    nn.init.constant_(activation.fc2.bias, bias)
    x, tokens = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 8)
    torch.testing.assert_close(activation(x, tokens), torch.maximum(first * x, second * x))


def test_dynamic_relu_has_slopes_of_its_own_for_each_image_and_channel():
    torch.manual_seed(0)
    activation = mobile_former.DynamicRelu(dim=3, token_dim=8)
    tokens = torch.randn(2, 6, 8)
    up, down = activation(torch.ones(2, 3, 1, 1), tokens), activation(-torch.ones(2, 3, 1, 1), tokens)
    assert len({float(value) for value in up.flatten()}) == 6
    assert len({float(value) for value in down.flatten()}) == 6
    others = tokens.clone()
    others[:, 1:] = 0  # the first token alone decides
    assert torch.equal(activation(torch.ones(2, 3, 1, 1), others), up)


def test_tokens_see_positions_in_no_order():
    torch.manual_seed(0)
    bridge = mobile_former.LocalToGlobal(dim=8, token_dim=12).eval()
    back = mobile_former.GlobalToLocal(dim=8, token_dim=12).eval()
    x, tokens = torch.randn(2, 8, 3, 5), torch.randn(2, 6, 12)
    order = torch.randperm(15)
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(bridge(shuffled, tokens), bridge(x, tokens))
    torch.testing.assert_close(back(shuffled, tokens).flatten(2), back(x, tokens).flatten(2)[:, :, order])
    torch.testing.assert_close(back(x, tokens[:, torch.randperm(6)]), back(x, tokens))


def test_features_and_tokens_go_to_the_head_as_a_pair():
    model = timm.create_model("mobile_former_508m", num_classes=5).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features, tokens = pair = model.forward_features(images)
        assert features.shape == (2, model.num_features, 2, 3) == (2, 240, 2, 3)
        assert tokens.shape == (2, 6, 192)
        assert model.forward_head(pair, pre_logits=True).shape == (2, model.head_hidden_size) == (2, 1920)
        torch.testing.assert_close(model.forward_head(pair), model(images))
        others = tokens.clone()
        others[:, 1:] = 0  # the head reads the first token alone
        torch.testing.assert_close(model.forward_head((features, others)), model(images))
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(images), features)
        model.reset_classifier(3, "avg")
        assert model(images).shape == (2, 3)


def test_features_at_four_strides():
    model = timm.create_model("mobile_former_294m", features_only=True, in_chans=1).eval()
    shapes = [tuple(feature.shape) for feature in model(torch.randn(1, 1, 64, 96))]
    assert shapes == [(1, 24, 16, 24), (1, 48, 8, 12), (1, 128, 4, 6), (1, 192, 2, 3)]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


def test_features_keep_the_blocks_that_they_need_alone():
    whole = timm.create_model("mobile_former_294m").eval()
    part = timm.create_model("mobile_former_294m", features_only=True, out_indices=(1,)).eval()
    part.model.load_state_dict(whole.state_dict(), strict=False)
    assert len(part.model.blocks) == 5
    assert not any(name.startswith(("head", "to_global")) for name, _ in part.model.named_parameters())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        _, features = whole.forward_intermediates(images)
        assert torch.equal(part(images)[0], features[1])


def test_stochastic_depth_leaves_evaluation_alone():
    torch.manual_seed(0)
    model = timm.create_model("mobile_former_294m", drop_rate=0.3, drop_path_rate=0.5, num_classes=5)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))
    rates = [block.drop_path.drop_prob for block in list(model.blocks)[1:]]
    assert rates == pytest.approx([0.5 * (i + 1) / 12 for i in range(1, 12)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "max"}, "not by 'max'"),
        ({"global_pool": ""}, "num_classes=0"),
        ({"num_heads": 5}, "16 channels do not split into 5 attention heads"),
        ({"blocks": ((16, 1, 2), (24, 2, 4))}, "no block of stride 2 and expansion 4 at place 1"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        timm.create_model("mobile_former_294m", **options)
