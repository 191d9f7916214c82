"""The commands as a user meets them: what they print, write and return."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from repro.results.store import Store
from repro.spec.project import Project
from tests.conftest import TABLE, counted, environment


@pytest.fixture
def measured(second_paper, own_store):
    """The second paper with all of its counts in the store."""
    store = Store(own_store)
    table = Project(root=second_paper).table(1)
    for row, params, macs in ((table.rows[0], 312, 55_000), (table.rows[1], 700, 200_000)):
        store.put(counted(row.variant, "params", params, (16, 16)))
        store.put(counted(row.variant, "gmacs", macs, (16, 16)))
    return second_paper


def one_line(result):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("repro: ")
    assert "Traceback" not in result.output
    return lines[0]


def test_table_prints_and_writes(repro, measured):
    result = repro("table", "1", "--project", measured, "--no-measure")
    assert result.exit_code == 0
    assert "A second paper's only table" in result.stdout
    assert Path("out/table_01.tex").read_text().count(r"\toprule") == 1
    assert "| Line-8 |" in Path("out/table_01.md").read_text()


def test_json_is_alone_on_stdout_and_keeps_the_contract(repro, measured):
    result = repro("table", "1", "--project", measured, "--no-measure", "--format", "json")
    data = json.loads(result.stdout)
    assert list(data) == ["schema", "table", "title", "columns", "rows", "summary"]
    assert data["columns"][0] == {"metric": "params", "unit": "K", "decimals": 2, "better": "lower"}
    cell = data["rows"][0]["cells"]["params"]
    assert {name: cell[name] for name in ("reported", "measured", "difference", "status", "reason")} == {
        "reported": "0.31",
        "measured": 0.312,
        "difference": 0.002,
        "status": "match",
        "reason": None,
    }
    assert cell["protocol"] == {"input_size": 16, "form": "folded"}
    assert len(cell["record"]) == 16
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("markdown", "table_01.md", "| Line-8 |"),
        ("latex", "table_01.tex", r"\bottomrule"),
        ("latex-measured", "table_01_measured.tex", r"\bottomrule"),
        ("html", "table_01.html", "</table>"),
        ("csv", "table_01.csv", "Line-8,line_8,params,K,0.31,0.312,0.002,match"),
    ],
)
def test_one_format_is_printed_and_written(repro, measured, name, file, text):
    result = repro("table", "1", "--project", measured, "--no-measure", "--format", name, "--output", "elsewhere")
    assert text in result.stdout
    assert Path("elsewhere", file).read_text() == result.stdout


def test_selection_reaches_every_part(repro, measured):
    result = repro(
        *("table", "1", "--project", measured, "--no-measure", "--format", "json"),
        *("--only", "Line-8", "--metrics", "params"),
    )
    data = json.loads(result.stdout)
    assert [row["model"] for row in data["rows"]] == ["Line-8"]
    assert list(data["rows"][0]["cells"]) == ["params"]


def test_verify_says_what_is_off(repro, measured):
    result = repro("verify", "--project", measured, "--no-measure", "--tolerance", "0.05")
    assert result.exit_code == 1
    assert "Line-16" in result.stdout
    assert "3 of 4 compared cells hold" in result.stdout
    assert repro("verify", "--project", measured, "--no-measure", "--tolerance", "0.1").exit_code == 0
    assert repro("verify", "--project", measured, "--no-measure", "--only", "Elsewhere").exit_code == 3


def test_verify_formats(repro, measured):
    def out(name):
        return repro("verify", "--project", measured, "--no-measure", "--format", name).stdout

    data = json.loads(out("json"))
    assert data["exit_code"] == 1
    assert data["summary"]["outside"] == 1
    assert data["off"][0]["model"] == "Line-16"
    suites = Xml.fromstring(out("junit").encode())
    assert suites.get("tests") == "12"
    assert suites.get("failures") == "1"
    assert [case.get("name") for case in suites.iter("testcase") if case.find("failure") is not None] == [
        "Line-16 params"
    ]
    assert out("github").startswith("::error file=")
    assert "| 1 | Line-16 | params |" in out("markdown")


def test_explain_puts_conventions_side_by_side(repro, measured):
    result = repro("explain", "1", "Line-8", "gmacs", "--project", measured, "--no-measure")
    assert result.exit_code == 0
    for part in (
        "line 3",
        "folded/macs",
        "as_trained/fvcore",
        "Reproduce the printed 0.055",
        "they agree",
        "--refresh",
    ):
        assert part in result.stdout


def test_tables_doctor_and_validate(repro, measured):
    assert "params, gmacs, latency, top1" in repro("tables", "--project", measured).stdout
    doctor = repro("doctor", "--project", measured).stdout
    assert "Core ML latency" in doctor
    assert "REPRO_APPLE_TEAM" in doctor
    assert repro("validate", "--project", measured).stdout == "1 table spec without a mistake\n"
    assert repro("validate").stdout == "10 table specs without a mistake\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("table", "99"), "no table 99"),
        (("table", "x"), "x"),
        (("table", "1", "--only", "Line8"), "did you mean Line-8"),
        (("table", "1", "--metrics", "parms"), "did you mean params"),
        (("table", "1", "--metrics", ","), "no metric"),
        (("table", "1", "--format", "latx"), "did you mean latex"),
        (("table", "1", "--tolerance", "lots"), "not a number"),
        (("verify", "--tolerance", "-1"), "at least 0"),
        (("verify", "7"), "no table 7"),
        (("explain", "1", "Line-9", "params"), "did you mean Line-"),
        (("explain", "1", "Line-8", "epochs"), "no column 'epochs'"),
        (("table", "1", "--no-measure", "--refresh"), "exclude"),
        (("table", "1", "--jobs", "0"), "--jobs"),
        (("tabel", "1"), "tabel"),
        (("validate", "nowhere.yaml"), "cannot be read"),
        (("table", "1", "--project", "nowhere"), "nowhere"),
    ],
)
def test_bad_usage_is_one_line(repro, measured, arguments, says):
    project = () if "--project" in arguments or arguments[0] in ("tabel",) else ("--project", measured)
    assert says in one_line(repro(*arguments, *project))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("cells:", "cels:", "did you mean cells"),
        ("    line: 3\n", "    line: 3\n    line: 4\n", "duplicate key 'line'"),
        ("batch_size: 1", "batch_size: one", "whole number"),
        ("variant: line_8", "variant: line_9", "did you mean line_8"),
        ("metric: params", "metric: parms", "did you mean params"),
    ],
)
def test_a_bad_spec_is_told_with_file_and_line(repro, measured, old, new, says):
    path = measured / "tables" / "table_01.yaml"
    path.write_text(TABLE.replace(old, new, 1))
    result = repro("table", "1", "--project", measured)
    assert result.exit_code == 2
    assert says in result.stderr
    for line in result.stderr.strip().splitlines():
        assert line.startswith(f"repro: {path}:")


def test_an_output_that_cannot_be_written(repro, measured):
    Path("out").write_text("in the way")
    assert "out" in one_line(repro("table", "1", "--project", measured, "--no-measure"))


@pytest.mark.parametrize("text", ["<% for %>", "<< nothing >>", "<< table.rows[99].model >>"])
def test_a_broken_template(repro, measured, text):
    (measured / "templates").mkdir()
    (measured / "templates" / "table.tex").write_text("one\n" + text)
    line = one_line(repro("table", "1", "--project", measured, "--no-measure"))
    assert "table.tex:2: broken template" in line


def test_a_newer_record_is_refused_and_a_damaged_one_named(repro, measured, own_store):
    paths = sorted(own_store.rglob("*params*.json"))
    data = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps({**data, "schema": 99}))
    assert "schema 99" in one_line(repro("table", "1", "--project", measured, "--no-measure"))
    paths[0].write_text("{")
    assert str(paths[0]) in one_line(repro("table", "1", "--project", measured, "--no-measure"))


def child(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "repro", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


@pytest.mark.slow
def test_a_second_paper_is_measured_from_start_to_end(second_paper, tmp_path):
    done = child("table", "1", "--project", second_paper, "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = {row["model"]: row["cells"] for row in json.loads(done.stdout)["rows"]}
    # 3x3 convolution of 3 channels to 8 with the norm folded to a bias, a linear layer of 8 to 10.
    assert cells["Line-8"]["params"]["measured"] == (3 * 9 * 8 + 8 + 8 * 10 + 10) / 1000
    assert cells["Line-8"]["gmacs"]["measured"] == (16 * 16 * 3 * 9 * 8 + 80) / 1e6
    assert cells["Line-8"]["params"]["status"] == "match"
    assert cells["Line-16"]["gmacs"]["difference"] == pytest.approx((16 * 16 * 3 * 9 * 16 + 160) / 1e6 - 0.2)
    again = child("verify", "--project", second_paper, "--tolerance", "0.2", cwd=tmp_path)
    assert again.returncode == 0, again.stdout
    assert "measured (" not in again.stderr


BAD = """
schema: 1
table: 1
title: Three that fail and two that do not
source: {paper: Second, document: its appendix}
protocol: {input_size: 16}
columns: [{metric: params, unit: K, decimals: 2}]
variants:
  before: {builder: python, model: "second_models:line"}
  raises: {builder: python, model: "second_models:raises"}
  hangs: {builder: python, model: "second_models:hangs"}
  eats: {builder: python, model: "second_models:eats"}
  dies: {builder: python, model: "second_models:dies"}
  missing: {builder: timm, model: no_such_model}
  after: {builder: python, model: "second_models:line", arguments: {width: 16}}
