"""Records that move between machines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from repro.compare.latency import latency_record
from repro.results.latency import Latency
from repro.results.record import Record
from repro.results.store import Store
from repro.spec.tables import Variant
from tests.conftest import TABLE, counted

LINE = Variant(id="line_8", builder="python", model="second_models:line", arguments={"width": 8})
TIMED = TABLE.replace(
    "counting: macs}", "counting: macs,\n  latency: {precision: float16, device: iPhone 13, compute_units: all}}"
)


def timed(*samples: float, device: str = "iPhone 13", day: int = 1, variant: Variant = LINE, **changes: Any) -> Record:
    """A latency as a Mac would have measured it."""
    fields: dict[str, Any] = {item.name: "unknown" for item in dataclasses.fields(Latency)}
    fields |= {
        "device_model": device, "precision": "float16", "input_type": "tensor", "input_shape": (1, 3, 16, 16),
        "target": "iOS15", "compute_units": "all", "statistic": "median", "date": f"2026-01-0{day}", "how": "a test",
        "package_hash": "0" * 64, "warmup": 1, "rounds": 1, "iterations": len(samples), "samples": (samples,),
        "os_version": "iOS 17", "check": "passed", "imported": None, **changes,
    }  # fmt: skip
    made = {"host": "mac", "time": f"2026-01-0{day}T00:00:00.000+00:00"}
    return latency_record(variant, (16, 16), Latency(**fields), made)


@pytest.fixture
def paper(second_paper: Path) -> Path:
    (second_paper / "tables" / "table_01.yaml").write_text(TIMED)
    return second_paper


def test_a_linux_machine_and_a_mac_make_one_table(
    repro: Callable[..., Result], paper: Path, store: Store, tmp_path: Path
) -> None:
    import sys

    sys.path.insert(0, str(paper))  # the variants' source is a digest of the module's file
    linux, mac = Store(tmp_path / "linux"), Store(tmp_path / "mac")
    linux.put(counted(LINE, "params", 314, (16, 16)))
    mac.put(timed(1.0, 1.1, 1.2))
    mac.put(timed(0.4, 0.5, 0.6, device="MacBook Air (M2, 2022)"))
    common = ["--project", paper]
    for machine in (linux, mac):
        name = machine.folder.name
        assert repro("records", "export", f"{name}.json", "--store", machine.folder, *common).exit_code == 0
    assert repro("records", "merge", "linux.json", "mac.json", "--output", "all.json").exit_code == 0
    result = repro("records", "import", "all.json", *common)
    assert (result.exit_code, "3 records taken" in result.stdout) == (0, True)
    data = json.loads(repro("table", 1, "--no-measure", "--format", "json", *common).stdout)
    cells = data["rows"][0]["cells"]
    assert (cells["params"]["status"], cells["latency"]["measured"], cells["latency"]["status"]) == (
        "match",
        1.1,
        "match",
    )
    assert [(column["key"], column["values"]["Line-8"]["value"]) for column in data["beside"]] == [
        ("MacBook Air (M2, 2022)", 0.5)
    ]
    verdict = json.loads(repro("verify", 1, "--no-measure", "--metrics", "latency", "--format", "json", *common).stdout)
    assert verdict["summary"]["match"] == 1
    assert sum(verdict["summary"].values()) == 3


def test_a_conflict_is_shown_and_nothing_is_overwritten(
    repro: Callable[..., Result], paper: Path, store: Store, tmp_path: Path
) -> None:
    mine, theirs = timed(1.0, 1.1, 1.2), timed(2.0, 2.1, 2.2, day=2)
    store.put(mine)
    Store(tmp_path / "other").put(theirs)
    result = repro("records", "import", tmp_path / "other", "--project", paper)
    assert result.exit_code == 1
    assert "conflict: line_8 latency at 16: 1.1 ms (iPhone 13, mac, 2026-01-01T00:00:00" in result.stderr
    assert "2.1 ms (iPhone 13, mac, 2026-01-02T00:00:00" in result.stderr
    assert [record.id for record in Store(store.folder).all()] == [mine.id]
    again = repro("records", "import", tmp_path / "other", "--both", "--project", paper)
    assert again.exit_code == 0
    assert {record.id for record in Store(store.folder).all()} == {mine.id, theirs.id}


def test_the_same_count_of_two_machines_is_no_conflict(
    repro: Callable[..., Result], paper: Path, store: Store, tmp_path: Path
) -> None:
    mine = counted(LINE, "params", 314, (16, 16))
    store.put(mine)
    Store(tmp_path / "other").put(dataclasses.replace(mine, provenance={"host": "elsewhere", "time": "2027"}))
    result = repro("records", "import", tmp_path / "other", "--project", paper)
    assert (result.exit_code, "0 records taken" in result.stdout, "1 were known" in result.stdout) == (0, True, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a file of records"),
        ("[]", "write one with repro records export"),
        ('{"schema": 9, "records": []}', "upgrade repro"),
        ('{"schema": 1, "records": [{"id": "x"}]}', "records[0]: damaged record"),
    ],
)
def test_a_bad_file_is_one_line(repro: Callable[..., Result], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    result = repro("records", "import", tmp_path / "r.json")
    assert (result.exit_code, message in result.stderr, result.stderr.count("\n")) == (2, True, 1)


def test_an_altered_value_is_noticed(repro: Callable[..., Result], store: Store, tmp_path: Path) -> None:
    store.put(timed(1.0, 1.1, 1.2))
    assert repro("records", "export", tmp_path / "r.json").exit_code == 0
    (tmp_path / "r.json").write_text((tmp_path / "r.json").read_text().replace('"value": 1.1', '"value": 0.9'))
    result = repro("records", "import", tmp_path / "r.json", "--store", tmp_path / "new")
    assert result.exit_code == 2
    assert "its content does not hash to its id" in result.stderr


def test_nothing_to_export_is_said(repro: Callable[..., Result], tmp_path: Path) -> None:
    result = repro("records", "export", tmp_path / "r.json")
    assert (result.exit_code, "no such record" in result.stderr) == (2, True)
