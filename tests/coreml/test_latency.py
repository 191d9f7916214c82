"""From a table to its latency column: through a backend behind the seam, alone, with everything on record."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import repro
from repro.coreml.latency import Placed, fallen, placement_summary
from repro.exclusive import BusyError, alone, beside_others
from repro.results.latency import Latency, UnbelievableError
from repro.results.record import Record, Subject, parse
from tests.conftest import MODELS, TABLE

ROOT = Path(repro.__file__).parent.parent
TIMED = TABLE.replace(
    "counting: macs}", "counting: macs,\n  latency: {precision: float16, device: iPhone 13, compute_units: all}}"
)
HANGING = """
  hangs_here: {builder: python, model: "second_models:line", arguments: {width: 4}}
rows:
  - {model: Hangs, line: 6, variant: hangs_here, cells: {latency: Failed}}
"""
FAKE = "tests.coreml.fake_phone"
QUICK = ("--warmup", 2, "--rounds", 2, "--iterations", 20, "--pause", 0, "--limit", 8)


def invoke(*arguments: Any) -> Result:
    from repro.cli import main

    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@dataclasses.dataclass
class Measured:
    paper: Path
    store: Path
    packages: Path
    result: Result
    report: dict[str, Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """``repro latency 1`` on a phone: one network that is fine, one off the Neural Engine, one that hangs."""
    paper = tmp_path_factory.mktemp("paper")
    (paper / "tables").mkdir()
    (paper / "tables" / "table_01.yaml").write_text(TIMED.replace("\nrows:\n", HANGING))
    (paper / "second_models.py").write_text(textwrap.dedent(MODELS))
    store, packages = tmp_path_factory.mktemp("records"), tmp_path_factory.mktemp("packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("REPRO_PACKAGES", str(packages))
        patch.setenv("REPRO_STORE", str(tmp_path_factory.mktemp("own")))
        common = ["--project", paper, "--store", store, "--jobs", 1]
        result = invoke("latency", 1, "--backend", f"{FAKE}:Phone", *QUICK, "--format", "json", *common)
        invoke("latency", "line_8", "--backend", f"{FAKE}:tablet", *QUICK, *common)
    return Measured(paper, store, packages, result, json.loads(result.stdout))


def latency_of(measured: Measured, variant: str) -> dict[str, Any]:
    return next(item for item in measured.report["latencies"] if item["variant"] == variant)


def table(measured: Measured, *options: Any) -> Result:
    return invoke("table", 1, "--no-measure", "--project", measured.paper, "--store", measured.store, *options)


def test_the_record_says_everything(measured: Measured) -> None:
    item = latency_of(measured, "line_8")
    (path,) = measured.store.glob(f"line_8-*/latency-*-{item['record']}.json")
    record = parse(path.read_text(), str(path))
    details = record.details
    assert record.protocol == {"input_size": 16, "batch_size": 1, "precision": "float16", "form": "folded",
                               "device": "iPhone 13", "compute_units": "all"}  # fmt: skip
    assert (details["os_version"], details["os_build"], details["chip"]) == ("iOS 17.5.1", "21F90", "A15 Bionic")
    assert (details["warmup"], details["rounds"], details["iterations"]) == (2, 2, 20)
    assert [len(part) for part in details["samples"]] == [20, 20]
    assert len(record.samples) == 40
    assert (details["check"], details["thermal_state"]) == ("passed", "nominal; after: nominal")
    assert (details["input_type"], details["input_shape"], len(details["package_hash"])) == (
        "tensor",
        [1, 3, 16, 16],
        64,
    )
    assert record.value == pytest.approx(1.1, abs=0.01)
    assert details["placement"]["operations"]["neural_engine"] > 0


def test_what_fell_off_the_neural_engine_is_loud(measured: Measured) -> None:
    assert latency_of(measured, "line_8")["warnings"] == []
    (off, drift) = latency_of(measured, "line_16")["warnings"]
    assert off.startswith("OFF THE NEURAL ENGINE: 1 of ")
    assert off.endswith("12% of the cost: 1 relu on cpu")
    assert drift.startswith("DRIFT: the last quarter of the first round takes 1.")


def test_a_hang_is_a_failed_latency_and_the_paper_s_failed_is_matched(measured: Measured) -> None:
    assert measured.result.exit_code == 1
    assert latency_of(measured, "hangs_here")["error"] == {
        "reason": "timed_out", "message": "stopped after 8 s (--timeout)"
    }  # fmt: skip
    rows = json.loads(table(measured, "--format", "json").stdout)["rows"]
    cell = next(row["cells"]["latency"] for row in rows if row["model"] == "Hangs")
    assert (cell["status"], cell["reported"], cell["measured"]) == ("match", "Failed", None)


def test_the_table_shows_the_paper_s_device_and_keeps_others_beside(measured: Measured) -> None:
    data = json.loads(table(measured, "--format", "json").stdout)
    cells = {row["model"]: row["cells"]["latency"] for row in data["rows"]}
    assert cells["Line-8"]["measured"] == pytest.approx(1.1, abs=0.01)
    assert (cells["Line-8"]["status"], cells["Line-8"]["protocol"]["device"]) == ("match", "iPhone 13")
    assert (cells["Line-16"]["status"], cells["Line-16"]["reason"]) == ("outside", "reported_as_text")
    (column,) = data["beside"]
    assert (column["key"], list(column["values"])) == ("iPad mini (6th generation)", ["Line-8"])
    assert cells["Line-8"]["record"] != column["values"]["Line-8"]["record"]


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "latex"])
def test_every_format_says_where_a_latency_comes_from(measured: Measured, form: str) -> None:
    text = " ".join(table(measured, "--format", form).stdout.replace("\n", " ").split())
    assert "iPhone 13 (A15 Bionic), iOS 17.5.1 21F90" in text
    assert "iPad" in text
    assert "never compared" in text
    assert "check passed" in text


def test_verify_compares_the_paper_s_device_alone(measured: Measured) -> None:
    where = ["--project", measured.paper, "--store", measured.store]
    result = invoke("verify", 1, "--no-measure", "--metrics", "latency", "--format", "json", *where)
    summary = json.loads(result.stdout)["summary"]
    assert (summary["match"], summary["outside"]) == (2, 1)


def test_what_is_on_record_is_not_timed_again(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("REPRO_PACKAGES", str(measured.packages))
    where = ["--project", measured.paper, "--store", measured.store]
    command = ["latency", "line_8", "--backend", f"{FAKE}:Phone", *QUICK, "--format", "json"]
    (item,) = json.loads(invoke(*command, *where).stdout)["latencies"]
    assert (item["on_record"], item["record"]) == (True, latency_of(measured, "line_8")["record"])


def test_other_options_are_another_measurement(measured: Measured) -> None:
    from repro.compare.latency import record_need
    from repro.spec.tables import Variant

    variant = Variant(id="v", builder="timm", model="mobilenetv2_100")
    asked = {"precision": "float16", "compute_units": "all", "target": "iOS15", "input_type": "tensor"}
    plain = record_need(variant, (224, 224), device="iPhone 13", latency=asked)
    newer = record_need(variant, (224, 224), device="iPhone 13", latency={**asked, "target": "iOS18"})
    assert "target" not in plain.protocol
    assert newer.protocol == {**plain.protocol, "target": "iOS18"}


def latency(**changes: Any) -> Latency:
    fields: dict[str, Any] = {item.name: "unknown" for item in dataclasses.fields(Latency)}
    fields |= {
        "device_model": "iPhone 13", "precision": "float16", "input_type": "tensor", "input_shape": (1, 3, 8, 8),
        "compute_units": "all", "statistic": "median", "date": "2026-01-01", "how": "a test", "package_hash": "0" * 64,
        "warmup": 1, "rounds": 1, "iterations": 2, "samples": ((1.0, 2.0),), "os_version": "iOS 17", "check": "passed",
        "imported": None,
    }  # fmt: skip
    return Latency(**{**fields, **changes})


@pytest.mark.parametrize("name", sorted(item.name for item in dataclasses.fields(Latency)))
def test_no_record_without_any_of_its_fields(name: str) -> None:
    details = latency().details()
    subject = Subject(variant="v", builder="timm", model="v", source="timm 1")
    common: dict[str, Any] = {"subject": subject, "metric": "latency", "protocol": {}, "value": 1.5, "unit": "ms",
                              "versions": {}, "provenance": {}}  # fmt: skip
    assert Record(**common, details=details).value == 1.5
    with pytest.raises(UnbelievableError, match=f"cannot be made without {name}"):
        Record(**common, details={key: value for key, value in details.items() if key != name})


@pytest.mark.parametrize(
    "changes",
    [
        {"device_model": "unknown"},
        {"samples": "unknown"},
        {"samples": ((1.0, float("nan")),)},
        {"samples": ((1.0, -1.0),)},
        {"samples": ((),)},
        {"statistic": "best"},
        {"compute_units": "ane"},
        {"how": ""},
        {"check": "unknown"},
    ],
    ids=str,
)
def test_what_defines_a_latency_must_be_known(changes: dict[str, Any]) -> None:
    with pytest.raises(UnbelievableError):
        latency(**changes)


def test_casts_at_the_edges_are_no_alarm() -> None:
    placed = [
        Placed(name="a", type="cast", device="cpu", supported=("cpu",), cost=0.0),
        Placed(name="b", type="conv", device="neural_engine", supported=("cpu", "neural_engine"), cost=0.9),
        Placed(name="c", type="softmax", device="gpu", supported=("gpu",), cost=0.1),
        Placed(name="d", type="const", device="unknown", supported=(), cost=None),
    ]
    assert fallen(placement_summary(placed[:2]), "all") is None
    loud = "OFF THE NEURAL ENGINE: 1 of 3 operations, 10% of the cost: 1 softmax on gpu"
    assert fallen(placement_summary(placed), "all") == loud
    assert fallen(placement_summary(placed), "cpu_only") is None


def test_nothing_else_runs_beside_a_latency(tmp_path: Path) -> None:
    busy = pytest.raises(BusyError, match="something else of repro runs")
    with beside_others(tmp_path), beside_others(tmp_path), busy, alone(tmp_path):
        pass
    program = "import sys, pathlib, repro.exclusive as e\nwith e.beside_others(pathlib.Path(sys.argv[1])): pass"
    with alone(tmp_path):
        command = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"a latency is being measured (process {os.getpid()})" in done.stderr
    with alone(tmp_path):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["line_8"], "Core ML predicts only on macOS"),
        (["line_8", "--device", "Anna"], "Core ML predicts only on macOS"),
        (["line_8", "--backend", "nowhere:Phone"], "--backend nowhere:Phone: no such module"),
        (["line_8", "--backend", f"{FAKE}:absent"], "measuring on an iPhone needs a connected iPhone"),
        (["x.mlpackage", "--backend", f"{FAKE}:Phone"], "x.mlpackage: one PACKAGE at a time, with --against VARIANT"),
        (["line_8", "--against", "line_8", "--backend", f"{FAKE}:Phone"], "--against VARIANT goes with a PACKAGE"),
        (["nothing", "--backend", f"{FAKE}:Phone"], "no variant 'nothing'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("REPRO_PACKAGES", str(measured.packages))
    result = invoke("latency", *arguments, "--project", measured.paper, "--store", measured.store)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
