"""A site of the shipped paper, one of a hostile paper, and a browser that is allowed nothing but files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from repro.commands.report import write_site
from repro.compare.tolerance import parse_tolerance
from repro.pipeline import Run
from repro.spec.project import Project
from tests.conftest import MODELS, counted

HOSTILE = '</template></script><img src=x onerror="document.title=1">{{7*7}}<%7%>\\input{x}$_#%&\'"`|†'

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def hostile_spec() -> dict:
    """A table with markup of every language in every text that a spec may hold."""
    h = HOSTILE
    return {
        "schema": "1",
        "table": "1",
        "title": f"title {h}",
        "source": {"paper": f"paper {h}", "document": f"document {h}", "section": f"section {h}"},
        "protocol": {
            "input_size": "16",
            "dataset": f"dataset {h}",
            "split": f"split {h}",
            "latency": {"device": f"device {h}"},
        },
        "columns": [
            {"metric": "year", "inline": "true", "header": f"year {h}"},
            {"metric": "params", "unit": "K", "decimals": "2", "header": f"params {h}", "group": f"upper {h}"},
            {"metric": "latency", "header": f"latency {h}"},
            {"metric": "top1", "header": f"top {h}"},
            {"metric": "setting", "header": f"setting {h}"},
        ],
        "groups": {"1": f"group {h}"},
        "marks": {"dagger": f"mark {h}"},
        "notes": [f"note {h}"],
        "lost": f"lost {h}",
        "variants": {"line_8": {"builder": "python", "model": "second_models:line", "arguments": {"name": f"a {h}"}}},
        "rows": [
            {
                "model": f"model {h}",
                "label": f"label {h}",
                "line": "3",
                "variant": "line_8",
                "marks": ["dagger"],
                "cite": f"cite {h}",
                "cells": {
                    "year": f"y {h}",
                    "params": {"reported": "0.40", "note": f"cell {h}", "extracted": f"extracted {h}"},
                    "latency": "1.0",
                    "top1": "70.0",
                    "setting": f"set {h}",
                },
            },
            {"model": f"model 2 {h}", "line": "4", "cells": {"params": "1.00"}},
        ],
        "deviations": [
            {
                "row": f"model {h}",
                "metric": "params",
                "reason": "source_differs",
                "says": f"says {h}",
                "evidence": {"measure": "params", "form": "as_trained", "equals": "0.40"},
            }
        ],
    }


def hostile_project(folder: Path) -> Path:
    """A project with that table, models that can be built, and claims as hostile."""
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "table_01.yaml").write_text(yaml.safe_dump(hostile_spec(), allow_unicode=True))
    claims = {
        "schema": "1",
        "source": {"paper": f"paper {HOSTILE}", "document": f"document {HOSTILE}"},
        "claims": [
            {"claim": "one", "line": "1", "says": f"says {HOSTILE}", "cannot": "needs_training", "note": HOSTILE}
        ],
    }
    (folder / "tables" / "claims.yaml").write_text(yaml.safe_dump(claims, allow_unicode=True))
    (folder / "second_models.py").write_text(MODELS)
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped paper's site, from the ledger alone."""
    folder = tmp_path_factory.mktemp("site")
    run = Run.open(Project(), folder / "store")
    write_site(run, parse_tolerance("0.1"), folder / "site")
    return folder / "site"


@pytest.fixture(scope="session")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile paper's site, with a measured cell and one whose measurement failed."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("hostile")
    run = Run.open(Project(root=hostile_project(folder / "project")), folder / "store")
    variant = run.project.table(1).rows[0].variant
    assert variant is not None
    record = counted(variant, "params", 312, (16, 16), as_trained=400)
    run.store.put(replace(record, provenance={**record.provenance, "host": HOSTILE, "cpu": HOSTILE, "os": HOSTILE}))
    write_site(run, parse_tolerance("0"), folder / "site")
    return folder / "site"


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium) -> Iterator[Callable]:
    """Open a file; at the end no page may have logged an error or asked for anything but files."""
    complaints: list[str] = []
    pages = []

    def open_(path: Path, fragment: str = "", **settings):
        page = chromium.new_page(**{"viewport": {"width": 1280, "height": 900}, **settings})
        pages.append(page)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else complaints.append(f"request: {request.url}")
            ),
        )
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_
    for page in pages:
        page.close()
    assert complaints == []
