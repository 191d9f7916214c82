from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal

import pytest

from repro.compare.cells import compare, select_rows
from repro.compare.records import Records
from repro.compare.tolerance import parse_tolerance
from repro.compare.verify import verify
from repro.errors import UsageError
from repro.results.store import Store
from repro.spec.project import Project
from tests.conftest import TABLE, counted

SIZE = (16, 16)


@pytest.fixture
def table(second_paper):
    return Project(root=second_paper).table(1)


def put(store, table, row, metric, count, **forms):
    variant = next(item.variant for item in table.rows if item.model == row)
    store.put(counted(variant, metric, count, SIZE, **forms))


def statuses(table, store, tolerance="0", **selection):
    result = compare(table, Records(Store(store.folder)), tolerance=parse_tolerance(tolerance), **selection)
    return {(row.model, cell.metric): cell for row, cell in result.cells}


def test_every_status(table, store):
    put(store, table, "Line-8", "params", 312)
    put(store, table, "Line-8", "gmacs", 57_000)
    put(store, table, "Line-16", "params", 700)
    cells = statuses(table, store, "gmacs=0.002")
    found = {key: (cell.status, cell.reason) for key, cell in cells.items()}
    assert found["Line-8", "params"] == ("match", None)
    assert found["Line-8", "gmacs"] == ("within", None)
    assert found["Line-16", "params"] == ("outside", None)
    assert found["Line-16", "gmacs"] == ("not_measured", "not_run")
    assert found["Line-16", "latency"][0] == "not_measured"
    assert found["Line-8", "top1"] == ("not_measured", "needs_dataset")
    assert found["Elsewhere", "params"] == ("not_measured", "no_builder")
    assert found["Elsewhere", "top1"] == ("not_reported", None)


def test_values_are_in_the_printed_unit_and_differences_exact(table, store):
    put(store, table, "Line-8", "params", 312)
    put(store, table, "Line-8", "gmacs", 57_000)
    cells = statuses(table, store)
    assert cells["Line-8", "params"].measured == Decimal("0.312")
    assert cells["Line-8", "params"].difference == Decimal("0.002")
    assert cells["Line-8", "gmacs"].measured == Decimal("0.057")
    assert cells["Line-8", "gmacs"].difference == Decimal("0.002")


def test_the_rows_convention_picks_the_value(second_paper, store):
    path = second_paper / "tables" / "table_01.yaml"
    text = TABLE.replace("variant: line_8\n", "variant: line_8\n    protocol: {params: {form: as_trained}}\n", 1)
    path.write_text(text)
    table = Project(root=second_paper).table(1)
    put(store, table, "Line-8", "params", 312, as_trained=400)
    assert statuses(table, store)["Line-8", "params"].measured == Decimal("0.4")


def test_a_count_says_its_whole_protocol(second_paper, store):
    path = second_paper / "tables" / "table_01.yaml"
    path.write_text(TABLE.replace("protocol: {input_size: 16, batch_size: 1, form: folded, counting: macs}\n", "", 1))
    table = Project(root=second_paper).table(1)
    for metric in ("params", "gmacs"):
        store.put(counted(table.rows[0].variant, metric, 312))
    cells = statuses(table, store)
    assert cells["Line-8", "params"].protocol == {"input_size": 224, "form": "folded"}
    assert cells["Line-8", "gmacs"].protocol == {"input_size": 224, "form": "folded", "counting": "macs"}
    assert cells["Line-16", "gmacs"].protocol == {}  # nothing is measured yet, so nothing is said


def test_a_stale_record_is_not_used(table, store):
    variant = table.rows[0].variant
    record = counted(variant, "params", 312, SIZE)
    store.put(replace(record, versions={**record.versions, "torch": "1.0"}))
    cell = statuses(table, store)["Line-8", "params"]
    assert (cell.status, cell.reason, cell.measured) == ("not_measured", "stale", None)
    assert "torch 1.0 ->" in cell.message


def test_two_counters_that_disagree_are_shown(table, store):
    put(store, table, "Line-8", "gmacs", 55_000, flop_counter=54_000)
    cell = statuses(table, store)["Line-8", "gmacs"]
    assert (cell.status, cell.reason, cell.counters_disagree) == ("match", "counters_disagree", True)


