from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.compare.recover import printed_values, recover, rows_of
from repro.compare.tolerance import Tolerance, parse_tolerance, rounds_to
from repro.errors import InputError, UsageError
from repro.render.recover import FORMATS
from repro.render.terminal import WIDTH
from repro.spec.parse import load_table
from repro.spec.project import Project
from repro.spec.tables import Search
from tests.conftest import TABLE

TABLE_10 = Project().table(10)
ROWS = rows_of(TABLE_10, ["Baseline", "Number of Blocks"])


def searched(**knobs):
    baseline, change = knobs["baseline"], knobs["change"]
    return replace(
        TABLE_10,
        search=Search(space="s", base="b", baseline=baseline, rows={"Baseline": {}, "Number of Blocks": change}),
    )


def linear(knobs):
    """Costs of a made-up family: millions of parameters and hundredths of a GMAC; odd sums make no model."""
    total = sum(knobs.values())
    return None if total % 7 == 6 else (total * 100_000, total * 17_900_000)


VALUES = st.lists(st.integers(0, 120), min_size=1, max_size=6, unique=True).map(tuple)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES, VALUES, st.sampled_from(["0", "0.2", "5%", "30%"]))
def test_what_agrees_is_what_brute_force_finds(a, b, c, bound):
    table = searched(baseline={"a": a, "b": b}, change={"b": c})
    tolerance = parse_tolerance(bound)

    def agrees(row, knobs):
        counts = linear(knobs)
        if counts is None:
            return None
        pairs = zip(
            printed_values(table, row), (Decimal(counts[0]).scaleb(-6), Decimal(counts[1]).scaleb(-9)), strict=True
        )
        return all(
            rounds_to(value, item.text)
            or tolerance.of(item.metric).allows(value - Decimal(item.text), Decimal(item.text))
            for item, value in pairs
        )

    found = recover(table, ROWS, linear, tolerance)
    expected = []
    for x in a:
        for y in b:
            changed = [agrees(ROWS[1], {"a": x, "b": z}) for z in c]
            if agrees(ROWS[0], {"a": x, "b": y}) and any(changed):
                expected.append(({"a": x, "b": y}, changed.count(True)))
    assert sorted(
        ((dict(item.baseline), len(item.changes["Number of Blocks"])) for item in found.agreeing), key=str
    ) == sorted(expected, key=str)
    distances = [item.distance for item in found.agreeing]
    assert distances == sorted(distances)


def test_a_knob_that_all_rows_set_is_not_repeated():
    table = searched(baseline={"a": (80, 84), "b": (1, 2, 3)}, change={"b": (0,)})
    found = recover(table, ROWS[1:], linear, Tolerance())
    assert [item.baseline for item in (*found.agreeing, *found.nearest)] == [{"a": 84}, {"a": 80}]


def test_the_nearest_come_first_and_are_as_many_as_asked():
    table = searched(baseline={"a": (10, 60, 91, 98)}, change={})
    found = recover(table, ROWS[:1], linear, Tolerance(), nearest=2)
    assert found.agreeing == ()
    assert [item.baseline["a"] for item in found.nearest] == [98, 91]
    change = found.nearest[0].changes["Baseline"][0]
    assert change.values == {"params": Decimal("9.8"), "gmacs": Decimal("1.7542")}
    assert change.distance == Decimal("0.2") / Decimal(10)
    text = click.unstyle(FORMATS["terminal"](found, 4, 0.5))
    assert "no configuration agrees with all printed values; the nearest:" in text
    assert "4 configurations counted in 0.5 s (8 a second)" in text
    assert "(off by 2.00%)" in text
    assert json.loads(FORMATS["json"](found, 4, 0.5))["nearest"][0]["rows"]["Baseline"][0]["agrees"] is False


