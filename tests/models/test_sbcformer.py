"""SBCFormer: biases tied to a grid and gathered on entering eval mode, and a layout that holds two parts twice."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import timm
import torch

from repro.errors import ModelError
from repro.models import SBCFormer, StateDictError, load_official
from repro.models.official import checkpoint_filter_fn, official_keys
from repro.models.sbcformer import Attention
from tests.models.golden import FOLDER, Golden, weights


def small(**arguments: Any) -> SBCFormer:
    """A narrow model for 64 x 96 images: what these tests ask does not depend on the width."""
    narrow = {"embed_dims": (8, 16, 24), "num_heads": (1, 1, 2), "key_dim": 8, "num_classes": 5, "img_size": (64, 96)}
    torch.manual_seed(0)
    return timm.create_model("sbcformer_xs", **(narrow | arguments))


def official_state(model: SBCFormer) -> dict[str, torch.Tensor]:
    own = model.state_dict()
    return {official: own[key].clone() for official, key in official_keys(model).items()}


@pytest.mark.parametrize(
    ("name", "millions", "params"),
    [
        ("sbcformer_xs", "5.6", 5_594_161),
        ("sbcformer_s", "8.5", 8_465_407),
        ("sbcformer_b", "13.8", 13_830_592),
        ("sbcformer_l", "18.5", 18_506_672),
    ],
)
def test_params_are_the_published_ones_and_the_official_code_s(name, millions, params):
    model = timm.create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    assert f"{params / 1e6:.1f}" == millions


def test_biases_take_effect_when_the_model_enters_eval_mode_as_in_the_official_code(caplog):
    golden = Golden.read("SBCFormer_S")
    with np.load(FOLDER / "SBCFormer_S.npz") as data:
        after_eval = torch.from_numpy(data["logits_after_eval"])
    model = timm.create_model("sbcformer_s").eval()
    state = weights(golden.keys, official_state(model))
    images = golden.images()
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        load_official(model, state)
        assert [record.name for record in caplog.records] == ["repro.models.sbcformer"]
        assert "until eval() is called" in caplog.text
        assert (model(images) - golden.logits).abs().max() < 1e-4
        assert (model.eval()(images) - after_eval).abs().max() < 1e-4
        assert (golden.logits - after_eval).abs().max() > 1e-3

        caplog.clear()
        load_official(model.train(), state)
        assert (model.eval()(images) - after_eval).abs().max() < 1e-4
        assert not caplog.records


def test_biases_are_the_same_in_training_and_in_eval_mode_and_learn():
    torch.manual_seed(0)
    attention = Attention(dim=12, key_dim=4, num_heads=2, resolution=(2, 3))
    torch.nn.init.normal_(attention.attention_biases)
    tokens = torch.randn(2, 6, 12)
    expected = attention.eval()(tokens)
    attention.train()
    attention.dwconv.eval()  # BatchNorm alone would tell the modes apart
    found = attention(tokens)
    assert torch.allclose(found, expected, atol=1e-6)
    found.square().mean().backward()
    assert attention.attention_biases.grad.abs().sum() > 0


def test_a_bias_belongs_to_a_distance_on_the_grid():
    height, width = 2, 3
    attention = Attention(dim=4, key_dim=4, num_heads=1, resolution=(height, width))
    points = list(itertools.product(range(height), range(width)))
    expected = [[abs(y - v) * width + abs(x - u) for v, u in points] for y, x in points]
    assert attention.attention_bias_idxs.tolist() == expected


def test_the_layout_repeats_stem_and_last_stage_but_the_model_does_not():
    model = small()
    official, own = set(official_keys(model)), model.state_dict()
    repeated = {key for key in official if key.startswith(("patch_embed.", "sbcformer_blk."))}
    assert len(official) - len(repeated) == len(own)
    originals = {key.replace("patch_embed.", "merging_blocks.0.", 1) for key in repeated if key.startswith("patch_")}
    originals |= {key.replace("sbcformer_blk.", "sbcformer_blocks.2.", 1) for key in repeated if key.startswith("sbc")}
    assert originals <= official - repeated
    assert {"merging_blocks.0.stem.0.conv.weight", "sbcformer_blocks.2.trans_blocks.MAttn_1.attn.pwconv.bias"} <= (
        originals
    )


def test_a_missing_repeat_is_a_missing_key():
    model = small()
    state = official_state(model)
    del state["sbcformer_blk.proj.conv.weight"]
    with pytest.raises(StateDictError, match=r"missing key sbcformer_blk\.proj\.conv\.weight$"):
        load_official(model, state)


def test_where_repeats_differ_the_last_one_copied_counts():
    model = small()
    state = official_state(model)
    state["merging_blocks.0.stem.0.conv.weight"] = torch.full_like(model.stem[0].conv.weight, 1.0)
    state["patch_embed.stem.0.conv.weight"] = torch.full_like(model.stem[0].conv.weight, 2.0)
    for ordered in (state, dict(reversed(state.items()))):
        filtered = checkpoint_filter_fn(ordered, model)
        assert set(filtered) == set(model.state_dict())
        assert (filtered["stem.0.conv.weight"] == 2).all()
        assert (load_official(small(), ordered).stem[0].conv.weight == 2).all()


def test_a_file_in_the_official_layout_is_pretrained_weights(tmp_path):
    trained = small()
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "official.pth"
    torch.save(official_state(trained), path)
    again = small(pretrained=True, pretrained_cfg_overlay={"file": str(path), "num_classes": 5})
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), trained.eval()(images))


def test_a_model_is_tied_to_the_image_size_it_is_built_for():
    model = small().eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 96)).shape == (2, 5)
        with pytest.raises(ModelError, match=r"input is 96x96, but this SBCFormer was built for 64x96"):
            model(torch.randn(2, 3, 96, 96))
    with pytest.raises(ModelError, match=r"multiple of 32, not 240x240"):
        small(img_size=240)


def test_features_are_the_stages_maps():
    model = small().eval()
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 96)
    shapes = [(1, 8, 8, 12), (1, 16, 4, 6), (1, 24, 2, 3)]
    features = small(features_only=True).eval()
    assert features.feature_info.reduction() == [8, 16, 32]
    with torch.no_grad():
        last, maps = model.forward_intermediates(images)
        assert [tuple(one.shape) for one in features(images)] == [tuple(one.shape) for one in maps] == shapes
        assert torch.equal(last, model.forward_features(images))
        some = small(features_only=True, out_indices=(0, 2)).eval()(images)
        assert [tuple(one.shape) for one in some] == [shapes[0], shapes[2]]
        assert model.prune_intermediate_layers([0, 1]) == [0, 1]
        pruned = model(images)
    assert pruned.shape == shapes[1]
    assert model.num_features == 16


def test_without_pooling_the_classifier_reads_every_place():
    model = small().eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        assert pooled.shape == (1, 24)
        model.reset_classifier(7, "")
        assert model(images).shape == (1, 7, 2, 3)
        model.reset_classifier(0)
        assert model(images).shape == (1, 24, 2, 3)
    with pytest.raises(ModelError, match="'max'"):
        model.reset_classifier(0, "max")


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