rows:
"""


@pytest.fixture
def bad_paper(second_paper):
    names = ("before", "raises", "hangs", "eats", "dies", "missing", "after")
    rows = "".join(f'  - {{model: {name}, line: 1, variant: {name}, cells: {{params: "0.31"}}}}\n' for name in names)
    (second_paper / "tables" / "table_01.yaml").write_text(BAD + rows)
    return second_paper


@pytest.mark.slow
def test_models_that_fail_do_not_take_the_others_down(bad_paper, tmp_path):
    done = child(
        *("table", "1", "--project", bad_paper, "--format", "json", "--timeout", "20", "--memory", "2", "--jobs", "2"),
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    cells = {row["model"]: row["cells"]["params"] for row in json.loads(done.stdout)["rows"]}
    assert {name: (cell["status"], cell["reason"]) for name, cell in cells.items()} == {
        "before": ("match", None),
        "raises": ("failed", "raised"),
        "hangs": ("failed", "timed_out"),
        "eats": ("failed", "out_of_memory"),
        "dies": ("failed", "crashed"),
        "missing": ("failed", "refused"),
        "after": ("outside", None),
    }
    assert cells["raises"]["message"] == "RuntimeError: this variant is broken"
    assert "20 s" in cells["hangs"]["message"]
    assert "2 GiB" in cells["eats"]["message"]
    assert "SIGKILL" in cells["dies"]["message"]
    assert "no_such_model" in cells["missing"]["message"]


@pytest.mark.slow
def test_a_killed_run_keeps_what_was_finished(second_paper, own_store, tmp_path):
    widths = range(1, 9)
    variants = "".join(
        f'  line_{width}: {{builder: python, model: "second_models:line", arguments: {{width: {width}}}}}\n'
        for width in widths
    )
    rows = "".join(
        f'  - {{model: Line-{width}, line: 1, variant: line_{width}, cells: {{params: "0.31"}}}}\n' for width in widths
    )
    spec = BAD[: BAD.index("variants:")] + "variants:\n" + variants + "rows:\n" + rows
    (second_paper / "tables" / "table_01.yaml").write_text(spec)
    command = [sys.executable, "-m", "repro", "table", "1", "--project", str(second_paper), "--jobs", "1"]
    running = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()
    )
    assert running.stderr is not None
    line = running.stderr.readline()
    assert "measured" in line
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stderr.close()
    finished = len(list(own_store.rglob("params-*.json")))
    assert 1 <= finished < len(widths)
    done = child("table", "1", "--project", second_paper, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count(": measured (") == len(widths) - finished
    assert "damaged" not in done.stderr
    assert len(list(own_store.rglob("params-*.json"))) == len(widths)
    assert list(own_store.rglob("*.tmp")) == []


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(bad_paper, tmp_path):
    command = [sys.executable, "-m", "repro", "table", "1", "--project", str(bad_paper), "--only", "hangs"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    import psutil

    deadline = time.monotonic() + 120
    children: list[psutil.Process] = []
    while not children and time.monotonic() < deadline:
        children = [
            process for process in psutil.Process(running.pid).children(recursive=True) if process.num_threads() > 1
        ]
        time.sleep(0.2)
    time.sleep(5)
    running.kill()
    running.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert children
    assert alive == []


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(bad_paper, own_store, tmp_path):
    command = [sys.executable, "-m", "repro", "table", "1", "--project", str(bad_paper), "--jobs", "1"]
    command += ["--only", "before", "--only", "hangs"]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # a shell that starts the tests in the background makes them, and their children, ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stderr is not None
    assert "before" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    _, rest = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert len(list(own_store.rglob("params-*.json"))) == 1
