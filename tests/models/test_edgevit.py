"""EdgeViT: attention among sampled tokens, at any input size that divides into the sampling windows."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from repro.errors import ModelError
from repro.models import EdgeViT
from repro.models.edgevit import GlobalSparseAttention, official_key
from repro.models.official import official_keys


def small(**arguments: Any) -> EdgeViT:
    """A narrow model: what these tests ask does not depend on the width."""
    narrow = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "head_dim": 8, "num_classes": 5}
    torch.manual_seed(0)
    return timm.create_model("edgevit_xxs", **(narrow | arguments))


@pytest.mark.parametrize(
    ("name", "millions", "params"),
    # Tables that quote XS print 6.7, its value cut off rather than rounded.
    [("edgevit_xxs", "4.1", 4_067_704), ("edgevit_xs", "6.8", 6_770_056)],
)
def test_params_are_the_published_ones_and_the_official_code_s(name, millions, params):
    model = timm.create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    assert f"{params / 1e6:.1f}" == millions


def test_official_names_number_stages_from_one():
    assert official_key("stem.proj.weight") == "patch_embed1.proj.weight"
    assert official_key("stages.1.downsample.norm.bias") == "patch_embed2.norm.bias"
    assert official_key("stages.0.blocks.0.local_agg.conv1.weight") == "blocks1.0.LocalAgg.conv1.weight"
    assert official_key("stages.2.blocks.1.self_attn.attn.local_prop.bias") == "blocks3.1.SelfAttn.attn.LocalProp.bias"
    assert official_key("norm.running_var") == "norm.running_var"
    model = small()
    assert len(official_keys(model)) == len(model.state_dict())


def test_attention_reads_one_token_of_each_window_and_answers_all():
    torch.manual_seed(0)
    attention = GlobalSparseAttention(dim=8, num_heads=2, sr_ratio=2).eval()
    tokens = torch.randn(1, 4, 6, 8)
    seen = tokens.clone()
    seen[:, ::2, ::2] += 1
    unseen = tokens.clone()
    unseen[:, 1::2] += 1
    unseen[:, :, 1::2] += 1
    with torch.no_grad():
        out = attention(tokens)
        assert out.shape == (1, 24, 8)
        assert torch.equal(attention(unseen), out)
        assert not torch.allclose(attention(seen), out)


def test_without_sampling_it_is_plain_attention():
    torch.manual_seed(0)
    attention = GlobalSparseAttention(dim=8, num_heads=2).eval()
    twin = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    twin.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.proj.weight,
            "out_proj.bias": attention.proj.bias,
        }
    )
    tokens = torch.randn(2, 3, 5, 8)
    flat = tokens.flatten(1, 2)
    with torch.no_grad():
        assert torch.allclose(attention(tokens), twin(flat, flat, flat)[0], atol=1e-6)


def test_input_sizes_are_multiples_of_32():
    model = small().eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 96)).shape == (2, 5)
        assert model(torch.randn(1, 3, 32, 160)).shape == (1, 5)
        with pytest.raises(ModelError, match=r"multiples of 32, not 64x80"):
            model(torch.randn(1, 3, 64, 80))
    assert small(img_size=256).size_multiple == 32
    with pytest.raises(ModelError, match=r"multiples of 32, not 240x240"):
        small(img_size=240)


def test_features_are_the_stages_maps():
    model = small().eval()
    nn.init.normal_(model.norm.weight)
    images = torch.randn(1, 3, 64, 96)
    shapes = [(1, 8, 16, 24), (1, 16, 8, 12), (1, 24, 4, 6), (1, 32, 2, 3)]
    features = small(features_only=True).eval()
    assert features.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        last, maps = model.forward_intermediates(images)
        assert [tuple(one.shape) for one in features(images)] == [tuple(one.shape) for one in maps] == shapes
        assert torch.equal(last, model.forward_features(images))
        assert torch.equal(last, model.norm(maps[-1]))
        normed = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(normed[0], last)
        some = small(features_only=True, out_indices=(1, 3)).eval()(images)
        assert [tuple(one.shape) for one in some] == [shapes[1], shapes[3]]
        assert model.prune_intermediate_layers([0, 2]) == [0, 2]
        assert model(images).shape == shapes[2]
    assert model.num_features == 24


def test_without_pooling_the_classifier_reads_every_place():
    model = small().eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        pooled = model(images)
        model.global_pool = ""
        assert model(images).shape == (1, 5, 2, 3)
        assert torch.allclose(model(images).mean((2, 3)), pooled, atol=1e-6)
        model.reset_classifier(0)
        assert torch.equal(model(images), model.forward_features(images))
    with pytest.raises(ModelError, match="'max'"):
        model.reset_classifier(0, "max")


def test_weight_decay_spares_biases_and_norms_only():
    model = small()
    spared, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert all(parameter.ndim <= 1 for parameter in spared["params"])
    assert all(parameter.ndim > 1 for parameter in decayed["params"])


def test_recomputed_activations_give_the_same_gradients():
    images = torch.randn(2, 3, 64, 96)
    gradients = []
    for enable in (False, True):
        model = small().train()
        model.set_grad_checkpointing(enable)
        model(images).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients[0].values())
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])
