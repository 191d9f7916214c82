"""The seam to whatever predicts: what a latency measurement asks of a backend, and what it is told.

Light: the dataclasses and protocols import nothing. :mod:`repro.coreml.apple` is the backend of Apple's framework, on
this Mac or on a connected iPhone; another one is named with ``repro latency --backend module:factory``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from repro.errors import ReproError

#: What a worker calls with a job's payload.
TASK = "repro.coreml.timing:measure"
NEURAL_ENGINE = "neural_engine"
DEVICES = (NEURAL_ENGINE, "gpu", "cpu", "unknown")
#: Ops that no device executes, or that only change a type at the model's edges.
_QUIET = frozenset({"const", "cast"})


class BackendError(ReproError):
    """What a backend cannot do, with what to do about it."""


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """Which device predicts, and under which system; ``unknown`` where it does not say."""

    model: str
    identifier: str
    chip: str
    os_version: str
    os_build: str
    coremltools: str
    xcode: str


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What may throttle the device at one moment; ``unknown`` where it cannot be read."""

    thermal_state: str
    low_power_mode: str


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where one operation runs."""

    name: str
    type: str
    device: str
    """One of :data:`DEVICES`."""
    supported: tuple[str, ...]
    cost: float | None
    """The framework's own weight of the operation, of 1.0 for the whole model."""


class Session(Protocol):
    """A package loaded on a device."""

    def predict(self, inputs: Mapping[str, Any]) -> float:
        """One prediction; returns the milliseconds of the Core ML call alone."""

    def placement(self) -> Sequence[Placed]:
        """Where each operation runs, as the compute plan has it."""

    def conditions(self) -> Conditions:
        """Thermal state and low-power mode now."""


class LatencyBackend(Protocol):
    """Where predictions run."""

    def device(self) -> DeviceInfo:
        """The device.

        Raises
        ------
        BackendError
            There is none, or it is not ready; the message says what to do.
        """

    def session(self, package: Path, compute_units: str) -> AbstractContextManager[Session]:
        """Load a package; compute units are all, cpu_and_ne, cpu_and_gpu or cpu_only.

        Raises
        ------
        BackendError
            The framework does not load it.
        """


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often a package is run."""

    warmup: int = 10
    rounds: int = 3
    iterations: int = 50
    pause: float = 1.0
    """Seconds between two rounds."""


def placement_summary(placed: Sequence[Placed]) -> dict[str, Any]:
    """Operations and cost by device, and every operation off the Neural Engine."""
    counted = [item for item in placed if item.type != "const"]
    by_device = {name: sum(item.device == name for item in counted) for name in DEVICES}
    cost = {name: sum(item.cost or 0.0 for item in counted if item.device == name) for name in DEVICES}
    return {
        "operations": {name: count for name, count in by_device.items() if count},
        "cost": {name: round(cost[name], 6) for name, count in by_device.items() if count},
        "off_neural_engine": [
            {"name": item.name, "type": item.type, "device": item.device, "cost": item.cost,
             "supported": list(item.supported)}
            for item in counted if item.device != NEURAL_ENGINE
        ],
    }  # fmt: skip


def fallen(placement: Mapping[str, Any] | str, compute_units: str) -> str | None:
    """One loud line where operations fell off a Neural Engine that was asked for; None where none did."""
    if isinstance(placement, str) or compute_units not in ("all", "cpu_and_ne"):
        return None
    off = [
        item for item in placement["off_neural_engine"] if item["type"] not in _QUIET and item["device"] != "unknown"
    ]
    if not off:
        return None
    cost = sum(item["cost"] or 0.0 for item in off)
    kinds: dict[str, int] = {}
    for item in off:
        kinds[f"{item['type']} on {item['device']}"] = kinds.get(f"{item['type']} on {item['device']}", 0) + 1
    most = sorted(kinds.items(), key=lambda pair: -pair[1])
    listed = ", ".join(f"{count} {kind}" for kind, count in most[:4]) + (", ..." if len(most) > 4 else "")
    total = sum(placement["operations"].values())
    return f"OFF THE NEURAL ENGINE: {len(off)} of {total} operations, {100 * cost:.0f}% of the cost: {listed}"
