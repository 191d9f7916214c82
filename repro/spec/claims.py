"""What a paper's sentences and equations say in numbers: claims.yaml beside the tables. docs/claims.md describes it.

A check is a comparison of expressions. Expressions are data, read key by key; nothing is evaluated as code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from repro.errors import InputError, Problem
from repro.spec.parse import is_number, read_protocol, read_source, read_variants
from repro.spec.reader import Node, Reader, suggestion
from repro.spec.tables import Protocol, Source, Table, Variant

SCHEMA = 1
OPERATIONS = ("sum", "difference", "product", "quotient", "change")
RELATIONS = ("equals", "more_than", "less_than", "at_least", "at_most")
COMBINATIONS = ("all", "any", "not")
# Why a claim cannot be checked on any machine that runs this, or not from what is left of the paper.
CANNOT = ("needs_training", "needs_macos", "needs_dataset", "lost_in_extraction", "not_a_number")
_PAIRS = ("difference", "quotient", "change")
_COUNTED = ("params", "gmacs")


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number as it was written."""

    text: str

    @property
    def value(self) -> Decimal:
        """Its value."""
        return Decimal(self.text)


@dataclass(frozen=True, kw_only=True)
class Name:
    """A variable of a formula, such as ``C``."""

    name: str


@dataclass(frozen=True, kw_only=True)
class CellValue:
    """A cell of a table: what is printed there, or with ``measured`` what was measured for it, in the printed unit."""

    table: int
    row: str
    metric: str
    measured: bool = False


@dataclass(frozen=True, kw_only=True)
class VariantValue:
    """A count of a variant that stands in no table, under the protocol of the claims; params in M, gmacs in G."""

    variant: Variant
    metric: str


@dataclass(frozen=True, kw_only=True)
class Operation:
    """``sum``, ``product``; of two: ``difference``, ``quotient``, ``change`` (first against second, in %)."""

    name: str
    operands: tuple[Expression, ...]


Expression = Number | Name | CellValue | VariantValue | Operation


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two expressions and how they should stand; ``equals`` means: rounds to the right side's printed decimals."""

    left: Expression
    relation: str
    right: Expression


@dataclass(frozen=True, kw_only=True)
class Combination:
    """``all`` of some checks, ``any`` of them, or ``not`` the one."""

    how: str
    checks: tuple[Check, ...]


Check = Comparison | Combination


@dataclass(frozen=True, kw_only=True)
class Formula:
    """An equation for a block's cost: built for each case, counted by operator, and compared exactly.

    ``arguments`` go to the python builder ``model``; a text among them that is a variable's name is its value.
    ``shape`` is the input's (B, C, H, W). ``counts`` are the operators whose sum ``equals`` should be.
    """

    model: str
    arguments: Mapping[str, Any]
    shape: tuple[Expression, ...]
    cases: tuple[Mapping[str, int], ...]
    counts: tuple[str, ...]
    equals: Expression


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence or equation with numbers in it. Either ``check``, or ``formula``, or ``cannot`` is given."""

    id: str
    line: int
    says: str
    check: Check | None = None
    formula: Formula | None = None
    cannot: str | None = None
    note: str | None = None
    spec_line: int = 0

    @property
    def kind(self) -> str:
        """``formula`` or ``sentence``."""
        return "formula" if self.formula is not None else "sentence"


@dataclass(frozen=True, kw_only=True)
class Claims:
    """All claims of a paper that were entered."""

    source: Source
    protocol: Protocol
    claims: tuple[Claim, ...]
    variants: Mapping[str, Variant] = field(default_factory=dict)
    path: Path = Path()


def load_claims(path: Path, tables: Mapping[int, Table]) -> Claims:
    """Read and check a paper's claims against its tables.

    Raises
    ------
    InputError
        With every mistake of the file, each as ``file:line: path: message``.
    """
    reader, root = Reader.open(path)
    claims = _claims(root, path, tables)
    reader.finish()
    return claims


def _claims(root: Node, path: Path, tables: Mapping[int, Table]) -> Claims:
    entries = root.keys(("schema", "source", "claims"), ("protocol", "variants"))
    if "schema" in entries and (version := entries["schema"].integer(1)) != SCHEMA:
        entries["schema"].problem(f"schema {version} is not known; this release reads schema {SCHEMA}")
    variants = read_variants(entries["variants"]) if "variants" in entries else {}
    found: dict[str, Claim] = {}
    for item in entries["claims"].items() if "claims" in entries else ():
        claim = _claim(item, _Reading(tables=tables, variants=variants))
        if claim.id in found:
            item.problem(f"a second claim {claim.id!r}")
        found.setdefault(claim.id, claim)
    return Claims(
        source=read_source(entries["source"]) if "source" in entries else Source(paper="", document=""),
        protocol=read_protocol(entries["protocol"]) if "protocol" in entries else Protocol(),
        claims=tuple(found.values()),
        variants=variants,
        path=path,
    )


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What names can mean where an expression is read."""

    tables: Mapping[int, Table]
    variants: Mapping[str, Variant]
    names: tuple[str, ...] = ()


