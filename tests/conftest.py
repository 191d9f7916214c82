"""A small second paper, built in a temporary folder, and records for it without measuring."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from repro.measure.needs import count_need
from repro.results.record import Record
from repro.results.store import Store
from repro.spec.tables import FORMS, InputSize, Variant

MODELS = '''
"""Networks whose counts can be worked out by hand, and three that misbehave."""
import time
import torch
from torch import nn


def line(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def raises():
    raise RuntimeError("this variant is broken\\nand says so at length")


def hangs():
    time.sleep(600)


class Hungry(nn.Module):
    def forward(self, x):
        kept = []
        for _ in range(1000):
            kept.append(torch.ones(32 * 2**20))
        return x


def eats():
    return Hungry()


def dies():
    import os
    os.kill(os.getpid(), 9)
'''

TABLE = """
schema: 1
table: 1
title: A second paper's only table
source: {paper: Second, document: its appendix}
protocol: {input_size: 16, batch_size: 1, form: folded, counting: macs}
columns:
  - {metric: params, unit: K, decimals: 2}
  - {metric: gmacs, unit: M, decimals: 3, header: MMACs}
  - {metric: latency, decimals: 2}
  - {metric: top1, decimals: 1}
variants:
  line_8: {builder: python, model: "second_models:line", arguments: {width: 8}}
  line_16: {builder: python, model: "second_models:line", arguments: {width: 16}}
rows:
  - model: Line-8
    line: 3
    variant: line_8
    cells: {params: "0.31", gmacs: "0.055", latency: "1.10", top1: "70.0"}
  - model: Line-16
    line: 4
    variant: line_16
    cells: {params: "0.62", gmacs: "0.200", latency: Failed, top1: "71.0"}
  - model: Elsewhere
    line: 5
    cells: {params: "1.00", gmacs: "0.500"}
"""


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own records."""
    folder = tmp_path_factory.mktemp("store")
    monkeypatch.setenv("REPRO_STORE", str(folder))
    return folder


@pytest.fixture
def second_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with one table of hand-countable models."""
    # every such project has its own module of this name: neither it nor its place may outlive the test
    monkeypatch.delitem(sys.modules, "second_models", raising=False)
    project = tmp_path / "second"
    monkeypatch.setattr(sys, "path", [str(project), *sys.path])  # as opening the project does
    (project / "tables").mkdir(parents=True)
    (project / "tables" / "table_01.yaml").write_text(TABLE)
    (project / "second_models.py").write_text(textwrap.dedent(MODELS))
    return project


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, which this process has joined."""
    ray = pytest.importorskip("ray", reason="the Ray executor is an optional extra")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=2)
    ray.init(address=made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def repro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in an empty folder, in this process."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: str) -> Result:
        from repro.cli import main

        return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


def counted(variant: Variant, metric: str, count: int, input_size: InputSize = (224, 224), **forms: int) -> Record:
    """A record as a worker would make it, with every form or convention equal to ``count`` unless stated."""
    need = count_need(variant, metric, input_size)
    if metric == "params":
        details = {"forms": {name: forms.get(name, count) for name in FORMS}}
    else:
        names = [
            f"{form}/{counting}" for form in FORMS for counting in ("macs", "macs+norms", "macs-attention", "fvcore")
        ]
        details = {
            "macs": {name: forms.get(name, count) for name in names},
            "operators": {form: {"conv": count} for form in FORMS},
            "cross_check": {
                form: {"fvcore": count, "flop_counter": forms.get("flop_counter", count)} for form in FORMS
            },
        }
    return Record(
        subject=need.subject,
        metric=metric,
        protocol=need.protocol,
        value=count / (1e6 if metric == "params" else 1e9),
        unit="M" if metric == "params" else "G",
        versions=need.versions,
        provenance={"time": "2026-01-01T00:00:00.000+00:00", "host": "test"},
        details=details,
    )


@pytest.fixture
def store(own_store: Path) -> Store:
    """The test's own store."""
    return Store(own_store)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child, with changes."""
    return {**os.environ, **changes}
