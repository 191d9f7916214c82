"""Differences and tolerances, in decimal: in floats 1.21 - 1.10 lies outside a tolerance of 0.11 by luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal, InvalidOperation

from repro.errors import UsageError
from repro.spec.metrics import METRICS
from repro.spec.reader import suggestion


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How far a value may be off: absolute, in the column's printed unit, or relative to the printed value."""

    value: Decimal
    relative: bool = False

    def allows(self, difference: Decimal, reported: Decimal) -> bool:
        """Whether a measured value that is off by ``difference`` is near enough to ``reported``."""
        limit = self.value * abs(reported) / 100 if self.relative else self.value
        return abs(difference) <= limit

    def __str__(self) -> str:
        return f"{self.value:f}{'%' if self.relative else ''}"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """One bound for all metrics, and others for some."""

    default: Bound = Bound(value=Decimal(0))
    metrics: Mapping[str, Bound] = field(default_factory=dict)

    def of(self, metric: str) -> Bound:
        """The bound of one metric."""
        return self.metrics.get(metric, self.default)

    def __str__(self) -> str:
        parts = [f"{name}={bound}" for name, bound in self.metrics.items()]
        return ",".join([str(self.default), *parts] if self.default.value or not parts else parts)


def parse_tolerance(text: str) -> Tolerance:
    """Read ``0.1``, ``5%``, ``top1=0.1,params=1%`` or ``0.1,top1=0.5``.

    Raises
    ------
    UsageError
        For what is no number, negative, not finite, or names a metric that does not exist.
    """
    default, metrics = None, {}
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        name = name.strip()
        if not equals:
            if default is not None:
                raise UsageError(f"--tolerance {text!r}: two values for all metrics")
            default = _bound(number, text)
            continue
        compared = [key for key, metric in METRICS.items() if not metric.descriptive]
        if name not in compared:
            raise UsageError(f"--tolerance {text!r}: unknown metric {name!r}{suggestion(name, compared)}")
        if name in metrics:
            raise UsageError(f"--tolerance {text!r}: two values for {name}")
        metrics[name] = _bound(number, text)
    return Tolerance(default=default or Bound(value=Decimal(0)), metrics=metrics)


def _bound(text: str, whole: str) -> Bound:
    number = text.strip()
    try:
        value = Decimal(number.removesuffix("%").strip())
    except InvalidOperation:
        raise UsageError(f"--tolerance {whole!r}: {number!r} is not a number") from None
    if not value.is_finite() or value < 0:
        raise UsageError(f"--tolerance {whole!r}: {number!r} must be a finite number of at least 0")
    return Bound(value=value, relative=number.endswith("%"))


def exact(value: float | int) -> Decimal:
    """The decimal number that a measured value prints as; not its binary expansion."""
    return Decimal(repr(value))


def decimals(printed: str) -> int:
    """How many decimals a printed number has."""
    return len(printed.partition(".")[2])


def rounds_to(value: Decimal, printed: str) -> bool:
    """Whether ``value`` rounds, half away from zero, to the printed string at its printed decimals."""
    return value.quantize(Decimal(1).scaleb(-decimals(printed)), ROUND_HALF_UP) == Decimal(printed)


def truncates_to(value: Decimal, printed: str) -> bool:
    """Whether ``value`` cut off at the printed decimals is the printed string."""
    return value.quantize(Decimal(1).scaleb(-decimals(printed)), ROUND_DOWN) == Decimal(printed)