def _claim(node: Node, reading: _Reading) -> Claim:
    entries = node.keys(("claim", "line", "says"), ("check", "formula", "cannot", "note"))
    given = [key for key in ("check", "formula", "cannot") if key in entries]
    if node.is_mapping and len(given) != 1:
        node.problem("a claim has one of 'check', 'formula' and 'cannot'")
    return Claim(
        id=entries["claim"].text() if "claim" in entries else "",
        line=entries["line"].integer(1) if "line" in entries else 1,
        says=entries["says"].text() if "says" in entries else "",
        check=_check(entries["check"], reading) if "check" in entries else None,
        formula=_formula(entries["formula"], reading) if "formula" in entries else None,
        cannot=entries["cannot"].choice(CANNOT) if "cannot" in entries else None,
        note=entries["note"].text() if "note" in entries else None,
        spec_line=node.line,
    )


def _check(node: Node, reading: _Reading) -> Check:
    if node.is_mapping and (how := next((key for key in COMBINATIONS if key in node.entries()), None)) is not None:
        entries = node.keys((how,))
        inside = [entries[how]] if how == "not" else list(entries[how].items())
        if not inside:
            entries[how].problem("needs at least one check")
        return Combination(how=how, checks=tuple(_check(item, reading) for item in inside))
    entries = node.keys((), (*_EXPRESSION, *RELATIONS))
    relations = [key for key in RELATIONS if key in entries]
    if node.is_mapping and len(relations) != 1:
        node.problem(f"a comparison has one of {', '.join(RELATIONS)}")
    relation = relations[0] if relations else "equals"
    right = _expression(entries[relation], reading) if relations else Number(text="0")
    left = _mapping(node, {key: value for key, value in entries.items() if key not in RELATIONS}, reading)
    return Comparison(left=left, relation=relation, right=right)


_EXPRESSION = (*OPERATIONS, "table", "row", "metric", "measured", "variant")


def _expression(node: Node, reading: _Reading) -> Expression:
    if node.is_mapping:
        return _mapping(node, node.keys((), _EXPRESSION), reading)
    text = node.text()
    if is_number(text):
        return Number(text=text)
    if text not in reading.names:
        known = f"; the names are {', '.join(reading.names)}" if reading.names else ""
        node.problem(f"must be a number or an expression, not {text!r}{known}")
    return Name(name=text)


