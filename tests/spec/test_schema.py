"""table.schema.json, which editors use, says the same as the parser.

A spec that uses every key is parsed while every set of keys and every choice that the parser asks for is kept; each is
then compared with the schema at the same place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from repro.errors import InputError
from repro.spec import parse
from repro.spec.metrics import METRICS, units
from repro.spec.parse import load_table
from repro.spec.reader import Node
from tests.spec.conftest import SPEC

ROOT = Path(__file__).resolve().parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "repro" / "spec" / "table.schema.json").read_text(encoding="utf-8"))
COMPARED = [name for name, metric in METRICS.items() if not metric.descriptive]
TABLES = sorted((ROOT / "tables").glob("table_*.yaml"))

CONDITIONS = """\
  input_size: 480x640
  batch_size: 1
  precision: float32
  form: folded
  counting: macs
  compute_units: all
  device: iPhone 13
  dataset: ImageNet-1k
  split: validation
  crop: "0.875"
  interpolation: bicubic
  detection_dataset: COCO 2017
  detection_head: Mask R-CNN
  segmentation_dataset: ADE20K
  segmentation_head: Semantic FPN
"""


def deeper(text: str, by: int) -> str:
    return re.sub(r"^", " " * by, text, flags=re.MULTILINE).rstrip(" ")


def everything() -> str:
    """A spec that uses every key of the language at least once."""
    number = '{reported: "1.10", line: 8, extracted: "110", note: A note., from_text: no, lost: no'
    cells = ""
    for name in METRICS:
        unit = f', unit: "{units(name)[0]}"' if units(name)[0] else ""
        cells += f"    {name}: {number}{unit}}}\n"
    sections = "".join(f"  {name}:\n{deeper(CONDITIONS, 2)}" for name in COMPARED)
    columns = "".join(f"- {{metric: {name}}}\n" for name in METRICS if name != "params")
    return f"""\
schema: 1
table: 3
title: Every key there is.
source: {{paper: A, document: B, section: C}}
protocol:
{CONDITIONS}{sections}columns:
- {{metric: params, unit: M, header: P, decimals: 1, better: lower, inline: no, group: Size}}
{columns}groups: {{1: Small}}
marks: {{dagger: Distilled.}}
notes: [A note.]
lost: Nothing.
variants:
  net: {{builder: python, model: "nets:build", arguments: {{depth: 1}}}}
rows:
- model: Net
  group: 1
  variant: net
  marks: [dagger]
  cite: net_2024
  label: Net$_1$
  line: 7
  protocol: {{}}
  cells:
{cells}architecture:
- stage: Stem
  output_size: 56x56
  downsampling: 4x
  models:
    Net:
    - {{repeat: 1, line: 3, layers: [{{op: Conv, kernel: 3, stride: 2, width: 16, head_dim: 8, ratio: 4}}]}}
search:
  space: nets
  base: net
  baseline: {{depth: [1, 2]}}
  rows: {{Net: {{width: [[1, 2], [3, 4]]}}}}
deviations:
- row: Net
  metric: params
  reason: source_differs
  says: Cut, not rounded.
  evidence:
    measure: params
    equals: "1.1"
    variant: net
    unit: M
    truncated: yes
    decimals: 1
    cell: {{table: 3, row: Small, metric: params}}
{deeper(CONDITIONS, 2)}"""


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and take the mapping where a cell may be one."""
    if "$ref" in node:
        return resolve(SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")])
    for branch in map(resolve, node.get("anyOf", [])):
        if branch.get("type") == "object":
            return branch
    return node


def at(path: str) -> dict[str, Any]:
    """The schema of a place such as ``rows[0].cells.params``."""
    node = resolve(SCHEMA)
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        node = resolve(node["items"] if index else node.get("properties", {}).get(key) or node["additionalProperties"])
    return node


def objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every schema of a mapping with fixed keys."""
    if isinstance(node, dict):
        if "properties" in node and node.get("type") == "object":
            yield node
        for value in node.values():
            yield from objects(value)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What the parser asked at each place of a spec with every key: the keys it knows and the choices it gives."""
    keys: dict[str, tuple[set[str], set[str]]] = {}
    choices: dict[str, set[str]] = {}
    own_keys, own_choice = Node.keys, Node.choice

    def _keys(self: Node, required: Collection[str] = (), optional: Collection[str] = ()) -> dict[str, Node]:
        keys[self.path] = (set(required), {*required, *optional})
        return own_keys(self, required, optional)

    def _choice(self: Node, known: Collection[str]) -> str:
        choices[self.path] = set(known)
        return own_choice(self, known)

    monkeypatch.setattr(Node, "keys", _keys)
    monkeypatch.setattr(Node, "choice", _choice)
    path = tmp_path / "table_03.yaml"
    path.write_text(everything(), encoding="utf-8")
    load_table(path)
    return {"keys": keys, "choices": choices}


def test_every_key_of_the_parser_is_in_the_schema_and_no_other(asked: dict[str, dict[str, Any]]) -> None:
    visited = []
    for path, (required, known) in asked["keys"].items():
        if path.endswith(".models"):  # the keys of this mapping are the table's own models
            continue
        schema = at(path)
        assert set(schema["properties"]) == known, path
        assert set(schema.get("required", ())) == required, path
        assert schema["additionalProperties"] is False, path
        visited.append(id(schema))
    unseen = [item.get("description") for item in objects(SCHEMA) if id(item) not in visited]
    assert unseen == []


def test_every_choice_of_the_parser_is_in_the_schema(asked: dict[str, dict[str, Any]]) -> None:
    assert len(asked["choices"]) > 20
    for path, known in asked["choices"].items():
        enum = set(at(path)["enum"])
        if path.endswith("unit"):  # which units there are depends on the metric: the schema has those of all
            assert known <= enum, path
        elif path == "deviations[0].metric":
            assert enum == set(COMPARED)
        else:
            assert enum == known, path
    assert set(SCHEMA["$defs"]["unit"]["enum"]) == {unit for name in METRICS for unit in units(name) if unit}


def test_every_key_has_a_description() -> None:
    for item in objects(SCHEMA):
        assert item["description"]
        for name, value in item["properties"].items():
            assert value.get("description") or resolve(value).get("description"), name


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def check(text: str, loader: Any) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.load(text, Loader=loader))


