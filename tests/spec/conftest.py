from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from repro.errors import InputError
from repro.spec.parse import load_table
from repro.spec.tables import Table

SPEC = """\
schema: 1
table: 3
title: A small table.
source: {paper: Another paper, document: paper.txt}
columns:
- {metric: resolution}
- {metric: params}
- {metric: gmacs, decimals: 2}
- {metric: top1}
variants:
  resnet18: {builder: timm}
rows:
- model: ResNet-18
  line: 7
  variant: resnet18
  cells: {params: "11.7", gmacs: "1.80", top1: "69.8"}
- model: ResNet-34
  line: 8
  cells: {params: "21.8", gmacs: "3.70", top1: "73.3"}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a spec and return its path."""

    def _write(text: str) -> Path:
        path = tmp_path / "table_03.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return path

    return _write


@pytest.fixture
def load(write: Callable[[str], Path]) -> Callable[[str], Table]:
    """Load a spec from its text."""
    return lambda text: load_table(write(text))


@pytest.fixture
def mistakes(write: Callable[[str], Path]) -> Callable[[str], list[str]]:
    """All mistakes of a spec as printed, with the folder left out."""

    def _mistakes(text: str) -> list[str]:
        path = write(text)
        with pytest.raises(InputError) as caught:
            load_table(path)
        return [line.replace(str(path), path.name) for line in caught.value.lines]

    return _mistakes


@pytest.fixture
def broken(mistakes: Callable[[str], list[str]]) -> Callable[[str, str], list[str]]:
    """The mistakes of the small spec with one piece of its text replaced."""

    def _broken(old: str, new: str) -> list[str]:
        assert SPEC.count(old) == 1, f"{old!r} must stand once in the small spec"
        return mistakes(SPEC.replace(old, new))

    return _broken
