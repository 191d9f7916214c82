"""What is said of a file that is wrong: every mistake at once, each as ``file:line: path: message``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from repro.errors import InputError
from repro.spec.metrics import METRICS
from repro.spec.parse import load_table
from repro.spec.tables import Table
from tests.spec.conftest import SPEC

SOURCE = "{paper: Another paper, document: paper.txt}"
COLUMNS = "columns:\n"
SIZE = "an input size is '224' or '480x640' (height x width), not "
LINE = "a printed value needs the source's line: give the row or the cell a 'line'"
Broken = Callable[[str, str], list[str]]
Mistakes = Callable[[str], list[str]]


def test_the_small_spec_is_right(load: Callable[[str], Table]) -> None:
    assert [row.model for row in load(SPEC).rows] == ["ResNet-18", "ResNet-34"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title: A", "titel: A", ["1: missing key 'title'", "3: titel: unknown key 'titel'; did you mean title?"]),
        ("table: 3", "table: three", ["2: table: must be a whole number of at least 1, not 'three'"]),
        ("table: 3", "table: 0", ["2: table: must be a whole number of at least 1, not '0'"]),
        ("table: 3", "table: 3.0", ["2: table: must be a whole number of at least 1, not '3.0'"]),
        ("table: 3", "table: ٣", ["2: table: must be a whole number of at least 1, not '٣'"]),
        ("table: 3", "table: [3]", ["2: table: must be text, not a list"]),
        ("table: 3", "table:", ["2: table: must not be empty"]),
        ("table: 3", "table: ~", ["2: table: must not be empty"]),
        ("table: 3", "table: null", ["2: table: must not be empty"]),
        ("schema: 1", "schema: 2", ["1: schema: schema 2 is not known; this release reads schema 1"]),
        ("A small table.", '" "', ["3: title: must not be empty"]),
        (SOURCE, "paper.txt", ["4: source: must be a mapping, not text"]),
        (SOURCE, "{paper: A}", ["4: source: missing key 'document'"]),
        (
            "{builder: timm}",
            "{builder: time}",
            [
                "11: variants.resnet18.builder: unknown value 'time'; did you mean timm?; "
                "known: timm, torchvision, python"
            ],
        ),
        (
            "{builder: timm}",
            "{builder: python, model: nets.resnet}",
            ["11: variants.resnet18.model: the python builder takes 'module:function', not 'nets.resnet'"],
        ),
        ("{builder: timm}", "{builder: timm, arguments: [1]}", ["11: variants.resnet18.arguments: must be a mapping"]),
        (
            "{builder: timm}",
            "{builder: timm, arguments: &a {x: *a}}",
            ["11: variants.resnet18.arguments.x: is nested too deeply"],
        ),
        (
            "variant: resnet18",
            "variant: resnet81",
            ["15: rows[0].variant: unknown variant 'resnet81'; did you mean resnet18?"],
        ),
        (
            "model: ResNet-34",
            "model: ResNet-18",
            ["17: rows[1]: a second row 'ResNet-18'; rows are told apart by their model"],
        ),
        ("line: 8\n", "group: 0\n  line: 8\n", ["18: rows[1].group: must be a whole number of at least 1, not '0'"]),
        (
            "line: 8\n",
            "line: 8\n  marks: [star]\n",
            ["19: rows[1].marks[0]: unknown mark 'star'; the table's marks are none"],
        ),
        (
            "  line: 8\n",
            "",
            [
                "18: rows[1].cells.gmacs: " + LINE,
                "18: rows[1].cells.params: " + LINE,
                "18: rows[1].cells.top1: " + LINE,
            ],
        ),
        ('"21.8"', '"21.8M"', ["19: rows[1].cells.params: must be the printed number or 'Failed', not '21.8M'"]),
        (
            '"21.8"',
            "{reported: failed}",
            ["19: rows[1].cells.params.reported: must be the printed number or 'Failed', not 'failed'"],
        ),
        ('"21.8"', "[21.8]", ["19: rows[1].cells.params: must be text, not a list"]),
        (
            '"21.8"',
            '{reported: "21.8", lost: true}',
            ["19: rows[1].cells.params: a cell that was lost in extraction cannot have a reported value"],
        ),
        ('"21.8"', "{lost: maybe}", ["19: rows[1].cells.params.lost: must be true or false, not 'maybe'"]),
        ('"21.8"', '{reported: "21.8", unit: G}', ["19: rows[1].cells.params.unit: unknown value 'G'; known: M, K"]),
        ('"21.8", gmacs', '"21.8", gmac', ["19: rows[1].cells.gmac: unknown key 'gmac'; did you mean gmacs?"]),
        ("- {metric: resolution}", "- {metric: params}", ["7: columns[1]: a second column for 'params'"]),
        (
            "- {metric: top1}",
            "- {metric: top2}",
            ["9: columns[3].metric: unknown value 'top2'; did you mean top1?; known: " + ", ".join(METRICS)],
        ),
        ("- {metric: params}", "- {metric: params, unit: G}", ["7: columns[1].unit: unknown value 'G'; known: M, K"]),
        ("decimals: 2", "decimals: -1", ["8: columns[2].decimals: must be a whole number of at least 0, not '-1'"]),
        (
            "- {metric: top1}",
            "- {metric: top1, inline: maybe}",
            ["9: columns[3].inline: must be true or false, not 'maybe'"],
        ),
        (
            COLUMNS,
            "groups: {one: Small nets}\n" + COLUMNS,
            ["5: groups.one: a group is a whole number of at least 1, not 'one'"],
        ),
        (COLUMNS, "protocol: {input_size: 224x}\n" + COLUMNS, ["5: protocol.input_size: " + SIZE + "'224x'"]),
        (COLUMNS, "protocol: {input_size: 0}\n" + COLUMNS, ["5: protocol.input_size: " + SIZE + "'0'"]),
        (
            COLUMNS,
            "protocol: {form: fused}\n" + COLUMNS,
            ["5: protocol.form: unknown value 'fused'; known: as_trained, reparameterised, folded, folded_two_heads"],
        ),
        (COLUMNS, "protocol: {latency: {top1: {}}}\n" + COLUMNS, ["5: protocol.latency.top1: unknown key 'top1'"]),
        (
            COLUMNS,
            "protocol: {latencies: {}}\n" + COLUMNS,
            ["5: protocol.latencies: unknown key 'latencies'; did you mean latency?"],
        ),
        (COLUMNS, "notes: a note\n" + COLUMNS, ["5: notes: must be a list, not text"]),
        (COLUMNS, "? [a, b]\n: c\n" + COLUMNS, ["5: a key must be plain text"]),
    ],
)
def test_one_mistake_one_line(broken: Broken, old: str, new: str, expected: list[str]) -> None:
    assert broken(old, new) == [f"table_03.yaml:{line}" for line in expected]


def test_duplicate_key_names_both_lines(broken: Broken) -> None:
    assert broken("table: 3\n", "table: 3\ntable: 4\n") == [
        "table_03.yaml:3: table: duplicate key 'table', first given on line 2"
    ]
    assert broken('top1: "73.3"', 'params: "21.80"') == [
        "table_03.yaml:19: rows[1].cells.params: duplicate key 'params', first given on line 19"
    ]


def test_all_mistakes_of_a_file_sorted_by_line(mistakes: Mistakes) -> None:
    text = (
        SPEC.replace("schema: 1", "schema: one")
        .replace("title: A small table.", "title:")
        .replace("variant: resnet18", "variannt: resnet18")
        .replace('"21.8"', "21,8")
        .replace("model: ResNet-34\n", "model: ResNet-34\n  model: ResNet-50\n")
    )
    found = mistakes(text)
    assert found == [
        "table_03.yaml:1: schema: must be a whole number of at least 1, not 'one'",
        "table_03.yaml:3: title: must not be empty",
        "table_03.yaml:15: rows[0].variannt: unknown key 'variannt'; did you mean variant?",
        "table_03.yaml:18: rows[1].model: duplicate key 'model', first given on line 17",
        "table_03.yaml:20: rows[1].cells.8: unknown key '8'",
    ]


def test_a_broken_column_is_one_mistake_and_not_one_a_row(broken: Broken) -> None:
    assert broken("- {metric: top1}", "- {metrc: top1}") == [
        "table_03.yaml:9: columns[3]: missing key 'metric'",
        "table_03.yaml:9: columns[3].metrc: unknown key 'metrc'; did you mean metric?",
    ]


def test_an_unknown_key_is_on_the_line_of_the_key(broken: Broken) -> None:
    assert broken("variants:\n", "varients:\n") == [
        "table_03.yaml:10: varients: unknown key 'varients'; did you mean variants?",
        "table_03.yaml:15: rows[0].variant: unknown variant 'resnet18'",
    ]


def test_a_mistake_is_one_line_whatever_the_key(broken: Broken) -> None:
    assert broken("table: 3", '"ta\\nble": 3\n"\\e[31m": red') == [
        "table_03.yaml:1: missing key 'table'",
        "table_03.yaml:2: ta\\nble: unknown key 'ta\\nble'; did you mean table?",
        "table_03.yaml:3: \\x1b[31m: unknown key '\\x1b[31m'",
    ]


def test_columns_left_out(broken: Broken) -> None:
    columns = SPEC[SPEC.index("columns:") : SPEC.index("variants:")]
    assert broken(columns, "") == ["table_03.yaml:1: missing key 'columns'"]
    assert broken(columns, "columns: []\n") == ["table_03.yaml:5: columns: a table needs at least one column"]


def test_a_table_without_rows(mistakes: Mistakes) -> None:
    text = SPEC[: SPEC.index("rows:")]
    assert mistakes(text) == ["table_03.yaml:1: missing key 'rows'"]
    assert mistakes(text + "rows: []\n") == ["table_03.yaml:12: rows: a table needs at least one row"]


def test_an_empty_spec_misses_every_required_key(mistakes: Mistakes) -> None:
    required = ("columns", "rows", "schema", "source", "table", "title")
    assert mistakes("{}\n") == [f"table_03.yaml:1: missing key {key!r}" for key in required]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "{path}: is empty"),
        (b"# only a comment\n", "{path}: is empty"),
        (b"- a\n- b\n", "{path}:1: must be a mapping, not a list"),
        (b"just text\n", "{path}:1: must be a mapping, not text"),
        (b"a: 1\nb: [1, 2\n", "{path}:3: is not YAML: while parsing a flow sequence did not find expected ',' or ']'"),
        (b"a: 1\n\tb: 2\n", "{path}:2: is not YAML: while scanning"),
        (b"a: 1\n---\nb: 2\n", "{path}:2: is not YAML: expected a single document in the stream but found"),
        (b"a: *nowhere\n", "{path}:1: is not YAML: found undefined alias"),
        (b"a: 1\nb: \x01\n", "{path}:2: is not YAML: control characters are not allowed"),
        (b"a: 1\nb: caf\xe9\n", "{path}:2: is not UTF-8 text: byte 11: invalid continuation byte"),
        (b"a: 1\x00", "{path}:1: is not YAML: control characters are not allowed"),
        (b"[" * 2000, "{path}:2: is not YAML: "),
    ],
)
def test_files_that_are_no_yaml_mapping(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "table_03.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_table(path)
    first = caught.value.lines[0]
    assert first.startswith(expected.format(path=path))
    assert "\n" not in first


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "table_03.yaml"
    with pytest.raises(InputError, match="No such file"):
        load_table(missing)
    missing.mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        load_table(missing)


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "table_03.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SPEC.replace("\n", "\r\n").encode())
    assert load_table(path).rows[1].reported("top1").text == "73.3"
