"""``repro init``, and the second paper that was begun with it: table, verify and report, with its off cells told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from repro.spec.project import Project

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "mobilenetv4-fastvit"
SMALL = ("--only", "mobilenetv4_conv_small*", "--only", "fastvit_t8")


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv4_conv_small.e2400_r224_in1k", 'a "b": {c}\n# d', "漢"])
def test_a_new_project_is_valid_as_it_stands(repro, tmp_path, name):
    done = repro("init", tmp_path / "new", "--model", name, "--title", 'T "x": [', "--paper", "{P} #1", "--table", "7")
    assert done.exit_code == 0
    table = Project(root=tmp_path / "new").table(7)
    assert (table.title, table.source.paper) == ('T "x": [', "{P} #1")
    (row,) = table.rows
    assert row.model == name
    assert row.variant.model == name
    assert repro("validate", "--project", tmp_path / "new").exit_code == 0
    assert repro("report", "--project", tmp_path / "new", "--output", tmp_path / "site").exit_code == 0


def test_a_project_that_is_there_is_left_alone(repro, second_paper):
    done = repro("init", second_paper)
    assert done.exit_code == 2
    assert "nothing was written" in done.stderr
    assert not (second_paper / "README.md").exists()


@pytest.mark.slow
def test_a_new_project_counts_its_models(repro, tmp_path):
    assert repro("init", tmp_path / "new", "--model", "mobilenetv2_050").exit_code == 0
    done = repro("table", "1", "--project", tmp_path / "new", "--format", "json", "--jobs", "1")
    (row,) = json.loads(done.stdout)["rows"]
    assert row["cells"]["params"]["measured"] > 1
    assert row["cells"]["params"]["status"] == "not_reported"


def test_every_printed_value_of_the_second_paper_has_its_line():
    tables = Project(root=EXAMPLE).tables()
    printed = [cell for table in tables for row in table.rows for cell in row.cells.values() if cell.text is not None]
    assert len(printed) > 90
    assert all(cell.line for cell in printed)
    assert all(re.search(r"at commit [0-9a-f]{12}", table.source.document) for table in tables)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A copy of the second paper, and a store with a few rows measured."""
    from click.testing import CliRunner

    from repro.cli import main

    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(EXAMPLE, folder / "paper", ignore=shutil.ignore_patterns("out", "site", "night"))
    place = ["--project", str(folder / "paper"), "--store", str(folder / "store")]
    done = CliRunner().invoke(main, ["verify", *SMALL, *place, "--jobs", "1", "--format", "json"])
    assert done.exit_code == 0, done.output
    return folder, place, json.loads(done.stdout)


@pytest.mark.slow
def test_the_second_paper_verifies(measured):
    _, _, verdict = measured
    assert verdict["summary"]["match"] == 6
    assert verdict["off"] == []


@pytest.mark.slow
def test_the_second_papers_table_renders(measured, repro):
    _, place, _ = measured
    done = repro("table", "1", "--no-measure", "--format", "latex,markdown,html,json", "--output", "out", *place)
    assert done.exit_code == 0
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 13
    assert rows[0]["cells"]["gmacs"]["status"] == "match"
    assert "mobilenetv4\\_conv\\_small 224" in Path("out/table_01.tex").read_text()


@pytest.mark.slow
def test_the_second_papers_off_cells_are_reported(measured, repro, tmp_path):
    """Counted as papers count, without norms, the source's numbers do not hold: nothing hides that."""
    folder, _, _ = measured
    other = tmp_path / "paper"
    shutil.copytree(folder / "paper", other)
    spec = other / "tables" / "table_01.yaml"
    spec.write_text(spec.read_text().replace("counting: macs+norms", "counting: macs"))
    place = ["--project", other, "--store", folder / "store"]
    done = repro("verify", "--no-measure", "--format", "json", *place)
    assert done.exit_code == 1
    off = {(cell["model"], cell["metric"]) for cell in json.loads(done.stdout)["off"]}
    assert off == {("mobilenetv4_conv_small 256", "gmacs")}
    assert repro("report", "--output", tmp_path / "site", *place).exit_code == 0
    page = (tmp_path / "site" / "table_01.html").read_text()
    assert "1 outside" in page
    assert "Reproduce the printed 0.25: as_trained/macs+norms" in page
    missing = (tmp_path / "site" / "missing.html").read_text()
    assert "needs_dataset" in missing


def test_the_readmes_ten_lines_are_a_table(tmp_path, repro):
    text = (ROOT / "README.md").read_text()
    (lines,) = re.findall(r"```yaml\n(schema: 1\n.*?)```", text, re.S)
    assert len(lines.splitlines()) == 10
    (tmp_path / "mine" / "tables").mkdir(parents=True)
    (tmp_path / "mine" / "tables" / "table_01.yaml").write_text(lines)
    assert repro("validate", "--project", tmp_path / "mine").exit_code == 0
