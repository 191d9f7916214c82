"""RepNeXt: its branches and how they merge; tests of every port are in test_ports.py."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from timm.utils.model import reparameterize_model
from torch import nn

import repro.models.repnext as repnext
from repro.errors import ModelError
from repro.models.official import load_official, official_keys
from tests.models.golden import weights

# Logits 0, 333, 666 and 999 that the official code gave, and its MACs when fused, by fvcore.
OFFICIAL = {
    "repnext_m0": ([-0.12585, -0.44630, 0.86213, -0.17531], 389105600),
    "repnext_m1": ([0.23992, 0.14466, -0.38468, 0.00662], 824694144),
    "repnext_m2": ([-0.37035, -0.43543, -0.06328, 0.03422], 1114577856),
    "repnext_m5": ([-2.34301, 0.18359, -1.28899, 1.75940], 4554143360),
}


def official_state(model: nn.Module) -> dict[str, torch.Tensor]:
    own = model.state_dict()
    built = {official: own[key] for official, key in official_keys(model).items()}
    return weights({official: list(value.shape) for official, value in built.items()}, built)


def small(**kwargs) -> repnext.RepNext:
    """A model of the family that is quick to run, with weights and statistics that hide nothing."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64), "num_classes": 5}
    model = timm.create_model("repnext_m0", **{**sizes, **kwargs})
    return load_official(model.eval(), official_state(model))


@pytest.mark.parametrize(
    ("name", "params", "published"),
    [
        ("repnext_m0", 2333200, 2.3),
        ("repnext_m1", 4829560, 4.8),
        ("repnext_m2", 6473200, 6.5),
        ("repnext_m3", 7818920, 7.8),
        ("repnext_m4", 13342120, 13.3),
        ("repnext_m5", 21737560, 21.7),
    ],
)
def test_deployed_parameter_counts(name, params, published):
    model = reparameterize_model(timm.create_model(name, device="meta"), inplace=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == params  # what the official fuse() leaves
    assert round(count / 1e6, 1) == published


@pytest.mark.parametrize("name", OFFICIAL)
def test_variants_are_the_official_ones_trained_and_fused(name):
    # Every weight follows from its official name and shape, so that a wrong name or shape changes these logits.
    model = timm.create_model(name).eval()
    load_official(model, official_state(model))
    logits, macs = OFFICIAL[name]
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224))).float()[:1]
    expected = torch.tensor([logits])
    with torch.no_grad():
        torch.testing.assert_close(model(images)[:, ::333], expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(model.fuse()(images)[:, ::333], expected, rtol=0, atol=1e-4)
    analysis = FlopCountAnalysis(model, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analysis.total() == macs


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("build", [repnext._rep_dwconv_small, repnext._rep_dwconv_medium])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 3)])
def test_branches_merge_exactly_up_to_the_border(build, stride, size):
    torch.manual_seed(0)
    branches = build(6, stride=stride).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = branches(x)
        merged = branches.fuse()
        torch.testing.assert_close(merged(x), expected)
        torch.testing.assert_close(branches(x), expected)  # fusing leaves the branches as they were
    assert isinstance(merged, nn.Conv2d)
    assert expected.shape[2:] == tuple(-(-side // stride) for side in size)


def test_the_deployed_model_gives_the_same_logits_and_has_the_official_names():
    model = small().double()
    images = torch.randn(2, 3, 70, 101, dtype=torch.float64)
    deployed = reparameterize_model(model)
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), model(images))
        assert torch.jit.script(deployed)(images).shape == (2, 5)
    assert any(isinstance(module, repnext.RepDwConv) for module in model.modules())
    assert not any(isinstance(module, (repnext.RepDwConv, repnext.ConvNorm)) for module in deployed.modules())
    assert isinstance(deployed.get_classifier(), nn.Linear)
    block = {
        "token_mixer.conv_s": (2, 1, 3, 3),
        "token_mixer.conv_m": (2, 1, 7, 7),
        "token_mixer.conv_l.0": (2, 1, 1, 11),
        "token_mixer.conv_l.1": (2, 1, 11, 1),
        "channel_mixer.0": (16, 8, 1, 1),
        "channel_mixer.2": (8, 16, 1, 1),
    }
    names = {official_name: deployed.state_dict()[key] for official_name, key in official_keys(deployed).items()}
    for module, shape in block.items():
        assert names[f"stages.0.blocks.0.{module}.weight"].shape == shape
        assert f"stages.0.blocks.0.{module}.bias" in names
    assert "stem.stem.2.bias" in names
    assert names["head.weight"].shape == (5, 64)


def test_heads_are_averaged_and_a_teacher_sees_both():
    model = small()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        first, second = model.head.head(features), model.head.head_dist(features)
        assert not torch.equal(first, second)
        torch.testing.assert_close(model(images), (first + second) / 2)
        torch.testing.assert_close(model.head.fuse()(features), (first + second) / 2)
        model.set_distilled_training()
        assert model(images).shape == (2, 5)
        pair = model.train()(images)
        assert [tuple(logits.shape) for logits in pair] == [(2, 5), (2, 5)]
    with pytest.raises(ModelError, match="no pair of heads"):
        model.fuse().set_distilled_training()
    with pytest.raises(ModelError, match="no pair of heads"):
        small(num_classes=0).set_distilled_training()


def test_features_as_trained_and_deployed():
    model = small().double()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(images)
        torch.testing.assert_close(model.forward_head(final), model(images))
        deployed = model.fuse().forward_intermediates(images, indices=[1, 3], intermediates_only=True)
        torch.testing.assert_close(deployed, [maps[1], maps[3]])
        model.prune_intermediate_layers([1])
        torch.testing.assert_close(model(images), maps[1])
    assert [tuple(m.shape) for m in maps] == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 32, 4, 6), (1, 64, 2, 3)]
    pyramid = timm.create_model("repnext_m0", features_only=True).eval()
    assert pyramid.feature_info.channels() == [40, 80, 160, 320]
    assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        expected = pyramid(images)
        torch.testing.assert_close(reparameterize_model(pyramid)(images), expected, rtol=1e-4, atol=1e-4)


def test_checkpointed_gradients_are_the_same():
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model = small()
        model.set_grad_checkpointing(enable)
        model(images).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_a_training_checkpoint_loads_and_adapts():
    whole = timm.create_model("repnext_m0")
    checkpoint = {"model": official_state(whole), "epoch": 299}
    source = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": checkpoint}}
    loaded = timm.create_model("repnext_m0", **source)
    assert torch.equal(loaded.head.head.linear.weight, checkpoint["model"]["head.head.linear.weight"])
    fewer = timm.create_model("repnext_m0", num_classes=4, in_chans=1, **source)
    assert torch.equal(fewer.stem.conv2.norm.running_mean, checkpoint["model"]["stem.stem.2.norm.running_mean"])
    assert fewer(torch.randn(2, 1, 64, 64)).shape == (2, 4)


def test_what_cannot_be_built_is_said():
    with pytest.raises(ModelError, match=r"double from stage to stage, not \(8, 16, 24, 48\)"):
        small(dims=(8, 16, 24, 48))
    with pytest.raises(ModelError, match="multiple of 4"):
        small(dims=(6, 12, 24, 48))
    with pytest.raises(ModelError, match="not with 'max'"):
        small(global_pool="max")
    with pytest.raises(ModelError, match="pass num_classes=0"):
        small(global_pool="")
    with pytest.raises(ModelError, match="not as 'NLC'"):
        small().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")
    assert small(num_classes=0, global_pool="")(torch.randn(1, 3, 64, 64)).shape == (1, 64, 2, 2)
