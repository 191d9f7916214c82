"""What a latency record must say to be believed, and what is computed from its samples.

A latency without its device, system, package and samples is a rumour: no record of one can be made. What could not be
read is said to be unknown, in so many words; what defines the number must be known.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from repro.errors import ReproError

UNKNOWN = "unknown"
COMPUTE_UNITS = ("all", "cpu_and_ne", "cpu_and_gpu", "cpu_only")
STATISTICS = ("median", "mean", "minimum")
#: A first quarter this much quicker (or slower) than the last is told: on a phone it can double within seconds.
DRIFT = 1.1
#: Fields that no record may leave unknown: without them a number is of nothing.
ESSENTIAL = ("device_model", "precision", "input_type", "input_shape", "compute_units", "statistic", "date", "how")


class UnbelievableError(ReproError, ValueError):
    """A latency record that lacks what one needs to believe it."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Everything that a latency record carries beside its value; ``unknown`` where a source does not say."""

    device_model: str
    """As it is sold: iPhone 13, MacBook Air (M2, 2022); or the identifier, where no such name is known."""
    device_identifier: str
    """As the system names it: iPhone14,5."""
    os_version: str
    os_build: str
    chip: str
    coremltools: str
    xcode: str
    package_hash: str
    """:meth:`repro.coreml.package.Package.content_hash`."""
    precision: str
    input_type: str
    """tensor or image."""
    input_shape: tuple[int, ...]
    target: str
    """The deployment target: iOS15 to iOS18."""
    compute_units: str
    """Asked for: one of :data:`COMPUTE_UNITS`."""
    placement: Mapping[str, Any] | str
    """Got: operations and cost by device (see :mod:`repro.coreml.latency`), or unknown."""
    warmup: int | str
    rounds: int | str
    iterations: int | str
    """In each round."""
    samples: tuple[tuple[float, ...], ...] | str
    """Milliseconds, by round."""
    statistic: str
    thermal_state: str
    """Before and after."""
    low_power_mode: str
    date: str
    how: str
    """Who measured with what."""
    check: str
    """What holding the package against PyTorch gave: passed, or unknown for a value measured elsewhere."""
    imported: Mapping[str, Any] | None
    """Where an imported value was read; None for one that this program measured itself."""

    def __post_init__(self) -> None:
        problems = [f"{name} is unknown" for name in ESSENTIAL if getattr(self, name) in (UNKNOWN, "", ())]
        if self.compute_units not in COMPUTE_UNITS:
            problems.append(f"compute_units is {self.compute_units!r}, not one of {', '.join(COMPUTE_UNITS)}")
        if self.statistic not in STATISTICS:
            problems.append(f"statistic is {self.statistic!r}, not one of {', '.join(STATISTICS)}")
        if self.imported is None:
            own = [name for name in ("package_hash", "samples", "warmup", "rounds", "iterations", "os_version", "check")
                   if getattr(self, name) == UNKNOWN]  # fmt: skip
            problems += [f"{name} is unknown, in a record of this program's own" for name in own]
        if not isinstance(self.samples, str):
            flat = self.flat
            if not flat or not all(math.isfinite(value) and value > 0 for value in flat):
                problems.append("samples are none, or not all above zero and finite")
        if problems:
            raise UnbelievableError("a latency record cannot be believed: " + "; ".join(problems))

    @property
    def flat(self) -> list[float]:
        """All samples in order."""
        return [] if isinstance(self.samples, str) else [value for part in self.samples for value in part]

    def details(self) -> dict[str, Any]:
        """As a record keeps it, with what follows from the samples."""
        data = asdict(self)
        for name in ("input_shape", "samples"):
            value = getattr(self, name)
            data[name] = value if isinstance(value, str) else [list(x) if isinstance(x, tuple) else x for x in value]
        return {**data, **({} if isinstance(self.samples, str) else summary(self.samples, self.statistic))}


def value_of(samples: Sequence[float], statistic: str) -> float:
    """The statistic of samples in milliseconds."""
    if statistic == "minimum":
        return min(samples)
    return float(statistics.median(samples) if statistic == "median" else statistics.fmean(samples))


def summary(rounds: Sequence[Sequence[float]], statistic: str) -> dict[str, Any]:
    """Spread and drift of samples in milliseconds.

    Returns
    -------
    dict
        ``spread``: minimum, quartiles, maximum. ``by_round``: the statistic of each round. ``drift``: by how much the
        last quarter of the first round is slower than its first quarter (1.0 not at all; None with fewer than 8).
    """
    flat = sorted(value for part in rounds for value in part)
    quartiles = statistics.quantiles(flat, n=4, method="inclusive") if len(flat) > 1 else [flat[0]] * 3
    first = list(rounds[0])
    quarter = len(first) // 4
    drift = statistics.median(first[-quarter:]) / statistics.median(first[:quarter]) if quarter >= 2 else None
    return {
        "spread": {"minimum": flat[0], "lower": quartiles[0], "median": quartiles[1], "upper": quartiles[2],
                   "maximum": flat[-1]},
        "by_round": [value_of(part, statistic) for part in rounds],
        "drift": drift,
    }  # fmt: skip


def check_details(details: Mapping[str, Any]) -> None:
    """Refuse the details of a latency record that do not say everything.

    Raises
    ------
    UnbelievableError
        Naming what is missing.
    """
    names = [item.name for item in fields(Latency)]
    missing = [name for name in names if name not in details]
    if missing:
        raise UnbelievableError(f"a latency record cannot be made without {', '.join(missing)}")
    rounds, shape = details["samples"], details["input_shape"]
    Latency(
        **{
            **{name: details[name] for name in names},
            "samples": rounds if isinstance(rounds, str) else tuple(tuple(part) for part in rounds),
            "input_shape": tuple(shape),
        }
    )