@pytest.mark.parametrize("loader", [yaml.BaseLoader, yaml.SafeLoader], ids=["as text", "with YAML's types"])
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_ten_specs_are_valid(path: Path, loader: Any) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=../repro/spec/table.schema.json\n")
    check(text, loader)


def test_ten_specs() -> None:
    assert len(TABLES) == 10


@pytest.mark.parametrize("loader", [yaml.BaseLoader, yaml.SafeLoader], ids=["as text", "with YAML's types"])
def test_a_spec_with_every_key_is_valid(loader: Any) -> None:
    # to YAML 1.1, which SafeLoader reads, the key 1 is a number: JSON has only text for keys, and editors make it so
    check(everything().replace("groups: {1: ", 'groups: {"1": '), loader)
    check(SPEC, loader)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schema: 1", "schema: 2"),
        ("table: 3", "table: three"),
        ("table: 3", "table: 0"),
        ("title: A small table.", "title:"),
        ("title: A small table.", "titel: A small table."),
        ("document: paper.txt", "documents: paper.txt"),
        ("{metric: top1}", "{metric: top2}"),
        ("{metric: top1}", "{metric: top1, unit: percent}"),
        ("{metric: top1}", "{metric: top1, inline: maybe}"),
        ("{metric: top1}", "{metric: top1, decimals: -1}"),
        ("{builder: timm}", "{builder: keras}"),
        ("{builder: timm}", "{builder: python}"),
        ("{builder: timm}", "{builder: python, model: nets.resnet}"),
        ("{builder: timm}", "{builder: timm, arguments: [1]}"),
        ("resnet18: {", "resnet 18: {"),
        ('"21.8"', '"21.8M"'),
        ('"21.8"', '{reported: "21.8", lost: true}'),
        ('"21.8"', '{reported: "21.8", why: because}'),
        ('"21.8"', "[21.8]"),
        ("line: 8", "line: eight"),
        ("line: 8", "group: 0"),
        ("line: 8", "protocol: {input_size: 224x}"),
        ("line: 8", "protocol: {form: fused}"),
        ("line: 8", "protocol: {latency: {top1: {}}}"),
        ("rows:", "row:"),
        ("columns:", "groups: {one: Small nets}\ncolumns:"),
        ("columns:", "notes: a note\ncolumns:"),
    ],
)
def test_what_the_parser_refuses_the_schema_refuses(
    broken: Callable[[str, str], list[str]], old: str, new: str
) -> None:
    assert broken(old, new)
    text = SPEC.replace(old, new)
    for loader in (yaml.BaseLoader, yaml.SafeLoader):
        with pytest.raises(jsonschema.ValidationError):
            check(text, loader)


def test_the_parser_module_lists_what_the_schema_lists() -> None:
    assert SCHEMA["properties"]["schema"]["enum"] == [parse.SCHEMA, str(parse.SCHEMA)]
    assert SCHEMA["$defs"]["deviation"]["properties"]["reason"]["enum"] == list(parse.REASONS)


def test_the_spec_with_every_key_needs_every_part(tmp_path: Path) -> None:
    path = tmp_path / "table_03.yaml"
    path.write_text(everything().replace("truncated: yes", "trunkated: yes"), encoding="utf-8")
    with pytest.raises(InputError, match="did you mean truncated"):
        load_table(path)
