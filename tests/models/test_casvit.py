"""CAS-ViT: what is particular to the family; tests of every port are in test_ports.py."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from timm.layers import DropPath
from torch import nn

import repro.models.casvit as casvit
from repro.errors import ModelError
from repro.models.official import StateDictError, load_official, official_keys
from tests.models.golden import weights


def official_state(model: nn.Module) -> dict[str, torch.Tensor]:
    own = model.state_dict()
    built = {official: own[key] for official, key in official_keys(model).items()}
    return weights({official: list(value.shape) for official, value in built.items()}, built)


def small(**kwargs) -> casvit.CasVit:
    """A model of the family that is quick to run, with weights and statistics that hide nothing."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20), "num_classes": 5}
    model = timm.create_model("casvit_xs", **{**sizes, **kwargs})
    return load_official(model.eval(), official_state(model))


@pytest.mark.parametrize(
    ("name", "params"), [("casvit_xs", 3.20), ("casvit_s", 5.76), ("casvit_m", 12.42), ("casvit_t", 21.76)]
)
def test_published_parameter_counts(name, params):
    model = timm.create_model(name, device="meta")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == params


def test_the_largest_variant_is_the_official_one():
    # Every weight follows from its official name and shape, so that a wrong name or shape changes these logits, which
    # the official rcvit_t gave.
    model = timm.create_model("casvit_t").eval()
    load_official(model, official_state(model))
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224))).float()
    with torch.no_grad():
        logits = model(images)[:, ::333]
    expected = [[-0.19780, 0.13661, -0.32216, 0.44267], [-0.20302, 0.15060, -0.33727, 0.44515]]
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=0, atol=1e-4)
    analysis = FlopCountAnalysis(model, images[:1]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analysis.total() == 3578601984


def test_the_trunk_has_the_official_names():
    names = {official_name.split(".")[1] for official_name in official_keys(small()) if "network" in official_name}
    assert names == {str(place) for place in range(7)}  # four stages and three downsamplings, in turn
    assert casvit.official_key("stages.2.downsample.conv.weight") == "network.3.proj.weight"
    assert casvit.official_key("stages.2.blocks.1.mlp.fc1.bias") == "network.4.1.mlp.fc1.bias"
    assert casvit.official_key("stages.0.blocks.0.attn.gate_k.0.to_gate.weight") == (
        "network.0.0.attn.oper_k.0.block.3.weight"
    )


@pytest.mark.parametrize(("gate", "varies"), [(casvit.SpatialGate, (2, 3)), (casvit.ChannelGate, (1,))])
def test_a_gate_weighs_positions_or_channels(gate, varies):
    torch.manual_seed(0)
    x = torch.rand(2, 6, 5, 7) + 1
    with torch.no_grad():
        factor = gate(6).eval()(x) / x
    assert ((factor > 0) & (factor < 1)).all()
    shared = [dim for dim in (1, 2, 3) if dim not in varies]
    torch.testing.assert_close(factor, factor.mean(shared, keepdim=True).expand_as(factor))
    assert all(factor.std(dim).max() > 1e-4 for dim in varies)


def test_heads_are_averaged_and_a_teacher_sees_both():
    model = small()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model(images), (model.head(features) + model.head_dist(features)) / 2)
        assert not torch.equal(model.head(features), model.head_dist(features))
        model.set_distilled_training()
        assert model(images).shape == (2, 5)
        first, second = model.train()(images)
        assert first.shape == second.shape == (2, 5)
        model.set_distilled_training(False)
        assert model(images).shape == (2, 5)


def test_a_model_without_distillation_has_one_head():
    single = small(distillation=False)
    assert isinstance(single.get_classifier(), nn.Linear)
    assert not any("dist_head" in key for key in official_keys(single))
    assert torch.jit.script(single)(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    with pytest.raises(StateDictError, match=r"missing key dist_head\.weight; missing key dist_head\.bias$"):
        load_official(small(), official_state(single))


def test_stochastic_depth_grows_linearly_and_spares_the_local_branch():
    model = timm.create_model("casvit_xs", device="meta", drop_path_rate=0.18)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.02 * i for i in range(10)])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]
    assert not any(isinstance(module, DropPath) for block in blocks for module in block.local.modules())


def test_features_at_a_size_that_nothing_divides():
    model = small()
    images = torch.randn(1, 3, 70, 101)
    with torch.no_grad():
        final, maps = model.forward_intermediates(images)
        torch.testing.assert_close(model.forward_head(final), model(images))
        normed = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(normed[0], model.norm(maps[3]))
        model.prune_intermediate_layers([1])
        assert torch.equal(model(images), maps[1])
    assert [tuple(m.shape) for m in maps] == [(1, 8, 18, 26), (1, 12, 9, 13), (1, 16, 5, 7), (1, 20, 3, 4)]
    pyramid = timm.create_model("casvit_xs", features_only=True)
    assert pyramid.feature_info.channels() == [48, 56, 112, 220]
    assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
    assert [m.shape[-1] for m in pyramid(torch.randn(2, 3, 64, 64))] == [16, 8, 4, 2]


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
    whole = timm.create_model("casvit_xs")
    checkpoint = {"model": official_state(whole), "epoch": 299}
    source = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": checkpoint}}
    loaded = timm.create_model("casvit_xs", **source)
    assert torch.equal(loaded.head_dist.weight, checkpoint["model"]["dist_head.weight"])
    fewer = timm.create_model("casvit_xs", num_classes=4, in_chans=1, **source)
    assert torch.equal(fewer.norm.running_mean, checkpoint["model"]["norm.running_mean"])
    assert fewer(torch.randn(2, 1, 64, 64)).shape == (2, 4)


def test_what_cannot_be_built_is_said():
    with pytest.raises(ModelError, match="not with 'max'"):
        small(global_pool="max")
    with pytest.raises(ModelError, match="pass num_classes=0"):
        small(global_pool="")
    with pytest.raises(ModelError, match="not as 'NLC'"):
        small().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")
    assert small(num_classes=0, global_pool="")(torch.randn(1, 3, 64, 64)).shape == (1, 20, 2, 2)
