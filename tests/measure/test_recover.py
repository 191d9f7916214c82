"""A search counts what a table counts, only faster."""

from __future__ import annotations

import sys
import time
import types

import pytest
import torch

from repro.compare.recover import recover, rows_of
from repro.compare.tolerance import Tolerance
from repro.errors import ModelError
from repro.measure.counts import count_variant
from repro.measure.recover import Space
from repro.models.iformer_ablations import VARIANTS
from repro.spec.project import Project
from repro.spec.tables import Variant

SPACE = "repro.models.iformer_ablations"
SMALL = {"widths": [8, 16, 24, 32], "conv_blocks": [1, 1, 2, 0], "attention_blocks": [0, 0, 2, 1]}


def whole(knobs, size, base="iformer_m"):
    variant = Variant(id="v", builder="python", model=f"{SPACE}:configured", arguments={"base": base, **knobs})
    counts = count_variant(variant, size)
    return counts["params"], counts["macs"]


@pytest.mark.parametrize("form", ["as_trained", "reparameterised", "folded"])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"reduction": [0, 0, 1, 2], "ffn_ratio": [0, 0, 4, 1], "gated": False},
        {"cpe_kernel": 0, "conv_kernel": 5, "conv_ratio": 2, "ffn_kernel": 3},
        {"attention": "quarter", "reduction": [0, 0, 1, 1], "gated": False, "cpe_kernel": 7},
        {"attention": "concat", "reduction": [0, 0, 1, 1]},
        {"windowed": [0, 0, 1, 1], "window": 4, "chunks": 3},
    ],
    ids=lambda knobs: " ".join(knobs) or "base",
)
def test_counts_are_those_of_the_whole_model(knobs, form):
    size = (64, 96)
    params, macs = whole({**SMALL, **knobs}, size)
    found = Space(SPACE, "iformer_m", size, form).count({**SMALL, **knobs})
    assert found == (params[form], macs[f"{form}/macs"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if "_t1" in name])
def test_counts_of_the_papers_ablations_are_those_of_the_whole_model(name):
    params, macs = whole({}, (224, 224), name)
    assert Space(SPACE, name, (224, 224)).count({}) == (params["folded"], macs["folded/macs"])


def test_knobs_that_make_no_model_are_passed_over_and_unknown_ones_are_not():
    space = Space(SPACE, "iformer_m", (224, 224))
    assert space.count({"attention_blocks": [0, 0, 1, 1], "reduction": [0, 0, 0, 1]}) is None
    assert space.counted == 0
    with pytest.raises(ModelError, match="no knob 'depth'"):
        space.count({"depth": 3})
    with pytest.raises(ModelError, match="knob 'reduction' takes a tuple, not 2"):
        space.count({"reduction": 2})


@pytest.mark.parametrize(
    ("module", "base", "form", "message"),
    [
        ("repro.models.no_such", "iformer_m", "folded", "is no search space"),
        ("repro.models.cmt", "iformer_m", "folded", "is no search space"),
        (SPACE, "iformer_x", "folded", "no configuration 'iformer_x'"),
        (SPACE, "iformer_m", "fused", "not 'fused'"),
    ],
)
def test_spaces_that_are_none(module, base, form, message):
    with pytest.raises(ModelError, match=message):
        Space(module, base, (224, 224), form)


def test_each_part_is_built_once(monkeypatch):
    class Part(tuple):
        __slots__ = ()
        shape = (1, 4, 8, 8)

        def build(self, device):
            built.append(tuple(self))
            return torch.nn.Conv2d(4, self[0], 1, bias=False, device=device)

    built: list[tuple[int, ...]] = []
    module = types.ModuleType("toy_space")
    module.configuration = lambda base, changes: tuple(changes.get("widths", (1,)))
    module.parts = lambda widths, height, width: [Part((size,)) for size in widths]
    monkeypatch.setitem(sys.modules, "toy_space", module)
    space = Space("toy_space", "any", (8, 8))
    assert space.count({"widths": (2, 3, 2)}) == (4 * 7, 64 * 4 * 7)
    assert space.count({"widths": (3, 3)}) == (4 * 6, 64 * 4 * 6)
    assert space.count({"widths": (3, 3)}) == (4 * 6, 64 * 4 * 6)
    assert sorted(built) == [(2,), (3,)]
    assert space.counted == 2


def search(number, *models):
    table = Project().table(number)
    space = Space(table.search.space, table.search.base, (224, 224))
    start = time.process_time()
    found = recover(table, rows_of(table, models), space.count, Tolerance())
    return found, space.counted / (time.process_time() - start)


BASELINE = {"reduction": [0, 0, 1, 1], "ffn_ratio": [0, 0, 4, 4], "cpe_kernel": 0}


@pytest.mark.parametrize(
    ("model", "baseline", "change"),
    [
        ("Number of Blocks", {**BASELINE, "gated": True}, {"attention_blocks": [0, 0, 4, 1]}),
        ("FFN Width", {"reduction": [0, 0, 1, 1], "cpe_kernel": 0, "gated": True}, {"ffn_ratio": [0, 0, 2, 2]}),
        (
            "Attn. Head and FFN Width",
            {"gated": True, "cpe_kernel": 0},
            {"reduction": [0, 0, 2, 4], "ffn_ratio": [0, 0, 3, 3]},
        ),
    ],
)
def test_the_rows_of_table_10_are_found_again(model, baseline, change):
    found, _ = search(10, model)
    assert any(
        baseline.items() <= candidate.baseline.items()
        and any(change.items() <= item.knobs.items() for item in candidate.changes[model])
        for candidate in found.agreeing
    )


def test_the_rows_of_table_10_have_one_baseline_and_it_is_fast():
    found, rate = search(10, "Number of Blocks", "FFN Width", "Attn. Head and FFN Width")
    assert len(found.agreeing) == 2  # with and without positional encodings
    for candidate in found.agreeing:
        assert {**BASELINE, "gated": True, "cpe_kernel": candidate.baseline["cpe_kernel"]}.items() <= {
            **candidate.baseline
        }.items()
        (fewer,) = candidate.changes["Number of Blocks"]
        assert fewer.knobs == {"conv_blocks": [2, 2, 10, 0], "attention_blocks": [0, 0, 4, 1]}
    assert {candidate.baseline["cpe_kernel"] for candidate in found.agreeing} == {0, 3}
    assert rate >= 200  # of processor time: the machine's other work does not count


def test_the_rows_of_table_14_have_one_baseline():
    found, _ = search(14, "+ attention on 1/4 channels", "+ concat")
    (candidate,) = found.agreeing
    assert {**BASELINE, "gated": False}.items() <= dict(candidate.baseline).items()


@pytest.mark.parametrize(("number", "model"), [(10, "Baseline"), (14, "SHA Baseline without Modulation")])
def test_the_two_baselines_are_not_found(number, model):
    found, _ = search(number, model)
    assert found.agreeing == ()
    assert len(found.nearest) == 5
    assert found.exit_code == 1
