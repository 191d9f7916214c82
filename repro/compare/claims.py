"""A paper's claims beside its own cells and what was measured: each holds, does not hold, or cannot be checked here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal, DivisionByZero, InvalidOperation
from typing import Any

from repro.compare.cells import compare, needs
from repro.compare.records import Records
from repro.compare.tolerance import decimals
from repro.errors import InputError, Problem
from repro.measure.needs import Need, operators_need
from repro.spec.claims import (
    CellValue,
    Check,
    Claim,
    Claims,
    Combination,
    Comparison,
    Expression,
    Formula,
    Name,
    Number,
    Operation,
    VariantValue,
    comparisons,
    leaves,
)
from repro.spec.metrics import METRICS
from repro.spec.parse import is_number
from repro.spec.tables import Column, Row, Source, Table, Variant

STATUSES = ("holds", "does_not_hold", "cannot_be_checked_here")
REASONS = {
    "needs_training": "says what training gave",
    "needs_macos": "Core ML predicts only on macOS",
    "needs_dataset": "needs the data set and a checkpoint",
    "lost_in_extraction": "the table's cells are lost",
    "not_a_number": "compares in words",
    "not_reported": "the paper prints no number there",
    "not_run": "not measured yet",
}
_SIGNS = {"sum": " + ", "difference": " - ", "product": " × ", "quotient": " / "}
_RELATIONS = {
    "equals": "=",
    "more_than": ">",
    "less_than": "<",
    "at_least": "≥",
    "at_most": "≤",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison of a claim: what was found, what was stated; ``holds`` is ``None`` where a value is missing."""

    found: str
    relation: str
    stated: str
    holds: bool | None
    reason: str | None = None
    sources: tuple[str, ...] = ()
    records: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """A claim and how it stands."""

    claim: Claim
    status: str
    reason: str | None = None
    evidence: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClaimsResult:
    """All claims that were asked for."""

    claims: Claims
    results: tuple[ClaimResult, ...]

    def summary(self) -> dict[str, int]:
        """How many claims have each status."""
        counted = Counter(result.status for result in self.results)
        return {status: counted[status] for status in STATUSES}

    @property
    def exit_code(self) -> int:
        """0 all that could be checked holds, 1 some does not, 3 nothing could be checked."""
        summary = self.summary()
        if summary["does_not_hold"]:
            return 1
        return 0 if summary["holds"] else 3


@dataclass(frozen=True)
class _Value:
    value: Decimal | None
    shown: str
    reason: str | None = None
    sources: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    printed: str | None = None  # a number as the paper or the spec writes it: its decimals say how exact it is


def _own_table(claims: Claims, variant: Variant) -> Table:
    """A table of one row that nothing prints, so that a variant of a claim is counted as a table's is."""
    columns = tuple(
        Column(metric=metric, unit=METRICS[metric].unit, header=METRICS[metric].header, decimals=0, better=None,
               descriptive=False)
        for metric in ("params", "gmacs")
    )  # fmt: skip
    return Table(
        number=0,
        title="",
        source=Source(paper="", document=""),
        protocol=claims.protocol,
        columns=columns,
        rows=(Row(model=variant.id, group=1, cells={}, variant=variant),),
    )


def claim_needs(claims: Claims, chosen: Sequence[Claim], tables: Mapping[int, Table]) -> list[Need]:
    """All measurements behind the chosen claims."""
    found: list[Need] = []
    for claim in chosen:
        for comparison in comparisons(claim.check):
            for leaf in (*leaves(comparison.left), *leaves(comparison.right)):
                if isinstance(leaf, CellValue) and leaf.measured:
                    table = tables[leaf.table]
                    rows = [row for row in table.rows if row.model == leaf.row]
                    found += needs([table], {table.number: rows}, [leaf.metric])
                elif isinstance(leaf, VariantValue):
                    table = _own_table(claims, leaf.variant)
                    found += needs([table], {0: table.rows}, [leaf.metric])
        if claim.formula is not None:
            found += [_formula_need(claims, claim, claim.formula, case) for case in claim.formula.cases]
    return found


