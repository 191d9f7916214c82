"""Latencies measured elsewhere: typed in from Xcode's report, or another tool's file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import repro as package
from repro.compare.latency_import import FIELDS, read
from repro.results.store import Store
from tests.results.test_transfer import TIMED

GOOD: dict[str, str] = {
    "variant": "line_8", "value": "unknown", "unit": "ms", "statistic": "median", "samples": "1.0;1.1|1.1;1.3",
    "warmup": "unknown", "rounds": "2", "iterations": "2", "device_model": "iPhone 13", "device_identifier": "unknown",
    "chip": "A15 Bionic", "os_version": "iOS 17.5.1", "os_build": "unknown", "thermal_state": "unknown",
    "low_power_mode": "unknown", "compute_units": "all", "placement": "unknown", "precision": "float16",
    "input_type": "tensor", "input_shape": "1x3x16x16", "target": "iOS15", "package_hash": "unknown",
    "coremltools": "9.0", "xcode": "15.4", "date": "2026-01-31", "how": "Xcode's performance report, typed in",
}  # fmt: skip


@pytest.fixture
def paper(second_paper: Path) -> Path:
    (second_paper / "tables" / "table_01.yaml").write_text(TIMED)
    return second_paper


def write(path: Path, *lines: dict[str, Any]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_samples_decide_the_value(tmp_path: Path) -> None:
    (item,) = read(write(tmp_path / "l.csv", GOOD), ["line_8"])
    assert item.latency.samples == ((1.0, 1.1), (1.1, 1.3))
    assert (item.value, item.input_size, item.batch_size) == (None, (16, 16), 1)
    assert item.latency.imported is not None
    assert (item.latency.imported["file"], item.latency.imported["line"]) == ("l.csv", 2)


@pytest.mark.parametrize(("unit", "value"), [("ms", "1.25"), ("us", "1250"), ("s", "0.00125")])
def test_a_value_alone_in_any_unit(tmp_path: Path, unit: str, value: str) -> None:
    (item,) = read(write(tmp_path / "l.csv", GOOD | {"samples": "unknown", "value": value, "unit": unit}), ["line_8"])
    assert item.value == pytest.approx(1.25)


def test_json_takes_lists(tmp_path: Path) -> None:
    line = {**GOOD, "samples": [[1.0, 1.1]], "input_shape": [1, 3, 16, 16], "placement": {"operations": {"cpu": 3}}}
    (tmp_path / "l.json").write_text(json.dumps({"latencies": [line]}))
    (item,) = read(tmp_path / "l.json", ["line_8"])
    assert item.latency.samples == ((1.0, 1.1),)


def test_an_imported_latency_is_marked_wherever_it_is_shown(
    repro: Callable[..., Result], paper: Path, tmp_path: Path
) -> None:
    failed = GOOD | {"variant": "line_16", "value": "Failed", "samples": "unknown"}
    file = write(tmp_path / "typed.csv", GOOD, failed, GOOD | {"device_model": "iPhone 15"})
    result = repro("latency", "--import", file, "--project", paper)
    assert (result.exit_code, "3 latencies imported" in result.stdout) == (0, True), result.stderr
    data = json.loads(repro("table", 1, "--no-measure", "--format", "json", "--project", paper).stdout)
    first, second = (row["cells"]["latency"] for row in data["rows"][:2])
    assert (first["measured"], first["status"]) == (1.1, "match")
    assert first["message"].startswith("imported: typed.csv, Xcode's performance report")
    assert (second["status"], second["reason"]) == ("match", "failed_too")
    assert data["beside"][0]["values"]["Line-8"]["imported"] is True
    for form in ("terminal", "markdown", "html"):
        text = repro("table", 1, "--no-measure", "--format", form, "--project", paper).stdout
        assert text.count("1.100°") == 2
        assert "° imported" in text
    latex = repro("table", 1, "--no-measure", "--format", "latex", "--project", paper).stdout
    assert latex.count(r"1.100$^{\circ}$") == 2
    told = repro("explain", 1, "Line-8", "latency", "--project", paper).stdout
    assert "imported" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "sec"}, "l.csv:2: unit: 'sec' is not one of ms, us, s"),
        ({"samples": "1.0;-1.1"}, "l.csv:2: samples: -1.1 is no latency: it must be above zero and finite"),
        ({"samples": "1.0;nan"}, "l.csv:2: samples: nan is no latency"),
        ({"samples": "1.0;inf"}, "l.csv:2: samples: inf is no latency"),
        ({"samples": "1.0;"}, "l.csv:2: samples: '' is no number"),
        ({"samples": "unknown"}, "l.csv:2: value: neither value nor samples are known"),
        ({"value": "5.0"}, "l.csv:2: value: is 5 ms, the median of the samples 1.1 ms"),
        ({"value": "-5.0"}, "l.csv:2: value: -5.0 is no latency"),
        ({"variant": "line_9"}, "l.csv:2: variant: no variant 'line_9' in the tables; did you mean"),
        ({"input_shape": "16"}, "l.csv:2: input_shape: '16' is no shape"),
        ({"compute_units": "ANE"}, "l.csv:2: compute_units: 'ANE' is not one of all"),
        ({"device_model": "unknown"}, "l.csv:2: device_model: must be known"),
        ({"date": "yesterday"}, "l.csv:2: date: 'yesterday' is no date"),
        ({"rounds": "two"}, "l.csv:2: rounds: 'two' is no count, and not unknown"),
        ({"chip": ""}, "l.csv:2: chip: is missing; write unknown where it is not known"),
        ({"device": "x"}, "l.csv:2: device: unknown field"),
    ],
    ids=lambda item: str(item)[:40],
)
def test_a_mistake_is_one_line_with_its_place(
    repro: Callable[..., Result], paper: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    result = repro("latency", "--import", write(tmp_path / "l.csv", GOOD | changes), "--project", paper)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_may_be_missing(repro: Callable[..., Result], paper: Path, tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "l.csv", {key: value for key, value in GOOD.items() if key != name})
    result = repro("latency", "--import", file, "--project", paper)
    assert result.exit_code == 2
    assert f"l.csv:2: {name}: is missing" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(Store(Path(file).parent).all())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "", "no latency in it"),
        ("l.txt", "", "expected a .csv or a .json file"),
        ("l.json", "{", "l.json:1: no JSON"),
        ("l.json", "3", "expected a list of objects"),
        ("l.json", "[]", "no latency in it"),
    ],
)
def test_a_file_of_something_else(
    repro: Callable[..., Result], paper: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    result = repro("latency", "--import", tmp_path / name, "--project", paper)
    assert (result.exit_code, message in result.stderr, result.stderr.count("\n")) == (2, True, 1)


def test_all_mistakes_of_a_file_are_said_at_once(repro: Callable[..., Result], paper: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "l.csv", GOOD | {"unit": "sec", "date": "x"}, GOOD, GOOD | {"variant": "y"})
    result = repro("latency", "--import", file, "--project", paper)
    assert re.findall(r"l\.csv:(\d+): (\w+)", result.stderr) == [("2", "date"), ("2", "unit"), ("4", "variant")]


def test_the_documentation_s_example_is_one(tmp_path: Path) -> None:
    text = (Path(package.__file__).parent.parent / "docs" / "coreml.md").read_text()
    block = re.search(r"```csv\n(.*?)```", text, re.DOTALL)
    assert block is not None
    (tmp_path / "example.csv").write_text(block[1])
    assert len(read(tmp_path / "example.csv", ["iformer_m"])) == 1