def test_what_agrees_is_shown():
    table = searched(baseline={"a": tuple(range(95, 130))}, change={"b": (0, -16, -17)})
    found = recover(table, ROWS, linear, parse_tolerance("15%"))
    assert found.exit_code == 0
    text = click.unstyle(FORMATS["terminal"](found, 100, 0.0))
    assert "agree with all printed values together" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    data = json.loads(FORMATS["json"](found, 100, 0.0))
    assert len(data["agreeing"]) == len(found.agreeing)
    assert data["nearest"] == []


@pytest.mark.parametrize(
    ("number", "models", "message"),
    [
        (18, ["iFormer-M"], "table 18 has no 'search' section"),
        (10, ["Basline"], "no row 'Basline' in table 10; did you mean Baseline?"),
    ],
)
def test_rows_that_cannot_be_searched(number, models, message):
    with pytest.raises(UsageError, match=message):
        rows_of(Project().table(number), models)


def test_rows_without_a_space_or_a_count():
    table = replace(TABLE_10, search=Search(space="s", base="b", baseline={}, rows={"Baseline": {}}))
    with pytest.raises(UsageError, match="searches no configuration of 'FFN Width'; of Baseline"):
        rows_of(table, ["FFN Width"])
    bare = replace(table, rows=tuple(replace(row, cells={}) for row in table.rows))
    with pytest.raises(UsageError, match="prints no params and no GMACs"):
        rows_of(bare, ["Baseline"])


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("{space: s, base: b, baseline: {a: []}, rows: {}}", "search.baseline.a: needs a list of at least one value"),
        ("{space: s, base: b, baseline: {a: 1}, rows: {}}", "search.baseline.a: must be a list, not text"),
        ("{space: s, base: b, baseline: {}, rows: {Line-9: {}}}", "no row 'Line-9' in this table; did you mean Line-8"),
        ("{space: s, base: b, rows: {}}", "search: missing key 'baseline'"),
        ("{space: s, base: b, baseline: {}, rows: {}, knobs: {}}", "search.knobs: unknown key 'knobs'"),
    ],
)
def test_mistakes_of_a_search(tmp_path, search, message):
    path = tmp_path / "table_01.yaml"
    path.write_text(TABLE + f"search: {search}\n")
    with pytest.raises(InputError) as caught:
        load_table(path)
    assert any(message in str(problem) for problem in caught.value.problems)


def test_the_command(repro, second_paper):
    path = second_paper / "tables" / "table_01.yaml"
    path.write_text(
        TABLE + "search:\n  space: toy_space_of_the_second_paper\n  base: line\n  baseline: {width: [4, 8, 16]}\n"
        "  rows: {Line-8: {}, Line-16: {width: [16, 32]}}\n"
    )
    (second_paper / "toy_space_of_the_second_paper.py").write_text(
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "@dataclass(frozen=True)\n"
        "class Line:\n"
        "    width: int = 8\n"
        "    shape: tuple = (1, 3, 16, 16)\n"
        "    def build(self, device):\n"
        "        import second_models\n"
        "        return second_models.line(self.width).to(device)\n"
        "def configuration(base, changes):\n"
        "    return Line(**changes)\n"
        "def parts(line, height, width):\n"
        "    return [line]\n"
    )
    found = repro("recover", "1", "Line-8", "--project", second_paper, "--format", "json")
    assert found.exit_code == 0, found.output
    data = json.loads(found.stdout)
    assert [item["baseline"] for item in data["agreeing"]] == [{"width": 8}]
    assert data["agreeing"][0]["rows"]["Line-8"][0]["measured"]["params"] == pytest.approx(0.314)
    assert repro("recover", "1", "Line-16", "--project", second_paper).exit_code == 1
    assert repro("recover", "1", "Line-8", "--tolerance", "x", "--project", second_paper).exit_code == 2
    wrong = repro("recover", "1", "Elsewhere", "--project", second_paper)
    assert wrong.exit_code == 2
    assert "searches no configuration of 'Elsewhere'" in wrong.stderr
