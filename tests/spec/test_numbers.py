"""Printed strings survive reading, whatever YAML would make of them; and no text whatever ends in a traceback."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from repro.errors import InputError
from repro.spec.metrics import METRICS, scale, units
from repro.spec.parse import is_number, load_table
from repro.spec.reader import Reader
from repro.spec.tables import Table
from tests.spec.conftest import SPEC

digits = st.text("0123456789", min_size=1, max_size=8)
decimals = st.builds(
    lambda sign, whole, part: sign + whole + (f".{part}" if part else ""),
    st.sampled_from(("", "-", "+")),
    digits,
    st.one_of(st.just(""), digits),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numbers") / "table_03.yaml"


def load(path: Path, text: str) -> Table:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return load_table(path)


@given(printed=decimals, quote=st.sampled_from(("", '"', "'")))
@example(printed="1.10", quote="")
@example(printed="010", quote="")
@example(printed="1.0", quote='"')
@example(printed="0.30", quote="")
def test_a_printed_decimal_survives(path: Path, printed: str, quote: str) -> None:
    table = load(path, SPEC.replace('"21.8"', f"{quote}{printed}{quote}"))
    assert table.rows[1].reported("params").text == printed
    long = load(path, SPEC.replace('"21.8"', f"{{reported: {quote}{printed}{quote}, note: a note}}"))
    assert long.rows[1].reported("params").text == printed
    assert is_number(printed)
    assert Decimal(printed).is_finite()


@pytest.mark.parametrize(
    "text", ["Failed", "", "1.", ".5", "1e3", "1,64", "1 64", "9.9M", "٣.٤", "NaN", "inf", "1.0\n", None]
)
def test_what_is_no_number_is_not_compared(text: str | None) -> None:
    assert not is_number(text)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "2018", "1_000", "12:30:45", "0x1F", "2024-01-02", ".inf"])
def test_text_is_the_text_that_stands_there(path: Path, word: str) -> None:
    table = load(path, SPEC.replace("model: ResNet-34", f"model: {word}"))
    assert table.rows[1].model == word


@pytest.mark.parametrize("word", ["true", "True", "yes", "YES", '"true"'])
def test_yes(path: Path, word: str) -> None:
    column = load(path, SPEC.replace("{metric: resolution}", f"{{metric: resolution, inline: {word}}}")).columns[0]
    assert column.inline


@pytest.mark.parametrize("word", ["false", "no", "No"])
def test_no(path: Path, word: str) -> None:
    column = load(path, SPEC.replace("{metric: resolution}", f"{{metric: resolution, inline: {word}}}")).columns[0]
    assert not column.inline


def test_arguments_of_a_builder_are_typed(path: Path) -> None:
    arguments = "{a: 1, b: 1.5, c: true, d: null, e: '1', f: [2, x], g: {h: -3}, i: 1e-6, j: no}"
    table = load(path, SPEC.replace("{builder: timm}", f"{{builder: timm, arguments: {arguments}}}"))
    variant = table.rows[0].variant
    assert variant is not None
    assert variant.arguments == {
        **{"a": 1, "b": 1.5, "c": True, "d": None, "e": "1", "f": [2, "x"], "g": {"h": -3}},
        **{"i": 1e-6, "j": "no"},
    }
    assert [type(value) for value in variant.arguments.values()][:4] == [int, float, bool, type(None)]


def test_an_argument_nested_too_deeply_is_a_mistake(path: Path) -> None:
    text = SPEC.replace("{builder: timm}", f"{{builder: timm, arguments: {{a: {'[' * 60}{']' * 60}}}}}")
    with pytest.raises(InputError, match="is nested too deeply"):
        load(path, text)


@given(text=st.text(max_size=200))
def test_no_text_ends_in_a_traceback(path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        load(path, text)
    lines = [problem.line for problem in caught.value.problems]
    assert lines == sorted(lines)
    assert all(line.startswith(f"{path}:") and "\n" not in line for line in caught.value.lines)


@given(
    start=st.integers(0, len(SPEC)),
    length=st.integers(0, 12),
    put=st.text("abc:-[]{}\"'#&*!|>%@`?, \n\t0123456789~", max_size=8),
)
def test_a_damaged_spec_is_read_or_refused(path: Path, start: int, length: int, put: str) -> None:
    try:
        lines = load(path, SPEC[:start] + put + SPEC[start + length :]).title.splitlines()
    except InputError as error:
        lines = error.lines
    assert lines
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_suggestions_and_plain_reading_do_not_depend_on_case(path: Path) -> None:
    path.write_text("Params: 1\n", encoding="utf-8")
    reader, root = Reader.open(path)
    assert root.keys((), ("params",)) == {}
    with pytest.raises(InputError, match="unknown key 'Params'; did you mean params"):
        reader.finish()


def test_units() -> None:
    for name, metric in METRICS.items():
        assert metric.unit in units(name)
        assert scale(name, metric.unit) == 1
    # 1.64 G is 1640 M, 3.4 M are 3400 K, 1.1 ms are 1100 us
    assert Decimal("1.64") * scale("gmacs", "M") == 1640
    assert Decimal("3.4") * scale("params", "K") == 3400
    assert Decimal("1.1") * scale("latency", "us") == 1100
    assert Decimal("11.46") * scale("latency", "s") == Decimal("0.01146")