def _mapping(node: Node, entries: Mapping[str, Node], reading: _Reading) -> Expression:
    """An operation, a cell or a variant's count: which it is shows in its keys."""
    nothing = Number(text="0")
    if not node.is_mapping:
        return nothing
    operations = [key for key in OPERATIONS if key in entries]
    if operations:
        if len(entries) != 1:
            node.problem(
                f"{operations[0]!r} stands alone, not beside {', '.join(sorted(set(entries) - {operations[0]}))}"
            )
        name = operations[0]
        operands = tuple(_expression(item, reading) for item in entries[name].items())
        if len(operands) != 2 if name in _PAIRS else not operands:
            entries[name].problem(f"takes {'two operands' if name in _PAIRS else 'at least one operand'}")
            return nothing
        return Operation(name=name, operands=operands)
    if "variant" in entries:
        if missing := {"metric"} - set(entries) or set(entries) - {"variant", "metric"}:
            node.problem(f"a variant's count has 'variant' and 'metric': see {', '.join(sorted(missing))}")
            return nothing
        name, metric = entries["variant"].text(), entries["metric"].choice(_COUNTED)
        if name not in reading.variants:
            entries["variant"].problem(f"unknown variant {name!r}{suggestion(name, reading.variants)}")
            return nothing
        return VariantValue(variant=reading.variants[name], metric=metric)
    if missing := {"table", "row", "metric"} - set(entries):
        node.problem(f"is no expression: a cell also needs {', '.join(sorted(missing))}")
        return nothing
    return _cell(entries, reading)


def _cell(entries: Mapping[str, Node], reading: _Reading) -> Expression:
    number, row, metric = entries["table"].integer(1), entries["row"].text(), entries["metric"].text()
    table = reading.tables.get(number)
    if table is None:
        entries["table"].problem(f"no table {number}; there are {', '.join(map(str, reading.tables))}")
        return Number(text="0")
    rows = [item.model for item in table.rows]
    metrics = [column.metric for column in table.columns]
    if row not in rows:
        entries["row"].problem(f"no row {row!r} in table {number}{suggestion(row, rows)}")
    if metric not in metrics:
        entries["metric"].problem(f"table {number} has no column {metric!r}{suggestion(metric, metrics)}")
    measured = "measured" in entries and entries["measured"].truth()
    return CellValue(table=number, row=row, metric=metric, measured=measured)


def _formula(node: Node, reading: _Reading) -> Formula | None:
    required = ("model", "shape", "cases", "counts", "equals")
    entries = node.keys(required, ("arguments",))
    if any(key not in entries for key in required):
        return None
    cases = [{name: value.integer(1) for name, value in case.entries().items()} for case in entries["cases"].items()]
    if not cases:
        entries["cases"].problem("needs at least one case")
        return None
    for case, place in zip(cases[1:], list(entries["cases"].items())[1:], strict=True):
        if set(case) != set(cases[0]):
            place.problem(f"must give {', '.join(cases[0])}, as the first case does")
            return None
    inside = _Reading(tables={}, variants={}, names=tuple(cases[0]))
    arguments = entries["arguments"].plain() if "arguments" in entries else {}
    if not isinstance(arguments, dict):
        entries["arguments"].problem("must be a mapping")
        arguments = {}
    shape = tuple(_expression(item, inside) for item in entries["shape"].items())
    if len(shape) != 4:
        entries["shape"].problem("has four sizes: batch, channels, height, width")
    return Formula(
        model=entries["model"].text(),
        arguments=arguments,
        shape=shape,
        cases=tuple(cases),
        counts=tuple(item.text() for item in entries["counts"].items()),
        equals=_expression(entries["equals"], inside),
    )


def comparisons(check: Check | None) -> Iterator[Comparison]:
    """Every comparison of a check."""
    if isinstance(check, Comparison):
        yield check
    elif isinstance(check, Combination):
        for item in check.checks:
            yield from comparisons(item)


def leaves(expression: Expression) -> Iterator[Expression]:
    """Every number, name, cell and count of an expression."""
    if isinstance(expression, Operation):
        for operand in expression.operands:
            yield from leaves(operand)
    else:
        yield expression


def claims_of(folder: Path, tables: Mapping[int, Table]) -> Claims:
    """The claims of a project's folder of tables.

    Raises
    ------
    InputError
        When there is no ``claims.yaml``, or it has mistakes.
    """
    path = folder / "claims.yaml"
    if not path.is_file():
        raise InputError([Problem(file=str(path), line=0, path="", message="there is no such file")])
    return load_claims(path, tables)
