"""The estimate: what it recovers, what it says of itself, and where it never goes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from repro.compare.estimate import TERMS, Printed, family_of, fit, model_of, said, terms
from repro.errors import UsageError


def program(seed: int) -> dict[str, Any]:
    """Bytes and multiply-adds of some network."""
    draw = random.Random(seed)
    return {
        "weight_bytes": draw.randint(2, 60) * 1_000_000,
        "activation_bytes": {"conv": draw.randint(5, 60) * 1_000_000, "layout": draw.randint(0, 30) * 1_000_000,
                             "reduce": draw.randint(0, 5) * 1_000_000},
        "macs": {"conv": draw.randint(1, 40) * 100_000_000},
    }  # fmt: skip


TRUTH = (0.3, 0.01, 0.02, 0.0, 0.005, 0.1)


def printed(count: int = 30, slow: str = "", noise: float = 0.0) -> list[Printed]:
    """Latencies that follow the model, but for one family that is eight times slower."""
    found = []
    for seed in range(count):
        variant = f"{'abcdefghij'[seed % 10] * 3}_{seed}"
        value = sum(a * b for a, b in zip(TRUTH, terms(program(seed)), strict=True))
        value *= 8 if family_of(variant) == slow else 1 + noise * ((-1) ** seed)
        found.append(Printed(variant=variant, input_size=(224, 224), where="", latency=value, program=program(seed)))
    return found


def test_the_fit_finds_what_made_the_numbers() -> None:
    data = printed()
    found = fit([terms(item.program) for item in data], [item.latency for item in data])
    assert found == pytest.approx(TRUTH, abs=1e-3)


def test_coefficients_are_never_negative() -> None:
    x = [[1.0, float(i)] for i in range(1, 9)]
    assert min(fit(x, [10.0 - i for i in range(1, 9)])) == 0.0


def test_a_family_that_follows_nothing_bends_no_other_and_is_named() -> None:
    model = model_of(printed(slow="ccc", noise=0.02))
    assert list(model.failing) == ["ccc"]
    assert model.failing["ccc"] == pytest.approx(8, rel=0.1)
    assert {item.variant.partition("_")[0] for item in model.left_out if item.far} == {"ccc"}
    assert model.error.median < 0.05
    assert "ccc (8.0 times)" in said(model)


def test_a_family_never_vouches_for_itself() -> None:
    data = printed(slow="ccc")
    for item in model_of(data).left_out:
        others = [other for other in data if other.family != family_of(item.variant)]
        own = next(other for other in data if other.variant == item.variant)
        coefficients = fit([terms(other.program) for other in others], [other.latency for other in others])
        assert item.value == pytest.approx(np.dot(coefficients, terms(own.program)), rel=1e-6)


def test_simpler_models_stand_beside_it() -> None:
    model = model_of(printed(noise=0.05))
    assert list(model.baselines) == ["MACs only", "a constant"]
    assert model.error.median < model.baselines["MACs only"].median < 10
    assert tuple(model.coefficients) == TERMS


def test_the_interval_holds_nine_in_ten_of_what_follows_the_model() -> None:
    draw = random.Random(1)
    data = [
        Printed(variant=f"{'abcdefghijkl'[i % 12] * 3}_{i}", input_size=(224, 224), where="", program=program(i),
                latency=sum(a * b for a, b in zip(TRUTH, terms(program(i)), strict=True)) * np.exp(draw.gauss(0, 0.1)))
        for i in range(240)
    ]  # fmt: skip
    inside = [item.low <= (item.printed or 0) <= item.high for item in model_of(data).left_out]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


def test_too_few_families_are_refused() -> None:
    with pytest.raises(UsageError, match="of 1 families, an estimate needs 5"):
        model_of([item for item in printed() if item.family == "aaa"])


@pytest.mark.parametrize(
    ("variant", "family"),
    [("iformer_m_hybrid", "iformer"), ("mobilenetv2_100", "mobilenetv2"), ("mobile_former_294m", "mobile_former"),
     ("mobilevit_s", "mobilevit"), ("mobilevitv2_050", "mobilevitv2"), ("resnet50", "resnet"), ("pvt_v2_b1", "pvt")],
)  # fmt: skip
def test_families(variant: str, family: str) -> None:
    assert family_of(variant) == family


def test_the_published_programs_give_an_estimate_of_table_18(repro: Callable[..., Result]) -> None:
    data = json.loads(repro("estimate", 18, "--no-measure", "--format", "json").stdout)
    model, rows = data["model"], {item["variant"]: item for item in data["estimates"]}
    assert data["measured"] is False
    assert model["printed"] >= 50
    assert (
        model["error"]["median"]
        < model["baselines"]["MACs only"]["median"]
        < model["baselines"]["a constant"]["median"]
    )
    assert rows["mobilevitv2_050"]["far"]
    assert "mobilevitv2" in model["failing"]
    assert rows["iformer_t"]["low"] < rows["iformer_t"]["value"] < rows["iformer_t"]["high"]
    text = repro("estimate", 18, "--no-measure").stdout
    assert "Not measured." in text
    assert "Leaving one family out" in text


def test_the_column_is_never_compared(repro: Callable[..., Result]) -> None:
    data = json.loads(repro("table", 18, "--no-measure", "--estimate", "--format", "json").stdout)
    cells = [row["cells"]["latency"] for row in data["rows"]]
    assert {cell["measured"] for cell in cells} == {None}
    assert {cell["status"] for cell in cells} == {"not_measured"}
    (column,) = data["beside"]
    assert (column["kind"], column["values"]["iFormer-M"]["record"]) == ("estimate", None)
    plain = json.loads(repro("table", 18, "--no-measure", "--format", "json").stdout)
    assert "beside" not in plain
    assert plain["summary"] == data["summary"]
    assert "estimate" in repro("table", 18, "--no-measure", "--estimate").stdout
