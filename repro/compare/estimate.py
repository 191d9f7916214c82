"""An estimate of latency from a program's bytes and operations, fitted to what the paper prints.

It is no measurement: it says what latencies like the paper's would be, if this program behaved as most of the paper's
do. What it is worth is said beside it: its error on families that it was not fitted to, and that of two simpler
models. Which families do not follow it at all, and which printed latencies lie far outside its interval, is shown too.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repro.compare.latency import Beside
from repro.errors import UsageError
from repro.measure.needs import input_size_of
from repro.spec.tables import InputSize, Row, Table

#: What the fit sees of a program, in milliseconds per unit once fitted.
TERMS = ("constant", "activations (MB)", "weights (MB)", "MACs (G)", "layout (MB)", "reductions (MB)")
MACS_TERMS = ("constant", "MACs (G)")
LEVEL = 0.90
_Z = statistics.NormalDist().inv_cdf(0.5 + LEVEL / 2)
_ROUNDS = 30
#: The fewest families, without which leaving one out says nothing.
FEWEST = 5


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One printed latency and the program behind it."""

    variant: str
    input_size: InputSize
    where: str
    """Table and row."""
    latency: float
    """Milliseconds."""
    program: Mapping[str, Any]
    """What :func:`repro.coreml.features.features_of` counts."""

    @property
    def family(self) -> str:
        """Models of one family share their errors: one must not vouch for another."""
        return family_of(self.variant)


def family_of(variant: str) -> str:
    """The family in a variant's name: iformer of iformer_m_hybrid, mobilenetv2 of mobilenetv2_100."""
    name = re.match(r"mobile_former|[a-z]+?(?:v\d+)?(?=[\d_]|$)", variant)
    return name[0] if name else variant


def terms(program: Mapping[str, Any], names: Sequence[str] = TERMS) -> list[float]:
    """A program as the fit sees it."""
    activation = program["activation_bytes"]
    values = {
        "constant": 1.0,
        "activations (MB)": sum(activation.values()) / 1e6,
        "weights (MB)": program["weight_bytes"] / 1e6,
        "MACs (G)": sum(program["macs"].values()) / 1e9,
        "layout (MB)": activation.get("layout", 0) / 1e6,
        "reductions (MB)": activation.get("reduce", 0) / 1e6,
    }
    return [values[name] for name in names]


def fit(rows: Sequence[Sequence[float]], latencies: Sequence[float]) -> list[float]:
    """Non-negative coefficients with the least sum of relative errors.

    Errors count by size and not by square (least squares, weighted anew some times), so that families which follow no
    such model do not bend it for all others.
    """
    import numpy as np
    from scipy.optimize import nnls

    x, y = np.asarray(rows, dtype=np.float64), np.asarray(latencies, dtype=np.float64)
    relative = x / y[:, None]
    weights = np.ones(len(y))
    found = np.zeros(x.shape[1])
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        found, _ = nnls(relative * root[:, None], root)
        weights = 1 / np.maximum(np.abs(relative @ found - 1), 0.02)
    return [float(value) for value in found]


@dataclass(frozen=True, kw_only=True)
class Error:
    """Errors of predictions for families that were left out, relative to what is printed."""

    median: float
    ninth_decile: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One variant's estimate, in milliseconds, with its interval."""

    variant: str
    input_size: InputSize
    value: float
    low: float
    high: float
    where: str = ""
    printed: float | None = None
    far: bool = False
    """Whether what is printed lies outside an interval twice as wide."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The fit and what it is worth."""

    coefficients: Mapping[str, float]
    left_out: tuple[Estimate, ...]
    """Each printed latency, estimated by a fit that has not seen its family."""
    error: Error
    baselines: Mapping[str, Error]
    failing: Mapping[str, float]
    """Families whose printed latencies are in the median outside the interval, with the ratio printed to estimated."""
    bias: float
    spread: float
    """Of the logarithm of printed to estimated: its median and its deviation (from the median absolute deviation)."""

    def estimate(self, variant: str, input_size: InputSize, program: Mapping[str, Any]) -> Estimate:
        """The estimate of any program; of a printed one, that of the fit which has not seen its family."""
        for item in self.left_out:
            if (item.variant, item.input_size) == (variant, input_size):
                return item
        value = sum(a * b for a, b in zip(self.coefficients.values(), terms(program), strict=True))
        low, high = _interval(value, self.bias, self.spread)
        return Estimate(variant=variant, input_size=input_size, value=value, low=low, high=high)


