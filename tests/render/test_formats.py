"""What the formats show. Gold files are renewed with ``REPRO_RENEW_GOLD=1 pytest tests/render``; read the diff."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.compare.cells import compare
from repro.compare.records import Records
from repro.render.engine import latex, markdown, render
from repro.render.formats import FORMATS, as_frame
from repro.render.terminal import WIDTH
from repro.results.store import Store
from repro.spec.project import Project
from tests.conftest import TABLE, counted

GOLD = Path(__file__).parent / "gold"
NUMBERS = sorted(Project().paths)
FOLDERS = Project().template_folders


@pytest.fixture
def result(second_paper, store):
    """A table in which every status occurs."""
    text = TABLE.replace("title: A second paper's only table", 'title: "Second & <only> table_1 100% | {#1} ~^\\\\"')
    text = text.replace("model: Line-16", 'model: "Line_16 & <b>$x$</b> | ^~\\\\{}"')
    text = text.replace("model: Elsewhere", 'model: "–× Ünïcode 漢"\n    marks: [dagger]\n    group: 2')
    text = text.replace("variants:", "marks: {dagger: Printed with a dagger & so on.}\nvariants:", 1)
    (second_paper / "tables" / "table_01.yaml").write_text(text)
    table = Project(root=second_paper).table(1)
    store.put(counted(table.rows[0].variant, "params", 312, (16, 16)))
    store.put(counted(table.rows[0].variant, "gmacs", 57_000, (16, 16)))
    store.put(counted(table.rows[1].variant, "params", 700, (16, 16)))
    return compare(table, Records(store))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("json", "csv")])
def test_gold(result, name):
    text = FORMATS[name].make(result, FOLDERS)
    path = GOLD / f"table_01{FORMATS[name].suffix}"
    if os.environ.get("REPRO_RENEW_GOLD"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_table_in_every_format(number, name, store):
    table = Project().table(number)
    text = FORMATS[name].make(compare(table, Records(store)), FOLDERS)
    assert text.endswith("\n")
    for row in table.rows:
        escape = {"latex": latex, "latex-measured": latex, "markdown": markdown, "html": lambda t: t}.get(name, str)
        if name != "terminal":
            assert escape(row.model) in text


@pytest.mark.parametrize("number", NUMBERS)
def test_the_terminal_fits_a_hundred_columns(number, store):
    table = Project().table(number)
    for row in table.rows:
        if row.variant is not None:
            size = table.protocol_of(row, "gmacs").get("input_size", 224)
            store.put(counted(row.variant, "params", 123_456_789, (size, size)))
            store.put(counted(row.variant, "gmacs", 12_345_678_901, (size, size)))
    text = click.unstyle(FORMATS["terminal"].make(compare(table, Records(Store(store.folder))), FOLDERS))
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_status_is_a_sign_and_not_only_a_colour(result):
    text = click.unstyle(FORMATS["terminal"].make(result, FOLDERS))
    assert "0.312 ✓" in text
    assert "0.0570 ✗" in text
    assert "n.m. ·" in text


def test_nothing_unmeasured_is_blank_or_zero(result):
    for line in as_frame(result).to_dict("records"):
        if line["status"] == "not_measured":
            assert line["measured"] is None or line["measured"] != line["measured"]
            assert line["reason"]


def test_hostile_text_stays_text(result):
    html = FORMATS["html"].make(result, FOLDERS)
    assert "<b>$x$" not in html
    assert "&lt;b&gt;$x$" in html
    table = FORMATS["markdown"].make(result, FOLDERS)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    unescaped = {line.replace(r"\|", "").count("|") for line in lines}
    assert len(unescaped) == 1


@given(st.text())
def test_escaped_markdown_never_leaves_its_cell(text):
    escaped = markdown(text)
    assert "\n" not in escaped
    assert "|" not in escaped.replace(r"\|", "")
    assert "<" not in escaped


@given(st.text())
def test_escaped_latex_is_ascii_safe(text):
    escaped = latex(text)
    assert "%" not in escaped.replace(r"\%", "")
    assert "&" not in escaped.replace(r"\&", "")


def test_a_projects_own_template_wins(result, tmp_path):
    (tmp_path / "table.md").write_text("mine {{ table.number }}\n")
    assert render("table.md", [tmp_path, *FOLDERS], table=result.table) == "mine 1\n"


def compiled(folder: Path, names: list[str]) -> str:
    inputs = "\n\\clearpage\n".join(f"\\input{{{name}}}" for name in names)
    (folder / "all.tex").write_text(
        "\\documentclass{article}\n\\usepackage[margin=1.5cm]{geometry}\n\\usepackage[T1]{fontenc}\n"
        f"\\usepackage{{booktabs}}\n\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "all.pdf").stat().st_size > 1000
    return done.stdout


@pytest.mark.latex
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", ["latex", "latex-measured"])
def test_all_tables_compile_and_fit_the_page(name, store, tmp_path):
    files = []
    for number in NUMBERS:
        file = f"table_{number:02d}{FORMATS[name].suffix}"
        records = Records(store, manifest=Project().manifest)  # with it, columns of what others published
        (tmp_path / file).write_text(FORMATS[name].make(compare(Project().table(number), records), FOLDERS))
        files.append(file)
    assert "Overfull \\hbox" not in compiled(tmp_path, files)


@pytest.mark.latex
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_hostile_text_compiles(result, tmp_path):
    (tmp_path / "t.tex").write_text(FORMATS["latex"].make(result, FOLDERS))
    compiled(tmp_path, ["t.tex"])
