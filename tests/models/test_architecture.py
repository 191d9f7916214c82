"""The walk reads modules: it is held to configurations drawn at random, and to modules changed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repro.compare.architecture import same
from repro.errors import ModelError
from repro.measure.structure import walk_variant
from repro.models.architecture import describe
from repro.models.iformer_ablations import IFORMER_M, IFORMER_T, IFormerAblation, IFormerConfig
from repro.spec.project import Project
from repro.spec.tables import Block, Layer

SIZE = (64, 64)


def walked(config: IFormerConfig, size=SIZE):
    return describe(IFormerAblation(config, device="meta").eval(), size)


def ops(stage):
    return [([layer["op"] for layer in block["layers"]], block["repeat"]) for block in stage["blocks"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iFormer-T", "iFormer-S", "iFormer-M", "iFormer-L"])
def test_the_released_models_are_what_table_15_prints(name):
    table = Project().table(15)
    row = next(row for row in table.rows if row.model == name)
    stages = walk_variant(row.variant, (224, 224))["stages"]
    for printed, found in zip(table.architecture, stages, strict=True):
        assert (printed.name, printed.output_size, printed.downsampling) == (
            *(found[key] for key in ("stage", "output_size", "downsampling")),
        )
        blocks = [
            Block(layers=tuple(Layer(**layer) for layer in block["layers"]), repeat=block["repeat"])
            for block in found["blocks"]
        ]
        assert len(blocks) == len(printed.models[name])
        assert all(map(same, printed.models[name], blocks))


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.sampled_from([8, 16, 24, 40]), min_size=4, max_size=4).map(tuple),
    convs=st.lists(st.integers(1, 3), min_size=4, max_size=4).map(tuple),
    attention=st.integers(1, 3),
    reduction=st.sampled_from([1, 2, 4]),
    ratio=st.integers(1, 4),
    conv_ratio=st.integers(2, 4),
    kernel=st.sampled_from([3, 5, 7]),
    gated=st.booleans(),
    cpe=st.sampled_from([0, 3, 5]),
)
def test_every_knob_shows(widths, convs, attention, reduction, ratio, conv_ratio, kernel, gated, cpe):
    config = IFormerConfig(
        widths=widths,
        conv_blocks=convs,
        attention_blocks=(0, 0, attention, 0),
        conv_ratio=conv_ratio,
        conv_kernel=kernel,
        reduction=(0, 0, reduction, 0),
        ffn_ratio=(0, 0, ratio, 0),
        gated=gated,
        cpe_kernel=cpe,
    )
    stem, *stages = walked(config)
    assert [block["layers"][-1]["width"] for block in stem["blocks"]] == [widths[0] // 2, widths[0]]
    for index, stage in enumerate(stages):
        width = widths[index]
        blocks = stage["blocks"]
        if index:
            assert blocks.pop(0)["layers"][0] == Layer(op="Conv-BN", kernel=3, stride=2, width=width).__dict__
        assert (stage["output_size"], stage["downsampling"]) == (f"{16 >> index}×{16 >> index}", f"{4 << index}×")
        conv = [
            Layer(op="Conv-BN", kernel=kernel, stride=1, width=width).__dict__,
            Layer(op="Conv-BN-GELU", kernel=1, stride=1, width=conv_ratio * width).__dict__,
            Layer(op="Conv-BN", kernel=1, stride=1, width=width).__dict__,
        ]
        expected = [{"layers": conv, "repeat": convs[index]}]
        if index == 2:
            group = [Layer(op="CPE", kernel=cpe)] if cpe else []
            group += [
                Layer(op="SHMA" if gated else "SHA", head_dim=width // reduction),
                Layer(op="FFN", ratio=ratio),
            ]
            middle = {"layers": [layer.__dict__ for layer in group], "repeat": attention}
            first = [{"layers": conv, "repeat": convs[index] - 1}] if convs[index] > 1 else []
            expected = [*first, middle, {"layers": conv, "repeat": 1}]
        assert blocks == expected


def test_a_module_changed_by_hand_shows():
    model = IFormerAblation(replace(IFORMER_T, conv_blocks=(1, 1, 1, 0)), device="meta").eval()
    model.stages[1].downsample.c = nn.Conv2d(32, 64, 5, 2, 2, device="meta")
    for index, block in enumerate(model.stages[2].blocks):
        if type(block).__name__ == "AttentionBlock":
            block.mixer.module.q = nn.Sequential(nn.Conv2d(128, 40, 1, device="meta"))
            block.mixer.module.k = nn.Sequential(nn.Conv2d(128, 40, 1, device="meta"))
            changed = index
            break
    assert changed == 1
    stages = describe(model, SIZE)
    assert stages[2]["blocks"][0]["layers"][0]["kernel"] == 5
    attention = [layer for block in stages[3]["blocks"] for layer in block["layers"] if layer["op"] == "SHMA"]
    assert [layer["head_dim"] for layer in attention] == [40, 64]
    assert [block["repeat"] for block in stages[3]["blocks"]] == [1, 1, 2, 1]


def test_a_convolution_inside_the_ffn_shows():
    stages = walked(replace(IFORMER_M, ffn_kernel=5, conv_blocks=(1, 1, 1, 0), attention_blocks=(0, 0, 1, 0)))
    assert ops(stages[3])[1] == (["CPE", "SHMA", "FFN", "DWConv"], 1)
    assert stages[3]["blocks"][1]["layers"][3]["kernel"] == 5


def test_windows_and_odd_sizes_keep_the_stage():
    config = replace(IFORMER_T, windowed=(0, 0, 2, 1), window=4, conv_blocks=(1, 1, 1, 0))
    assert [stage["output_size"] for stage in walked(config, (70, 100))] == ["18×25", "18×25", "9×13", "5×7", "3×4"]


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 8, 3)), nn.Module()], ids=["no stages", "nothing at all"])
def test_other_models_are_refused(model):
    with pytest.raises(ModelError, match="cannot be walked"):
        describe(model, SIZE)


def test_the_model_is_not_changed():
    model = IFormerAblation(replace(IFORMER_T, conv_blocks=(1, 1, 1, 0)), device="meta").eval()
    before = [(name, type(module)) for name, module in model.named_modules()]
    describe(model, SIZE)
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.is_grad_enabled()