def test_a_failure_keeps_its_message(table, store):
    record = counted(table.rows[0].variant, "params", 1, SIZE)
    store.put(replace(record, value=None, details={}, error={"reason": "timed_out", "message": "stopped after 3 s"}))
    cell = statuses(table, store)["Line-8", "params"]
    assert (cell.status, cell.reason, cell.message) == ("failed", "timed_out", "stopped after 3 s")


def test_the_ledger_fills_what_the_store_lacks(table, store, tmp_path):
    ledger = Store(tmp_path / "ledger")
    put(ledger, table, "Line-8", "params", 312)
    put(store, table, "Line-16", "params", 620)
    result = compare(table, Records(store, ledger))
    found = {(row.model, cell.metric): cell.status for row, cell in result.cells}
    assert found["Line-8", "params"] == "match"
    assert found["Line-16", "params"] == "match"


DEVIATION = """
deviations:
  - row: Line-8
    metric: params
    reason: protocol_mismatch
    says: The paper counts the network as trained.
    evidence: {measure: params, form: as_trained, equals: "0.31"}
"""


def with_deviation(project, text):
    (project / "tables" / "table_01.yaml").write_text(TABLE + text)
    return Project(root=project).table(1)


def test_a_deviation_explains_only_while_its_evidence_holds(second_paper, store):
    table = with_deviation(second_paper, DEVIATION)
    put(store, table, "Line-8", "params", 400, as_trained=312)
    cell = statuses(table, store)["Line-8", "params"]
    assert (cell.status, cell.reason) == ("explained", "protocol_mismatch")
    assert cell.evidence.value == Decimal("0.312")


@pytest.mark.parametrize(
    ("change", "as_trained", "why"),
    [
        (lambda text: text, 350, "the evidence measures 0.350"),
        (lambda text: text.replace('equals: "0.31"', 'equals: "0.35"'), 350, "the paper prints 0.31"),
        (lambda text: text.replace("as_trained, equals", "as_trained, input_size: 32, equals"), 312, "not measured"),
        (lambda text: text.replace("form: as_trained", "form: reparameterised"), 312, "the evidence measures 0.400"),
    ],
)
def test_a_false_explanation_leaves_the_cell_outside(second_paper, store, change, as_trained, why):
    table = with_deviation(second_paper, change(DEVIATION))
    put(store, table, "Line-8", "params", 400, as_trained=as_trained)
    cell = statuses(table, store)["Line-8", "params"]
    assert (cell.status, cell.reason) == ("outside", "evidence_does_not_hold")
    assert why in cell.message


def test_truncation_is_evidence(second_paper, store):
    text = re.sub("form: as_trained", "truncated: true", DEVIATION)
    table = with_deviation(second_paper, text)
    put(store, table, "Line-8", "params", 319)
    assert statuses(table, store)["Line-8", "params"].status == "explained"


def test_rows_are_selected_by_pattern(table):
    assert [row.model for row in select_rows([table], ["Line-*"])[1]] == ["Line-8", "Line-16"]
    with pytest.raises(UsageError, match="did you mean Line-16"):
        select_rows([table], ["Line_16"])


def exit_code(table, store, only=(), strict=False, tolerance="0"):
    bound = parse_tolerance(tolerance)
    rows = select_rows([table], only)[1]
    return verify([compare(table, Records(store), rows=rows, tolerance=bound)], bound, strict=strict).exit_code


def test_exit_codes(table, store):
    assert exit_code(table, store) == 3
    put(store, table, "Line-8", "params", 312)
    assert exit_code(table, store) == 0
    assert exit_code(table, store, strict=True) == 1
    put(store, table, "Line-16", "params", 700)
    assert exit_code(table, store) == 1
    assert exit_code(table, store, ["Line-8"]) == 0
    assert exit_code(table, store, tolerance="0.1") == 0
    assert exit_code(table, store, ["Elsewhere"]) == 3


def test_off_cells_are_listed_largest_first(table, store):
    put(store, table, "Line-8", "params", 400)
    put(store, table, "Line-16", "params", 700)
    put(store, table, "Line-8", "gmacs", 500_000)
    verdict = verify([compare(table, Records(store))], parse_tolerance("0"))
    assert [(item.row.model, item.cell.metric) for item in verdict.off] == [
        ("Line-8", "gmacs"),
        ("Line-8", "params"),
        ("Line-16", "params"),
    ]
