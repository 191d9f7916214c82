"""Plots: which points, which front, files that repeat, and drawings on the site that answer."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as Xml

import pytest

from repro.compare.cells import compare
from repro.compare.latency import Beside
from repro.compare.records import Records
from repro.compare.tolerance import parse_tolerance
from repro.render.figures import Point, figures, only_table, pareto
from repro.results.store import Store
from repro.spec.project import Project
from repro.spec.tables import Row

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra 'plots')")
ROW = Row(model="A", group=1, cells={})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    project = Project()
    records = Records(Store(tmp_path_factory.mktemp("store")), Store(project.folder("results")), project.manifest)
    tables = [compare(spec, records, tolerance=parse_tolerance("0.1")) for spec in project.tables()]
    return {figure.name: figure for figure in figures(tables)}


def point(x: float, y: float) -> Point:
    return Point(x=x, y=y, model=f"{x}-{y}", table=1, row=ROW, text="")


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 70), (2, 80), (3, 75)], [(1, 70), (2, 80)]),
        ([(1, 70), (1, 72), (2, 72)], [(1, 72)]),  # as good at a higher cost is beaten, and so is worse at the same
        ([(2, 80), (1, 81)], [(1, 81)]),
        ([], []),
    ],
)
def test_the_front(points, front):
    assert [(item.x, item.y) for item in pareto([point(*pair) for pair in points])] == front


def test_table_18_has_its_papers_figure(drawn):
    figure = drawn["table-18-top1-latency"]
    (reported,) = figure.series  # nothing is measured, and nothing stands in for it
    assert reported.name == "reported"
    table = Project().table(18)
    numbers = [row for row in table.rows if (row.reported("latency").text or "").replace(".", "").isdigit()]
    assert len(reported.points) == len(numbers)
    found = {item.model: (item.x, item.y) for item in reported.points}
    assert found["iFormer-M"] == (1.10, 80.4)
    assert "iFormer-M" in {item.model for item in reported.front}


def test_reported_against_measured_are_in_one_unit(drawn):
    for metric in ("params", "gmacs"):
        points = [item for series in drawn[f"reported-measured-{metric}"].series for item in series.points]
        assert len(points) > 60
        close = [item for item in points if 0.3 < item.y / item.x < 3]
        assert len(close) >= len(points) - 1  # one row prints millions in a column of GMACs


def test_the_deviation_names_its_metrics(drawn):
    figure = drawn["deviation"]
    assert figure.categories[:2] == ("Params", "GMACs")
    match = next(series for series in figure.series if series.name == "match")
    assert max(abs(item.y) for item in match.points) < 10


def test_one_tables_points(drawn):
    chosen = only_table(list(drawn.values()), 13)
    assert {item.table for figure in chosen for series in figure.series for item in series.points} == {13}


def test_an_estimate_is_drawn_against_what_is_printed(tmp_path):
    project = Project()
    result = compare(project.table(18), Records(Store(tmp_path)))
    values = {row.row.model: 1.5 for row in result.rows[:20]}
    beside = Beside(key="estimate", header="estimate", kind="estimate", values=values, records={}, notes=("So good.",))
    (figure,) = [item for item in figures([replace(result, beside=(beside,))]) if "estimate" in item.name]
    assert figure.diagonal
    assert "no measurement" in figure.text
    assert "So good." in figure.text
    (series,) = figure.series
    printed = {item.model: item.x for item in series.points}
    assert printed["iFormer-T"] == 0.60
    assert {item.y for item in series.points} == {1.5}
    assert "EMO-5M" not in printed  # the paper prints Failed


@pytest.mark.parametrize(("kind", "head"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_files_repeat_byte_for_byte(repro, tmp_path, kind, head):
    for name in ("a", "b"):
        done = repro("plot", "deviation", "--format", kind, "--output", tmp_path / name, "--tolerance", "0.1")
        assert done.exit_code == 0
    first, second = [(tmp_path / name / f"plot_deviation.{kind}").read_bytes() for name in ("a", "b")]
    assert first.startswith(head)
    assert first == second


def test_an_unknown_plot_is_one_line(repro):
    done = repro("plot", "deviatoin")
    assert done.exit_code == 2
    assert "did you mean deviation?" in done.stderr


def test_a_drawing_for_the_site_keeps_its_names_to_itself(drawn):
    from repro.render.plots import inline

    for name, figure in drawn.items():
        root = Xml.fromstring(inline(figure, lambda item: "model_x.html"))
        names = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(names) == len(set(names))
        assert all(item.startswith(f"{name}-") for item in names)
        assert not [element for element in root.iter() if element.tag.endswith("style")]
        links = [element for element in root.iter() if element.get("data-tip")]
        assert len(links) == sum(len(series.points) for series in figure.series)


@pytest.mark.browser
def test_a_point_answers_pointer_and_keyboard(open_page, site):
    page = open_page(site / "plots.html")
    found = page.locator("#plot-table-18-top1-latency a[data-tip^='iFormer-M']").first
    found.scroll_into_view_if_needed()
    found.hover()
    assert page.locator(".tip").inner_text() == "iFormer-M\nLatency 1.1 ms, Top-1 80.4 %\nreported"
    page.mouse.move(0, 0)
    assert not page.locator(".tip").is_visible()
    found.focus()
    assert page.locator(".tip").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_url("**/model_iformer_m.html")
    assert page.locator("h1").inner_text() == "iFormer-M"
