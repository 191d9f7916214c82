"""The site as files: what it holds, what it escapes, and that it replaces only itself."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest

from repro.render.site import page_names
from repro.spec.project import Project
from repro.spec.tables import Row, Variant
from tests.report.conftest import HOSTILE, hostile_project

NUMBERS = sorted(Project().paths)


class Links(html.parser.HTMLParser):
    """The links, ids and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        given = dict(attrs)
        self.links += [given[name] for name in ("href", "src") if given.get(name)]
        self.ids += [given["id"]] if "id" in given else []


def test_every_link_leads_somewhere(site):
    pages = {path.name: Links(path.read_text()) for path in site.glob("*.html")}
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), name
        for link in page.links:
            if link.startswith("data:"):
                continue
            assert not re.match(r"[a-z]+:|//", link), f"{name} leads out: {link}"
            file, _, fragment = link.partition("#")
            assert not file or (site / file).is_file(), f"{name}: {link}"
            if fragment and fragment != "main":
                assert fragment in pages[file or name].ids, f"{name}: {link}"


@pytest.mark.parametrize("number", NUMBERS)
def test_every_table_has_a_page_and_its_downloads(site, number):
    page = (site / f"table_{number:02d}.html").read_text()
    for row in Project().table(number).rows:
        assert row.model.replace("&", "&amp;").replace("+", "+") in page
    data = json.loads((site / "downloads" / f"table_{number:02d}.json").read_text())
    assert data["table"] == number
    for suffix in (".tex", "_measured.tex", ".md", ".csv"):
        assert (site / "downloads" / f"table_{number:02d}{suffix}").stat().st_size > 0


def test_the_front_page_counts_as_verify_does(site):
    front = (site / "index.html").read_text()
    summary = json.loads((site / "downloads" / "verify.json").read_text())["summary"]
    for status, count in summary.items():
        assert re.search(rf"{status.replace('_', ' ')}</span> {count}<br>", front), status


def test_what_was_not_measured_is_said_with_its_reason(site):
    page = (site / "missing.html").read_text()
    reasons = json.loads((site / "downloads" / "verify.json").read_text())["not_measured"]
    assert reasons
    for reason in reasons:
        assert f"<h2>{reason}</h2>" in page


def test_two_sites_of_the_same_records_are_equal(site, tmp_path, repro):
    assert repro("report", "--output", tmp_path / "again", "--tolerance", "0.1").exit_code == 0
    for path in sorted(site.rglob("*.*")):
        if path.is_file() and path.name != "missing.html":  # that one names this machine and its store
            assert (tmp_path / "again" / path.relative_to(site)).read_bytes() == path.read_bytes(), path.name


def test_table_18_is_under_one_and_a_half_megabytes(site):
    assert (site / "table_18.html").stat().st_size < 1_500_000


def test_hostile_text_is_text_on_every_page(hostile_site):
    for path in hostile_site.glob("*.html"):
        text = path.read_text()
        page = Links(text)
        assert "img" not in page.tags, path.name
        assert "onerror" not in page.attributes, path.name
        assert "49" not in text.replace("7*7", ""), path.name
        assert text.count("</template>") == text.count("<template"), path.name
    for path in hostile_site.glob("downloads/*.tex"):
        text = path.read_text()
        assert "\\input{" not in text
        assert "label " not in text.replace("\\label", "")  # the spec's raw label goes into no shipped template
    for path in hostile_site.glob("downloads/*.md"):
        assert "<img" not in path.read_text()


def test_hostile_text_is_all_there(hostile_site):
    shown = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
    shown = shown.replace('"', "&#34;")
    page = (hostile_site / "table_01.html").read_text()
    for field in ("title", "paper", "document", "section", "params", "latency", "group", "mark", "note", "lost",
                  "model", "y", "set", "cell", "says", "dataset", "device", "upper"):  # fmt: skip
        assert f"{field} {shown}" in page, field


def test_names_of_pages_are_safe_and_unique():
    rows = [Row(model=name, group=1, cells={}) for name in ("a/../b", "A b", "a-b", "漢", "字", ".", "x" * 500)]
    rows.append(Row(model="a b", group=1, cells={}, variant=Variant(id="a", builder="timm", model="a")))
    names = page_names(rows)
    assert len(set(names.values())) == len(rows)
    for name in names.values():
        assert re.fullmatch(r"model_[a-z0-9_-]{1,80}\.html", name)


def test_a_folder_that_is_no_site_is_left_alone(repro, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    done = repro("report", "--output", tmp_path / "mine")
    assert done.exit_code == 2
    assert "not empty, and no site of repro" in done.stderr
    assert [path.name for path in tmp_path.joinpath("mine").iterdir()] == ["thesis.tex"]


def test_an_older_site_is_replaced_whole(repro, tmp_path):
    project = hostile_project(tmp_path / "project")
    output = tmp_path / "site"
    assert repro("report", "--project", project, "--output", output).exit_code == 0
    (output / "model_gone.html").write_text("an old page")
    assert repro("report", "--project", project, "--output", output).exit_code == 0
    assert not (output / "model_gone.html").exists()
    assert [path.name for path in Path(tmp_path).iterdir() if path.name.startswith(".site")] == []


def test_a_project_without_claims_has_no_page_of_claims(repro, second_paper, tmp_path):
    assert repro("report", "--project", second_paper, "--output", tmp_path / "site").exit_code == 0
    assert not (tmp_path / "site" / "claims.html").exists()
    assert "claims.html" not in (tmp_path / "site" / "index.html").read_text()
