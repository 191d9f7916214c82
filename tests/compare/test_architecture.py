from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import click
import pytest

from repro.compare.architecture import architecture_needs, same, text
from repro.compare.cells import compare, needs
from repro.compare.records import Records
from repro.compare.tolerance import Tolerance
from repro.compare.verify import verify
from repro.measure.needs import architecture_need
from repro.measure.plan import missing, records_of
from repro.render.engine import latex
from repro.render.formats import FORMATS
from repro.render.terminal import WIDTH
from repro.render.verdict import FORMATS as VERDICTS
from repro.results.record import Record
from repro.results.store import Store
from repro.spec.project import Project
from repro.spec.tables import Block, Layer

FOLDERS = Project().template_folders


@pytest.fixture(scope="module")
def table():
    return Project().table(15)


def stages_of(table, model):
    """What a walk over a model that is exactly as printed says."""
    return [
        {
            "stage": stage.name,
            "output_size": stage.output_size,
            "downsampling": stage.downsampling,
            "blocks": [
                {"layers": [asdict(layer) for layer in block.layers], "repeat": block.repeat}
                for block in stage.models[model]
            ],
        }
        for stage in table.architecture
    ]


def put(store, table, change=lambda stages: stages, model="iFormer-M", **fields):
    row = next(row for row in table.rows if row.model == model)
    need = architecture_need(table, row)
    record = Record(
        subject=need.subject,
        metric="architecture",
        protocol=need.protocol,
        value=1,
        unit="layers",
        versions=need.versions,
        provenance={"time": "2026-01-01T00:00:00.000+00:00"},
        details={"stages": change(stages_of(table, model))},
    )
    store.put(replace(record, **fields))


def parts(table, store, model="iFormer-M"):
    result = compare(table, Records(Store(store.folder)))
    return {cell.name: cell for cell in result.architecture if cell.row.model == model}


def test_a_model_as_printed_matches_in_every_part(table, store):
    put(store, table)
    cells = parts(table, store)
    assert len(cells) == 16
    assert {cell.status for cell in cells.values()} == {"match"}
    assert text(cells["Stage 3, block 3"].reported) == "[CPE 3x3, SHMA hd96, FFN r3] x 4"


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("Stage 3, block 3", lambda s: s[3]["blocks"][2].update(repeat=5)),
        ("Stage 3, block 3", lambda s: s[3]["blocks"][2]["layers"][1].update(head_dim=192)),
        ("Stage 3, block 3", lambda s: s[3]["blocks"][2]["layers"][2].update(ratio=4)),
        ("Stage 1, block 1", lambda s: s[1]["blocks"][0]["layers"][0].update(kernel=5)),
        ("Stem, block 2", lambda s: s[0]["blocks"][1]["layers"][0].update(op="Conv-BN-ReLU")),
        ("Stage 4, block 2", lambda s: s[4]["blocks"].pop()),
        ("Stage 4, block 3", lambda s: s[4]["blocks"].append({"layers": [], "repeat": 1})),
        ("Stage 2, output size", lambda s: s[2].update(output_size="27×27")),
        ("Stage 2, output size", lambda s: s[2].update(downsampling="9×")),
    ],
)
def test_each_difference_is_found_where_it_is_and_nowhere_else(table, store, place, change):
    put(store, table, lambda stages: (change(stages), stages)[1])
    cells = parts(table, store)
    assert [name for name, cell in cells.items() if cell.status != "match"] == [place]
    assert cells[place].status == "outside"
    verdict = verify([compare(table, Records(Store(store.folder)))], Tolerance())
    assert [finding.what for finding in verdict.off] == [place]
    assert verdict.exit_code == 1


def test_without_a_record_every_part_waits(table, store):
    cells = parts(table, store)
    assert {(cell.status, cell.reason) for cell in cells.values()} == {("not_measured", "not_run")}
    assert {cell.measured for cell in cells.values()} == {None}


def test_stale_and_failed_walks_are_said(table, store):
    need = architecture_need(table, table.rows[0])
    put(store, table, model="iFormer-T", versions={**need.versions, "torch": "1.0"})
    put(store, table, model="iFormer-S", value=None, details={}, error={"reason": "refused", "message": "no stages"})
    assert {(cell.status, cell.reason) for cell in parts(table, store, "iFormer-T").values()} == {
        ("not_measured", "stale")
    }
    failed = parts(table, store, "iFormer-S").values()
    assert {(cell.status, cell.reason, cell.message) for cell in failed} == {("failed", "refused", "no stages")}