def model_of(printed: Sequence[Printed]) -> Model:
    """Fit to printed latencies, and judge by leaving out one family at a time.

    Raises
    ------
    UsageError
        When they are of too few families.
    """
    if len({item.family for item in printed}) < FEWEST:
        raise UsageError(
            f"the printed latencies with a program on record are of {len({item.family for item in printed})} families, "
            f"an estimate needs {FEWEST}"
        )
    rows = [terms(item.program) for item in printed]
    latencies = [item.latency for item in printed]
    left = _leave_out(printed, rows)
    ratios = [math.log(item.latency / value) for item, value in zip(printed, left, strict=True)]
    bias = statistics.median(ratios)
    spread = 1.4826 * statistics.median(abs(ratio - bias) for ratio in ratios)
    estimates = []
    for item, value, ratio in zip(printed, left, ratios, strict=True):
        low, high = _interval(value, bias, spread)
        far = abs(ratio - bias) > 2 * _Z * spread
        estimates.append(
            Estimate(variant=item.variant, input_size=item.input_size, value=value, low=low, high=high,
                     where=item.where, printed=item.latency, far=far)
        )  # fmt: skip
    families: dict[str, list[float]] = {}
    for item, ratio in zip(printed, ratios, strict=True):
        families.setdefault(item.family, []).append(ratio)
    failing = {name: statistics.median(found) for name, found in families.items()}
    macs = _leave_out(printed, [terms(item.program, MACS_TERMS) for item in printed])
    constant = [
        statistics.median(other.latency for other in printed if other.family != item.family) for item in printed
    ]
    return Model(
        coefficients=dict(zip(TERMS, fit(rows, latencies), strict=True)),
        left_out=tuple(estimates),
        error=_error(left, latencies),
        baselines={"MACs only": _error(macs, latencies), "a constant": _error(constant, latencies)},
        failing={
            name: math.exp(ratio)
            for name, ratio in sorted(failing.items(), key=lambda pair: -abs(pair[1] - bias))
            if abs(ratio - bias) > _Z * spread
        },
        bias=bias,
        spread=spread,
    )


def _leave_out(printed: Sequence[Printed], rows: Sequence[Sequence[float]]) -> list[float]:
    """Each row's prediction by a fit to all other families."""
    by_family: dict[str, list[float]] = {}
    for family in dict.fromkeys(item.family for item in printed):
        kept = [index for index, item in enumerate(printed) if item.family != family]
        by_family[family] = fit([rows[index] for index in kept], [printed[index].latency for index in kept])
    return [
        sum(a * b for a, b in zip(by_family[item.family], row, strict=True))
        for item, row in zip(printed, rows, strict=True)
    ]


def _error(values: Sequence[float], latencies: Sequence[float]) -> Error:
    errors = sorted(abs(value / latency - 1) for value, latency in zip(values, latencies, strict=True))
    return Error(
        median=statistics.median(errors), ninth_decile=statistics.quantiles(errors, n=10, method="inclusive")[-1]
    )


def _interval(value: float, bias: float, spread: float) -> tuple[float, float]:
    """Where printed latencies of such a program lie in nine cases of ten, if they follow the model at all."""
    return value * math.exp(bias - _Z * spread), value * math.exp(bias + _Z * spread)


#: Programs on record, by variant and input size.
Programs = Mapping[tuple[str, InputSize], Mapping[str, Any]]


def estimated(table: Table, rows: Sequence[Row], model: Model, programs: Programs) -> Beside:
    """The estimates of a table's rows as a column that is never compared."""
    values = {}
    for row in rows:
        if row.variant is None:
            continue
        size = input_size_of(table.protocol_of(row, "latency"))
        if (program := programs.get((row.variant.id, size))) is not None:
            values[row.model] = model.estimate(row.variant.id, size, program).value
    return Beside(
        key="estimate",
        header="estimate (not measured)",
        kind="estimate",
        values=values,
        records={},
        notes=(said(model),),
    )


def said(model: Model) -> str:
    """What the estimate is worth, in one sentence or two."""
    simpler = ", ".join(f"{100 * error.median:.0f}% for {name}" for name, error in model.baselines.items())
    failing = ", ".join(f"{name} ({ratio:.1f} times)" for name, ratio in model.failing.items()) or "none"
    return (
        f"Estimated from bytes and operations of the ML program by a fit to {len(model.left_out)} printed latencies; "
        f"median error {100 * model.error.median:.0f}% on families left out ({simpler}); "
        f"families that do not follow it, with printed to estimated: {failing}."
    )