def compare_claims(
    claims: Claims, chosen: Sequence[Claim], tables: Mapping[int, Table], records: Records
) -> ClaimsResult:
    """See how the chosen claims stand."""
    judge = _Judge(claims, tables, records)
    return ClaimsResult(claims=claims, results=tuple(judge.claim(claim) for claim in chosen))


@dataclass
class _Judge:
    claims: Claims
    tables: Mapping[int, Table]
    records: Records
    evidence: list[Finding] = field(default_factory=list)

    def claim(self, claim: Claim) -> ClaimResult:
        """One claim with the evidence of all its comparisons."""
        if claim.cannot is not None:
            return ClaimResult(claim=claim, status="cannot_be_checked_here", reason=claim.cannot)
        self.evidence = []
        if claim.formula is not None:
            self.evidence = [self._case(claim, claim.formula, case) for case in claim.formula.cases]
            holds = _all([finding.holds for finding in self.evidence])
        else:
            assert claim.check is not None
            holds = self._check(claim.check)
        status = "cannot_be_checked_here" if holds is None else "holds" if holds else "does_not_hold"
        missing = [finding.reason for finding in self.evidence if finding.holds is None]
        reason = missing[0] if holds is None and missing else None
        return ClaimResult(claim=claim, status=status, reason=reason, evidence=tuple(self.evidence))

    def _check(self, check: Check) -> bool | None:
        if isinstance(check, Combination):
            inside = [self._check(item) for item in check.checks]
            if check.how == "not":
                return None if inside[0] is None else not inside[0]
            if check.how == "any":
                flipped = _all([None if holds is None else not holds for holds in inside])
                return None if flipped is None else not flipped
            return _all(inside)
        finding = self._comparison(check)
        self.evidence.append(finding)
        return finding.holds

    def _comparison(self, check: Comparison) -> Finding:
        left, right = self._value(check.left), self._value(check.right)
        reason = left.reason or right.reason
        holds = None
        if left.value is not None and right.value is not None:
            holds = _stands(left.value, check.relation, right.value, right.printed)
        exact = isinstance(check.left, Operation) and left.value is not None
        found = f"{left.shown} = {_plain(left.value)}" if exact and left.value is not None else left.shown
        return Finding(
            found=found,
            relation=_RELATIONS[check.relation],
            stated=right.shown,
            holds=holds,
            reason=reason if holds is None else None,
            sources=tuple(dict.fromkeys(left.sources + right.sources)),
            records=tuple(dict.fromkeys(left.records + right.records)),
        )

    def _value(self, expression: Expression) -> _Value:
        if isinstance(expression, Number):
            return _Value(expression.value, expression.text, printed=expression.text)
        if isinstance(expression, CellValue):
            return self._cell(self.tables[expression.table], expression.row, expression.metric, expression.measured)
        if isinstance(expression, VariantValue):
            table = _own_table(self.claims, expression.variant)
            return self._cell(table, expression.variant.id, expression.metric, True)
        assert isinstance(expression, Operation)
        return _operate(expression.name, [self._value(operand) for operand in expression.operands])

    def _cell(self, table: Table, model: str, metric: str, measured: bool) -> _Value:
        row = next(row for row in table.rows if row.model == model)
        column = table.column(metric)
        assert column is not None
        place = f"Table {table.number}, " if table.number else ""
        name = f"{place}{model}, {column.header}{', measured' if measured else ''}"
        if not measured:
            reported = row.reported(metric)
            if not is_number(reported.text) or reported.text is None:
                return _Value(None, "?", "lost_in_extraction" if reported.lost else "not_reported", (name,))
            return _Value(Decimal(reported.text), reported.text, sources=(name,), printed=reported.text)
        result = compare(table, self.records, rows=[row], metrics=[metric])
        cell = next(cell for cell in result.rows[0].cells if cell.metric == metric)
        if cell.measured is None or cell.record is None:
            # Nothing printed and nothing measured is "not reported" to a table; a claim needs the measurement.
            reason = cell.reason if cell.status in ("not_measured", "failed") else "not_run"
            return _Value(None, "?", reason or "not_run", (name,))
        return _Value(cell.measured, _plain(cell.measured), sources=(name,), records=(cell.record.id,))

    def _case(self, claim: Claim, formula: Formula, case: Mapping[str, int]) -> Finding:
        named = " ".join(f"{name}={value}" for name, value in case.items())
        stated = _number(formula.equals, case)
        found = self.records.find(_formula_need(self.claims, claim, formula, case))
        if found is None or found.stale or found.record.error is not None:
            reason = "not_run" if found is None or found.stale else str((found.record.error or {}).get("reason"))
            return Finding(found=named, relation="=", stated=_plain(stated), holds=None, reason=reason)
        operators: Mapping[str, int] = found.record.details["operators"]
        counted = sum(operators.get(name, 0) for name in formula.counts)
        return Finding(
            found=f"{named}: {counted}",
            relation="=",
            stated=_plain(stated),
            holds=Decimal(counted) == stated,
            sources=(f"{formula.model}: {', '.join(formula.counts)}",),
            records=(found.record.id,),
        )


