"""``repro check-tables``: what records have made stale in a paper."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from repro.results.store import Store
from repro.spec.latex import plain, sources, tabulars
from repro.spec.project import Project
from tests.conftest import counted

TYPED = r"""
\begin{tabular}{lrr}
\toprule
Model & \textbf{Params} (K) & MMACs \\ \midrule
\textbf{Line-8}~\cite{a} & %s & 0.055 \\
Someone else & 1 & 2 \\
\end{tabular}
"""


@pytest.fixture
def paper(repro, second_paper, store):
    """A paper that takes one table in; the records behind it, and the paper's folder as the working folder."""
    table = Project(root=second_paper).table(1)
    store.put(counted(table.rows[0].variant, "params", 312, (16, 16)))
    store.put(counted(table.rows[0].variant, "gmacs", 55_000, (16, 16)))

    def write(body: str = "", *arguments: str) -> Path:
        done = repro("table", "1", "--project", second_paper, "--no-measure", "--format", "latex", "--output", ".",
                     *arguments)  # fmt: skip
        assert done.exit_code == 0
        Path("main.tex").write_text("\\documentclass{article}\n\\input{table_01}\n" + body)
        return Path("main.tex")

    write.check = lambda *arguments: repro("check-tables", "main.tex", "--project", second_paper, *arguments)
    write.variant = table.rows[0].variant
    return write


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--only", "Line-8"),
        ("--metrics", "gmacs"),
        ("--tolerance", "5%"),
        ("--only", "Line-*", "--metrics", "params"),
    ],
)
def test_a_table_made_in_any_way_is_current_until_a_record_moves(paper, store, arguments):
    paper("", *arguments)
    done = paper.check()
    assert done.exit_code == 0, done.output
    assert "1 tables taken in, 0 stale" in done.output
    before = Path("table_01.tex").read_text()
    shutil.rmtree(store.folder)
    again = Store(store.folder)
    again.put(counted(paper.variant, "params", 400, (16, 16)))
    again.put(counted(paper.variant, "gmacs", 60_000, (16, 16)))
    done = paper.check()
    assert done.exit_code == 1
    assert "main.tex:2: table_01.tex is stale" in done.output
    assert Path("table_01.tex").read_text() == before
    assert paper.check("--fix").exit_code == 0
    assert Path("table_01.tex").read_text() != before
    assert paper.check().exit_code == 0


@pytest.mark.parametrize(("typed", "agrees"), [("0.31", True), ("0.312", True), ("0.3", True), ("0.32", False)])
def test_a_typed_number_is_held_to_the_record_at_its_own_decimals(paper, typed, agrees):
    paper(TYPED % typed)
    done = paper.check()
    assert done.exit_code == int(not agrees)
    if not agrees:
        assert "main.tex:7: Line-8, Params: typed 0.32, the record says 0.312; Table 1" in done.output


def test_a_fix_leaves_typed_numbers(paper):
    paper(TYPED % "0.99")
    assert paper.check("--fix").exit_code == 1
    assert "0.99" in Path("main.tex").read_text()


def test_what_is_not_measured_disagrees_with_nothing(paper):
    paper("\\begin{tabular}{lr}\nModel & Latency \\\\\nLine-8 & 9.99 \\\\\n\\end{tabular}\n")
    assert paper.check().exit_code == 0


def test_all_files_that_are_missing_are_told_at_once(paper):
    paper("\\input{one}\n% \\input{commented}\n\\include{two}\n")
    done = paper.check()
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "repro: main.tex:3: \\input{one}: there is no such file",
        "repro: main.tex:5: \\input{two}: there is no such file",
    ]


def test_a_damaged_stamp_is_one_line(paper):
    paper()
    path = Path("table_01.tex")
    path.write_text(path.read_text().replace('"format": "latex"', '"format": "word"'))
    done = paper.check()
    assert done.exit_code == 2
    assert "table_01.tex:2: its line '% repro: {...}' is damaged" in done.stderr


def test_a_paper_without_tables_is_not_called_current(paper, tmp_path):
    paper()
    Path("main.tex").write_text("\\documentclass{article}\n")
    assert paper.check().exit_code == 3


def test_inputs_are_followed_once(tmp_path):
    (tmp_path / "a.tex").write_text("\\input{b}\\input{sub/c}")
    (tmp_path / "b.tex").write_text("\\input{a}\\input{b}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.tex").write_text("\\begin{tabular}{l}x & \\multicolumn{2}{c}{y} \\\\\n z\\end{tabular}")
    import re

    own, made = sources(tmp_path / "a.tex", re.compile("never there"))
    assert [source.path.name for source in own] == ["a.tex", "b.tex", "c.tex"]
    assert made == []
    (tabular,) = tabulars(own[2])
    assert [[(cell.text, cell.line, cell.span) for cell in row] for row in tabular.rows] == [
        [("x", 1, 1), ("y", 1, 2)],
        [("z", 2, 1)],
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [(r"\textbf{\underline{80.4}}", "80.4"), (r"iFormer-L$_2$~\cite{a,b}", "iFormer-L _2"), (r"5\%", "5%")],
)
def test_markup_goes_and_words_stay(text, words):
    assert plain(text) == words
