"""docs/specs.md tells the truth: its example loads, its mistakes are those of the parser, and it names every key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import yaml

from repro.spec.metrics import METRICS
from repro.spec.tables import Table
from tests.spec.test_schema import SCHEMA, objects

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "specs.md").read_text(encoding="utf-8")
EXAMPLE, WRONG = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_example_loads_and_is_valid(load: Callable[[str], Table]) -> None:
    table = load(EXAMPLE)
    assert [row.model for row in table.rows] == ["ResNet-18", "OurNet-S"]
    assert table.protocol_of(table.rows[1], "latency")["input_size"] == 256
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.load(EXAMPLE, Loader=yaml.BaseLoader))


def test_the_mistakes_are_those_that_are_told(mistakes: Callable[[str], list[str]]) -> None:
    shown = TEXT[TEXT.index(WRONG) + len(WRONG) :].split("```\n")[2].splitlines()
    assert mistakes(WRONG) == shown


def test_every_key_and_every_metric_is_described() -> None:
    written = set(re.findall(r"`([a-z0-9_]+)`", TEXT))
    keys = {key for item in objects(SCHEMA) for key in item["properties"]}
    assert keys | set(METRICS) <= written


def test_every_choice_is_described() -> None:
    written = set(re.findall(r"`([a-zA-Z0-9_+-]+)`", TEXT)) | set(re.findall(r"\b\w+\b|%", TEXT))
    choices = {
        str(value) for values in re.findall(r'"enum": (\[[^\]]*\])', json.dumps(SCHEMA)) for value in json.loads(values)
    }
    assert len(choices) > 40
    assert choices <= written | {"True"}