def _all(holds: Sequence[bool | None]) -> bool | None:
    """One that does not hold decides; else one that is unknown."""
    if False in holds:
        return False
    return None if None in holds else True


def _stands(left: Decimal, relation: str, right: Decimal, printed: str | None) -> bool:
    if relation == "equals":
        if printed is None:
            return left == right
        return left.quantize(Decimal(1).scaleb(-decimals(printed)), ROUND_HALF_UP) == right
    return {
        "more_than": left > right,
        "less_than": left < right,
        "at_least": left >= right,
        "at_most": left <= right,
    }[relation]


def _operate(name: str, operands: Sequence[_Value]) -> _Value:
    sources = tuple(source for operand in operands for source in operand.sources)
    used = tuple(record for operand in operands for record in operand.records)
    texts = [f"({item.shown})" if " " in item.shown else item.shown for item in operands]
    shown = f"change from {texts[1]} to {texts[0]}, in %" if name == "change" else _SIGNS[name].join(texts)
    reason = next((operand.reason for operand in operands if operand.value is None), None)
    if reason is not None:
        return _Value(None, shown, reason, sources, used)
    values = [operand.value for operand in operands if operand.value is not None]
    value = apply(name, values)
    return _Value(value, shown, "not_a_number" if value is None else None, sources, used)


def apply(name: str, values: Sequence[Decimal]) -> Decimal | None:
    """An operation on numbers; ``None`` for a division by zero."""
    try:
        if name == "sum":
            return sum(values, Decimal(0))
        if name == "product":
            return math.prod(values, start=Decimal(1))
        first, second = values
        if name == "difference":
            return first - second
        return first / second if name == "quotient" else 100 * (first - second) / second
    except (DivisionByZero, InvalidOperation):
        return None


def _number(expression: Expression, case: Mapping[str, int]) -> Decimal:
    """A formula's expression with the numbers of one case."""
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Name):
        return Decimal(case[expression.name])
    assert isinstance(expression, Operation)
    value = apply(expression.name, [_number(operand, case) for operand in expression.operands])
    return Decimal("NaN") if value is None else value


def _plain(value: Decimal) -> str:
    """A number with at most four decimals and no exponent."""
    if value == value.to_integral_value():
        return f"{value.to_integral_value():f}"
    return f"{value.quantize(Decimal('0.0001'), ROUND_HALF_UP):f}".rstrip("0")


def _formula_need(claims: Claims, claim: Claim, formula: Formula, case: Mapping[str, int]) -> Need:
    sizes = [_number(size, case) for size in formula.shape]
    if any(not size.is_finite() or size != size.to_integral_value() or size < 1 for size in sizes):
        wrong = ", ".join(map(str, sizes))
        message = f"claim {claim.id!r}: {dict(case)} makes an input of {wrong}: sizes are whole numbers"
        raise InputError([Problem(file=str(claims.path), line=claim.spec_line, path="claims", message=message)])
    arguments: dict[str, Any] = {
        name: case[value] if isinstance(value, str) and value in case else value
        for name, value in formula.arguments.items()
    }
    name = formula.model.rpartition(":")[2]
    variant = Variant(id=name, builder="python", model=formula.model, arguments=arguments)
    return operators_need(variant, tuple(int(size) for size in sizes))
