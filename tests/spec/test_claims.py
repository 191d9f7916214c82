from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.compare.claims import apply
from repro.errors import InputError
from repro.spec.claims import (
    CellValue,
    Combination,
    Comparison,
    Number,
    Operation,
    VariantValue,
    claims_of,
    comparisons,
    leaves,
    load_claims,
)
from repro.spec.project import Project

PROJECT = Project()
TABLES = {table.number: table for table in PROJECT.tables()}
HEAD = "schema: 1\nsource: {paper: A, document: B}\nvariants: {net: {builder: timm}}\nclaims:\n"
CELL = "{table: 10, row: Baseline, metric: top1}"


def load(tmp_path: Path, text: str):
    path = tmp_path / "claims.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    return load_claims(path, TABLES).claims


def mistakes(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


def test_the_papers_claims_load():
    claims = claims_of(PROJECT.folder("tables"), TABLES)
    assert len(claims.claims) > 25
    assert all(1 <= claim.line <= 225 for claim in claims.claims)
    assert {claim.kind for claim in claims.claims} == {"formula", "sentence"}
    assert all((claim.check is None) + (claim.formula is None) + (claim.cannot is None) == 2 for claim in claims.claims)


def test_a_comparison_is_read(tmp_path):
    (claim,) = load(
        tmp_path, f"- {{claim: a, line: 1, says: b, check: {{difference: [{CELL}, 2], equals: '-0.70'}}}}\n"
    )
    cell = CellValue(table=10, row="Baseline", metric="top1")
    left = Operation(name="difference", operands=(cell, Number(text="2")))
    assert claim.check == Comparison(left=left, relation="equals", right=Number(text="-0.70"))
    assert list(leaves(left)) == [cell, Number(text="2")]


def test_combinations_are_read(tmp_path):
    one = f"{{table: 10, row: Baseline, metric: top1, measured: yes, more_than: {CELL}}}"
    two = "{variant: net, metric: params, at_most: 3}"
    (claim,) = load(tmp_path, f"- {{claim: a, line: 1, says: b, check: {{not: {{any: [{one}, {two}]}}}}}}\n")
    assert isinstance(claim.check, Combination)
    assert [item.relation for item in comparisons(claim.check)] == ["more_than", "at_most"]
    measured, variant = (item.left for item in comparisons(claim.check))
    assert isinstance(measured, CellValue)
    assert measured.measured
    assert isinstance(variant, VariantValue)
    assert variant.variant.id == "net"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("{equals: 1}", "is no expression: a cell also needs metric, row, table"),
        (CELL, "a comparison has one of equals"),
        ("{sum: [1], equals: 1, more_than: 0}", "a comparison has one of equals"),
        ("{sum: [1], table: 10, equals: 1}", "'sum' stands alone, not beside table"),
        ("{sum: [], equals: 1}", "takes at least one operand"),
        ("{difference: [1], equals: 1}", "takes two operands"),
        ("{change: [1, 2, 3], equals: 1}", "takes two operands"),
        ("{sum: [__import__('os')], equals: 1}", "must be a number or an expression"),
        ("{sum: [C], equals: 1}", "must be a number or an expression, not 'C'"),
        ("{sum: [inf], equals: 1}", "must be a number or an expression"),
        ("{eval: [1], equals: 1}", "unknown key 'eval'"),
        ("{table: 8, row: Baseline, metric: top1, equals: 1}", "no table 8; there are 9, 10"),
        ("{table: 10, row: Basline, metric: top1, equals: 1}", "no row 'Basline' in table 10; did you mean Baseline?"),
        ("{table: 10, row: Baseline, metric: top5, equals: 1}", "has no column 'top5'; did you mean top1"),
        ("{variant: nett, metric: params, equals: 1}", "unknown variant 'nett'; did you mean net?"),
        ("{variant: net, equals: 1}", "a variant's count has 'variant' and 'metric'"),
        ("{variant: net, metric: top1, equals: 1}", "unknown value 'top1'"),
        ("{all: []}", "needs at least one check"),
        ("[1]", "must be a mapping, not a list"),
    ],
)
def test_mistakes_are_told(tmp_path, check, message):
    found = mistakes(tmp_path, f"- {{claim: a, line: 1, says: b, check: {check}}}\n")
    assert any(message in line for line in found), found


FORMULA = "{{model: 'm:f', shape: {shape}, cases: {cases}, counts: [conv], equals: {equals}}}"


@pytest.mark.parametrize(
    ("shape", "cases", "equals", "message"),
    [
        ("[1, C, 2]", "[{C: 1}]", "C", "has four sizes"),
        ("[1, C, 2, 2]", "[]", "C", "needs at least one case"),
        ("[1, C, 2, 2]", "[{C: 1}, {D: 1}]", "C", "must give C, as the first case does"),
        ("[1, C, 2, 2]", "[{C: 0}]", "C", "at least 1"),
        ("[1, C, 2, 2]", "[{C: 1}]", "{sum: [D]}", "not 'D'; the names are C"),
        ("[1, C, 2, 2]", "[{C: 1}]", CELL, "no table 10"),
    ],
)
def test_mistakes_of_formulas_are_told(tmp_path, shape, cases, equals, message):
    formula = FORMULA.format(shape=shape, cases=cases, equals=equals)
    found = mistakes(tmp_path, f"- {{claim: a, line: 1, says: b, formula: {formula}}}\n")
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("{claim: a, line: 1, says: b}", "a claim has one of"),
        ("{claim: a, line: 1, says: b, cannot: needs_training, check: {sum: [1], equals: 1}}", "a claim has one of"),
        ("{claim: a, line: 1, says: b, cannot: no_idea}", "unknown value 'no_idea'"),
        ("{claim: a, says: b, cannot: needs_training}", "missing key 'line'"),
    ],
)
def test_mistakes_of_claims_are_told(tmp_path, claim, message):
    assert any(message in line for line in mistakes(tmp_path, f"- {claim}\n"))


def test_two_claims_of_one_name(tmp_path):
    claim = "- {claim: a, line: 1, says: b, cannot: needs_training}\n"
    assert "claims[1]: a second claim 'a'" in mistakes(tmp_path, claim + claim)


def test_no_claims_at_all(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        claims_of(tmp_path, TABLES)


NUMBERS = st.decimals(-1000, 1000, places=3)


@given(NUMBERS, NUMBERS)
def test_operations_are_decimal_arithmetic(a, b):
    assert apply("sum", [a, b]) - b == a
    assert apply("difference", [a, b]) == -apply("difference", [b, a])
    assert apply("product", [a, b]) == a * b
    if b:
        assert apply("quotient", [a * b, b]) == pytest.approx(a)
        assert apply("change", [a, b]) == pytest.approx(100 * (a / b - 1), abs=Decimal("1e-15"))
    else:
        assert apply("quotient", [a, b]) is None
        assert apply("change", [a, b]) is None
