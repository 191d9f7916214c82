"""The ten specs against a second transcription of the appendix, made apart from them: tests/data/printed_table_*."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from repro.spec.parse import is_number
from repro.spec.project import Project
from repro.spec.tables import Reported, Table, Variant

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
COLUMNS = {
    10: ("params", "gmacs", "latency", "top1"),
    12: ("year", "params", "latency", "resolution", "epochs", "top1"),
    13: (
        *("year", "params", "latency", "epochs"),
        *("ap_box", "ap50_box", "ap75_box", "ap_mask", "ap50_mask", "ap75_mask", "miou"),
    ),
    14: ("params", "gmacs", "latency", "top1"),
    18: ("year", "params", "gmacs", "latency", "resolution", "epochs", "top1"),
}
ROWS = {9: 11, 10: 4, 11: 5, 12: 3, 13: 12, 14: 4, 15: 4, 16: 2, 17: 4, 18: 62}


@pytest.fixture(scope="module")
def tables() -> dict[int, Table]:
    return {table.number: table for table in Project(root=ROOT).tables()}


def lines_of(number: int) -> list[list[str]]:
    text = (DATA / f"printed_table_{number}.txt").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def printed(cell: Reported, row_line: int) -> str:
    """A cell in the notation of the second transcription."""
    if cell.text is None:
        return "-"
    return cell.text if cell.line == row_line else f"{cell.text}@{cell.line}"


def test_ten_specs_with_their_rows(tables: dict[int, Table]) -> None:
    assert {number: len(table.rows) for number, table in tables.items()} == ROWS


@pytest.mark.parametrize("number", COLUMNS)
def test_columns_in_printed_order(tables: dict[int, Table], number: int) -> None:
    assert tuple(column.metric for column in tables[number].columns) == COLUMNS[number]


@pytest.mark.parametrize("number", COLUMNS)
def test_every_printed_string_line_and_row_order(tables: dict[int, Table], number: int) -> None:
    expected = [fields for fields in lines_of(number) if fields != [""]]
    rows = tables[number].rows
    assert [row.model + (" †" if row.marks else "") for row in rows] == [fields[1] for fields in expected]
    for row, (line, _, *values) in zip(rows, expected, strict=True):
        found = [printed(row.reported(metric), int(line)) for metric in COLUMNS[number]]
        assert found == values, row.model


def test_groups_of_table_18(tables: dict[int, Table]) -> None:
    sizes = [0]
    for fields in lines_of(18):
        if fields == [""]:
            sizes.append(0)
        else:
            sizes[-1] += 1
    assert sizes == [5, 13, 15, 29]
    rows = tables[18].rows
    groups = [row.group for row in rows]
    assert groups == sorted(groups)
    assert list(Counter(groups).values()) == sizes
    last = {row.group: row.model for row in rows}
    assert last == {1: "iFormer-T", 2: "iFormer-S", 3: "iFormer-M", 4: "iFormer-L"}


def test_daggers(tables: dict[int, Table]) -> None:
    marked = [row.model for row in tables[18].rows if row.marks == ("dagger",)]
    assert marked == ["GhostNetV3 1.0x", "GhostNetV3 1.3x", "GhostNetV3 1.6x"]


def test_years_are_inline_and_our_own_rows_have_none(tables: dict[int, Table]) -> None:
    for number in (12, 13, 18):
        year = tables[number].column("year")
        assert year is not None
        assert year.inline
        for row in tables[number].rows:
            ours = row.model.startswith("iFormer")
            assert (row.reported("year").text is None) == ours, row.model
            assert (row.cite is None) == ours, row.model


def test_only_rows_that_no_library_has_may_lack_a_variant(tables: dict[int, Table]) -> None:
    families = ("SBCFormer", "EMO", "EfficientMod", "CAS-ViT", "RepNeXt", "EdgeViT", "Mobile-Former", "CMT")
    for number in (12, 13, 15, 18):
        for row in tables[number].rows:
            assert row.variant is not None or row.model.startswith(families), (number, row.model)
    elsewhere = [row.model for row in tables[18].rows if row.model.startswith(families)]
    assert len(elsewhere) == 62 - 44


def test_a_variant_is_the_same_in_every_table(tables: dict[int, Table]) -> None:
    seen: dict[str, Variant] = {}
    for table in tables.values():
        for row in table.rows:
            if row.variant is not None:
                assert seen.setdefault(row.variant.id, row.variant) == row.variant


def test_a_printed_decimal_is_as_long_as_its_column_says(tables: dict[int, Table]) -> None:
    shorter = set()
    for table in tables.values():
        for row in table.rows:
            for column in table.columns:
                text = row.reported(column.metric).text
                if column.descriptive or not is_number(text):
                    continue
                assert text is not None
                if len(text.partition(".")[2]) != column.decimals:
                    shorter.add((table.number, row.model, column.metric, text))
    assert shorter == {
        (13, "ConvNeXt-T", "latency", "12.6"),
        (13, "EfficientFormerV2-L", "latency", "12.5"),
        (18, "CMT-Ti", "gmacs", "687"),
        (18, "Mobile-Former-508M", "params", "14"),
    }


def test_architecture_of_table_15(tables: dict[int, Table]) -> None:
    found = []
    for row in tables[15].rows:
        for stage in tables[15].architecture:
            for block in stage.models[row.model]:
                found.append([str(block.line), stage.name, row.model, str(block.repeat), *map(str, block.layers)])
    assert found == lines_of(15)
    assert [(stage.name, stage.output_size, stage.downsampling) for stage in tables[15].architecture] == [
        ("Stem", "56×56", "4×"),
        ("Stage 1", "56×56", "4×"),
        ("Stage 2", "28×28", "8×"),
        ("Stage 3", "14×14", "16×"),
        ("Stage 4", "7×7", "32×"),
    ]


def test_table_15_prints_what_table_18_prints(tables: dict[int, Table]) -> None:
    of_18 = {row.model: row for row in tables[18].rows}
    for row in tables[15].rows:
        for metric, line in (("params", 113), ("gmacs", 114)):
            assert row.reported(metric).text == of_18[row.model].reported(metric).text
            assert row.reported(metric).line == line


def test_units_that_stood_inside_the_cells(tables: dict[int, Table]) -> None:
    table = tables[14]
    assert [column.unit for column in table.columns] == ["M", "M", "ms", "%"]
    for row in table.rows:
        for metric, unit in (("params", "M"), ("gmacs", "M"), ("latency", "ms")):
            cell = row.reported(metric)
            assert (cell.extracted or "").replace(" ", "") == f"{cell.text}{unit}"


def test_extracted_text_where_decimal_points_were_lost(tables: dict[int, Table]) -> None:
    cells = [cell for row in tables[10].rows for cell in row.cells.values() if cell.extracted is not None]
    assert len(cells) == 6
    for cell in cells:
        assert cell.text is not None
        assert cell.extracted is not None
        assert cell.text.replace(".", "") == cell.extracted.replace(" ", "")


def test_a_shared_line_gives_each_of_its_rows_one_value(tables: dict[int, Table]) -> None:
    shared: dict[tuple[str, int | None, str], list[str | None]] = {}
    for row in tables[18].rows:
        for metric, cell in row.cells.items():
            if cell.extracted is not None:
                shared.setdefault((metric, cell.line, cell.extracted), []).append(cell.text)
    assert {line for _, line, _ in shared} == {182, 187, 188, 190, 215, 216, 217}
    for (metric, line, extracted), values in shared.items():
        assert values == extracted.split(), (metric, line)


def test_lost_cells_have_no_value_and_say_so(tables: dict[int, Table]) -> None:
    lost = {
        (number, row.model, metric)
        for number, table in tables.items()
        for row in table.rows
        for metric, cell in row.cells.items()
        if cell.lost
    }
    ffn = ("FFN without DW Conv", *(f"FFN with DW Conv {kernel}x{kernel}" for kernel in (3, 5, 7, 9)))
    assert lost == {
        *((11, model, metric) for model in ffn for metric in ("gmacs", "latency", "top1")),
        (16, "SHMA", "setting"),
        (17, "SHMA", "latency"),
        (17, "Channel Chunking Hybrid SHMA", "latency"),
    }
    for number, model, metric in lost:
        row = next(row for row in tables[number].rows if row.model == model)
        assert (row.reported(metric).note or "").startswith("Lost in extraction")
    assert {number for number, table in tables.items() if table.lost is not None} == {9, 11, 16, 17}


def test_values_that_only_the_text_gives_are_marked(tables: dict[int, Table]) -> None:
    for number, table in tables.items():
        for row in table.rows:
            for metric, cell in row.cells.items():
                known = cell.text is not None
                assert cell.from_text == (number in (9, 16, 17) and known), (number, row.model, metric)
    latencies = {row.model: row.reported("latency") for row in tables[17].rows}
    assert (latencies["Hybrid SHMA"].text, latencies["Hybrid SHMA"].line) == ("11.46", 126)
    assert (latencies["FastViT-SA12"].text, latencies["FastViT-SA12"].line) == ("5.27", 128)


def test_protocols(tables: dict[int, Table]) -> None:
    rows = {row.model: row for row in tables[18].rows}
    of = tables[18].protocol_of
    assert of(rows["iFormer-M"], "params") == {"input_size": 224, "form": "folded"}
    assert of(rows["CMT-Ti"], "gmacs") == {"input_size": 160, "batch_size": 1, "form": "folded", "counting": "macs"}
    assert of(rows["EfficientNet-B1"], "top1") == {
        "input_size": 240,
        "precision": "float32",
        "dataset": "ImageNet-1k",
        "split": "validation",
    }
    assert of(rows["EfficientViT-B1-r288"], "latency") == {
        "input_size": 288,
        "batch_size": 1,
        "precision": "float16",
        "form": "folded",
        "device": "iPhone 13",
        "compute_units": "all",
    }
    backbone = tables[13].rows[0]
    assert tables[13].protocol_of(backbone, "params")["input_size"] == 224
    assert tables[13].protocol_of(backbone, "latency")["input_size"] == 512
    assert tables[13].protocol_of(backbone, "ap_box")["detection_dataset"] == "COCO 2017"
    assert tables[13].protocol_of(backbone, "miou")["segmentation_dataset"] == "ADE20K"
    assert tables[17].protocol_of(tables[17].rows[0], "latency")["input_size"] == 512