def test_a_row_without_a_builder_has_no_walk(table, store):
    bare = replace(table, rows=tuple(replace(row, variant=None) for row in table.rows))
    assert architecture_needs(bare, bare.rows) == []
    assert {cell.reason for cell in compare(bare, Records(store)).architecture} == {"no_builder"}


def test_the_walk_is_a_job_of_its_own(table, store):
    rows = {15: table.rows[:1]}
    jobs = missing(needs([table], rows, []), store)
    assert [sorted(need.metric for need in job.needs) for job in jobs] == [["gmacs", "params"], ["architecture"]]
    assert jobs[1].payload()["task"] == "architecture"
    assert [need.metric for job in missing(needs([table], rows, ["params"]), store) for need in job.needs] == ["params"]
    for record in records_of(jobs[1], {"stages": stages_of(table, "iFormer-T")}, {}):
        store.put(record)
    assert len(missing(needs([table], rows, []), Store(store.folder))) == 1
    (record,) = records_of(jobs[1], {"error": {"reason": "raised", "message": "x"}}, {})
    assert record.value is None


def test_where_a_block_was_printed_does_not_matter():
    layers = (Layer(op="FFN", ratio=3),)
    assert same(Block(layers=layers, line=1), Block(layers=layers, line=None))
    assert not same(Block(layers=layers, repeat=2), Block(layers=layers))
    assert not same(None, Block(layers=layers))


@pytest.fixture
def differing(table, store):
    def change(stages):
        stages[3]["blocks"][2]["layers"][1].update(head_dim=177)
        stages[2].update(output_size="27×27")
        stages[4]["blocks"].pop()
        return stages

    for row in table.rows:
        put(store, table, change if row.model == "iFormer-M" else lambda stages: stages, model=row.model)
    return compare(table, Records(Store(store.folder)))


@pytest.mark.parametrize("name", ["terminal", "markdown", "latex", "html"])
def test_both_sides_are_shown_where_they_differ(differing, name):
    shown = click.unstyle(FORMATS[name].make(differing, FOLDERS))
    for wanted in ("SHMA hd96", "SHMA hd177", "56×56 (4×)", "no such block", "measured"):
        assert (latex(wanted) if name == "latex" else wanted) in shown, wanted
    assert shown.count("hd177") == 1
    if name == "terminal":
        assert "61 match, 3 outside; 64 parts compared" in shown
        assert max(map(len, shown.splitlines())) <= WIDTH


def test_measured_only_latex_shows_the_models_own(differing):
    shown = FORMATS["latex-measured"].make(differing, FOLDERS)
    assert "SHMA hd177" in shown
    assert shown.count("{@{}l@{}}CPE") == 7


def test_json_adds_a_section_and_keeps_the_contract(differing, store):
    data = json.loads(FORMATS["json"].make(differing, FOLDERS))
    assert list(data) == ["schema", "table", "title", "columns", "rows", "summary", "architecture"]
    off = [part for part in data["architecture"] if part["status"] == "outside"]
    assert [(part["model"], part["stage"], part["part"]) for part in off] == [
        ("iFormer-M", "Stage 2", "output size"),
        ("iFormer-M", "Stage 3", "block 3"),
        ("iFormer-M", "Stage 4", "block 2"),
    ]
    assert off[1]["measured"] == "[CPE 3x3, SHMA hd177, FFN r3] x 4"
    assert off[2]["measured"] is None
    other = compare(Project().table(14), Records(store))
    assert "architecture" not in json.loads(FORMATS["json"].make(other, FOLDERS))


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_names_the_part(differing, name):
    shown = VERDICTS[name][1](verify([differing], Tolerance()))
    assert re.search(r"Stage 3(,|%2C) block 3", shown)


@pytest.mark.slow
def test_a_released_model_through_a_worker(repro):
    result = repro("table", "15", "--only", "iFormer-T", "--format", "json", "--jobs", "1")
    data = json.loads(result.stdout)
    assert {part["status"] for part in data["architecture"]} == {"match"}
    assert len({part["record"] for part in data["architecture"]}) == 1
    assert len(data["architecture"]) == 16
