"""Latencies measured elsewhere: a CSV or JSON file in which every field is filled in, or says unknown."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import InputError, Problem, UsageError
from repro.results.latency import COMPUTE_UNITS, ESSENTIAL, STATISTICS, UNKNOWN, Latency, value_of
from repro.spec.reader import suggestion

#: Every field of a line, in the order of the documentation.
FIELDS = (
    "variant", "value", "unit", "statistic", "samples", "warmup", "rounds", "iterations",
    "device_model", "device_identifier", "chip", "os_version", "os_build", "thermal_state", "low_power_mode",
    "compute_units", "placement", "precision", "input_type", "input_shape", "target", "package_hash",
    "coremltools", "xcode", "date", "how",
)  # fmt: skip
UNITS = {"ms": 1.0, "us": 1e-3, "s": 1e3}
_ALLOWED = {
    "unit": tuple(UNITS),
    "statistic": STATISTICS,
    "compute_units": COMPUTE_UNITS,
    "precision": ("float16", "float32"),
    "input_type": ("tensor", "image"),
    "target": ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26", UNKNOWN),
}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line: a variant's latency in milliseconds, or that it failed."""

    variant: str
    value: float | None
    failed: bool
    latency: Latency
    input_size: tuple[int, int]
    batch_size: int


def read(path: Path, variants: Collection[str]) -> list[Item]:
    """Read a file of latencies.

    Parameters
    ----------
    path
        ``.csv`` with a head of :data:`FIELDS`, or ``.json``: a list of objects with them, or an object whose
        ``latencies`` are such a list.
    variants
        Those that a line may name.

    Raises
    ------
    UsageError
        When the file cannot be read.
    InputError
        With every mistake of every line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    if path.suffix not in (".csv", ".json"):
        raise UsageError(f"{path}: expected a .csv or a .json file")
    lines = _csv(path, text) if path.suffix == ".csv" else _json(path, text)
    problems: list[Problem] = []
    found = []
    source = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    for number, where, line in lines:
        item = _Line(path, number, where, line, problems).item(variants, source)
        if item is not None:
            found.append(item)
    if problems:
        raise InputError(problems)
    if not found:
        raise UsageError(f"{path}: no latency in it")
    return found


def _csv(path: Path, text: str) -> list[tuple[int, str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    found: list[tuple[int, str, Mapping[str, Any]]] = []
    try:
        if not reader.fieldnames:
            raise UsageError(f"{path}: no latency in it")
        for line in reader:
            if None in line:
                raise InputError([_problem(path, reader.line_num, "", "more cells than the head has fields")])
            found.append((reader.line_num, "", {name: value for name, value in line.items() if value is not None}))
    except csv.Error as error:
        raise InputError([_problem(path, reader.line_num, "", f"no CSV: {error}")]) from None
    return found


def _json(path: Path, text: str) -> list[tuple[int, str, Mapping[str, Any]]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError([_problem(path, getattr(error, "lineno", 0), "", f"no JSON: {error}")]) from None
    items = data.get("latencies") if isinstance(data, dict) else data
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError([_problem(path, 1, "", "expected a list of objects, or an object with a list 'latencies'")])
    return [(0, f"latencies[{index}]", item) for index, item in enumerate(items)]


def _problem(path: Path, line: int, where: str, message: str) -> Problem:
    return Problem(file=str(path), line=line, path=where, message=message)


class _Line:
    """One line, its fields read by type; every mistake goes to one list."""

    def __init__(self, path: Path, number: int, where: str, line: Mapping[str, Any], problems: list[Problem]) -> None:
        self._path, self._number, self._where, self._line, self._problems = path, number, where, line, problems
        self._before = len(problems)

    def item(self, variants: Collection[str], source: Mapping[str, Any]) -> Item | None:
        for name in self._line:
            if name not in FIELDS:
                self._say(name, f"unknown field{suggestion(str(name), FIELDS)}")
        missing = [name for name in FIELDS if self._line.get(name) in (None, "")]
        for name in missing:
            extra = "" if name in (*ESSENTIAL, "variant", "unit") else "; write unknown where it is not known"
            self._say(name, f"is missing{extra}")
        if missing:
            return None
        variant = self._text("variant")
        if variant not in variants:
            self._say("variant", f"no variant {variant!r} in the tables{suggestion(variant, variants)}")
        for name, allowed in _ALLOWED.items():
            if self._text(name) not in allowed:
                self._say(name, f"{self._text(name)!r} is not one of {', '.join(allowed)}")
        for name in ESSENTIAL:
            if self._text(name) == UNKNOWN:
                self._say(name, "must be known")
        if not _DATE.fullmatch(self._text("date")):
            self._say("date", f"{self._text('date')!r} is no date as 2026-01-31")
        shape = self._shape()
        factor = UNITS.get(self._text("unit"), 1.0)
        samples = self._samples(factor)
        failed = self._text("value").lower() == "failed"
        value = (
            None if failed or self._text("value") == UNKNOWN else self._number_of("value", self._line["value"], factor)
        )
        if value is None and not failed and self._text("samples") == UNKNOWN and self._text("value") == UNKNOWN:
            self._say("value", "neither value nor samples are known")
        counts = {name: self._count(name) for name in ("warmup", "rounds", "iterations")}
        if len(self._problems) > self._before:
            return None
        assert shape is not None
        statistic = self._text("statistic")
        if samples is not None and value is not None:
            computed = value_of([x for part in samples for x in part], statistic)
            if not math.isclose(computed, value, rel_tol=_TOLERANCE, abs_tol=5e-3):
                self._say("value", f"is {value:g} ms, the {statistic} of the samples {computed:g} ms")
                return None
        latency = Latency(
            **{name: self._text(name) for name in (
                "device_model", "device_identifier", "chip", "os_version", "os_build", "thermal_state",
                "low_power_mode", "compute_units", "precision", "input_type", "target", "package_hash", "coremltools",
                "xcode", "date", "how")},
            statistic=statistic,
            placement=self._placement(),
            input_shape=shape,
            samples=UNKNOWN if samples is None else samples,
            warmup=counts["warmup"],
            rounds=counts["rounds"],
            iterations=counts["iterations"],
            check=UNKNOWN,
            imported={**source, "line": self._number or self._where},
        )  # fmt: skip
        height, width = shape[-2:]
        batch = shape[0] if len(shape) == 4 else 1
        return Item(variant=variant, value=value, failed=failed, latency=latency, input_size=(height, width),
                    batch_size=batch)  # fmt: skip

    def _say(self, name: str, message: str) -> None:
        where = f"{self._where}.{name}" if self._where else name
        self._problems.append(_problem(self._path, self._number, where, message))

    def _text(self, name: str) -> str:
        return str(self._line[name]).strip()

    def _number_of(self, name: str, value: Any, factor: float) -> float | None:
        try:
            number = float(value)
        except (TypeError, ValueError):
            self._say(name, f"{value!r} is no number")
            return None
        if isinstance(value, bool) or not math.isfinite(number) or number <= 0:
            self._say(name, f"{value} is no latency: it must be above zero and finite")
            return None
        return number * factor

    def _samples(self, factor: float) -> tuple[tuple[float, ...], ...] | None:
        """``1.1;1.2|1.0;1.3`` or lists: rounds, in the order measured; None when unknown."""
        given = self._line["samples"]
        if isinstance(given, str):
            if given.strip() == UNKNOWN:
                return None
            given = [part.split(";") for part in given.split("|")]
        if not isinstance(given, list) or not given:
            self._say("samples", "expected numbers, as 1.1;1.2|1.0;1.3 (rounds behind a bar), or unknown")
            return None
        rounds = given if all(isinstance(part, list) for part in given) else [given]
        found = [[self._number_of("samples", value, factor) for value in part] for part in rounds]
        if any(value is None for part in found for value in part) or not all(found):
            return None
        return tuple(tuple(value for value in part if value is not None) for part in found)

    def _shape(self) -> tuple[int, ...] | None:
        given = self._line["input_shape"]
        parts = given if isinstance(given, list) else str(given).strip().split("x")
        try:
            shape = tuple(int(part) for part in parts)
        except (TypeError, ValueError):
            shape = ()
        if len(shape) not in (2, 4) or min(shape) < 1:
            self._say("input_shape", f"{given!r} is no shape as 1x3x224x224 (an image: 224x224)")
            return None
        return shape

    def _count(self, name: str) -> int | str:
        text = self._text(name)
        if text == UNKNOWN:
            return UNKNOWN
        if not text.isascii() or not text.isdigit():
            self._say(name, f"{text!r} is no count, and not unknown")
            return UNKNOWN
        return int(text)

    def _placement(self) -> Mapping[str, Any] | str:
        given = self._line["placement"]
        return given if isinstance(given, str) else dict(given)
