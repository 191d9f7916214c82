"""Accuracies that others published stand beside the paper's, under their source, and are never compared."""

from __future__ import annotations

import json

import pytest

MANIFEST = """\
schema: 1
family: Line
checkpoints:
- id: line_8.other
  variant: line_8
  source: {url: "https://example.org/other.pth"}
  preprocessing: {input_size: 16, crop_pct: 1, interpolation: bilinear}
  official: {top1: "71.5", where: README}
  others:
  - {source: timm-results, top1: "71.482", protocol: "16 px, crop 1.0", where: "results.csv"}
  paper_row: different_recipe
  reason: another schedule
- id: line_8.own
  variant: line_8
  source: {url: "https://example.org/own.pth"}
  preprocessing: {input_size: 16, crop_pct: 1, interpolation: bilinear}
  official: {top1: "70.0", where: README}
  paper_row: same
"""


@pytest.fixture
def told(second_paper, repro):
    (second_paper / "checkpoints_manifest").mkdir()
    (second_paper / "checkpoints_manifest" / "line.yaml").write_text(MANIFEST)

    def run(*options):
        return repro("table", "1", "--project", second_paper, "--no-measure", *options)

    return run


def test_each_source_has_a_column_and_the_rows_own_weights_come_first(told):
    data = json.loads(told("--format", "json").stdout)
    official, timm = data["published"]
    assert (official["source"], timm["source"]) == ("official", "timm-results")
    assert {model: (item["text"], item["same"]) for model, item in official["values"].items()} == {
        "Line-8": ("70.0", True)
    }
    assert timm["values"]["Line-8"] == {
        "text": "71.482",
        "checkpoint": "line_8.other",
        "same": False,
        "where": "results.csv",
        "protocol": "16 px, crop 1.0",
    }
    cell = data["rows"][0]["cells"]["top1"]
    assert (cell["measured"], cell["status"]) == (None, "not_measured")


def test_other_weights_are_marked(told):
    text = told().output
    assert "71.482 ≠" in text
    assert "≠ of other weights than the row's." in " ".join(text.split())
    assert "70.0 ≠" not in text


def test_other_metrics_have_no_such_columns(told):
    assert "published" not in json.loads(told("--format", "json", "--metrics", "params").stdout)


def test_a_terminal_without_room_says_where_they_are(told, second_paper):
    table = second_paper / "tables" / "table_01.yaml"
    table.write_text(table.read_text().replace("model: Line-8", f"model: Line-{'8' * 60}"))
    done = told("--format", "terminal,markdown")
    assert "no room here" in done.output
    assert "71.482" not in done.output.split("wrote")[0]
    assert "71.482 ≠" in (table.parents[2] / "work" / "out" / "table_01.md").read_text()
