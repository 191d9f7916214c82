"""A phone behind the seam of repro.coreml.latency: what it says is shaped as a phone says it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from repro.coreml.latency import BackendError, Conditions, DeviceInfo, Placed
from repro.coreml.package import Package


class Phone:
    """An iPhone 13 (or another ``model``) that gets slower after some predictions, as a warm one does."""

    def __init__(self, model: str = "iPhone 13", chip: str = "A15 Bionic") -> None:
        self.model, self.chip = model, chip

    def device(self) -> DeviceInfo:
        return DeviceInfo(
            model=self.model, identifier="iPhone14,5", chip=self.chip, os_version="iOS 17.5.1", os_build="21F90",
            coremltools="9.0", xcode="15.4 Build version 15F31d",
        )  # fmt: skip

    @contextmanager
    def session(self, package: Path, compute_units: str) -> Iterator[Session]:
        yield Session(Package.open(package), compute_units)


class Session:
    def __init__(self, package: Package, compute_units: str) -> None:
        self.package, self.compute_units = package, compute_units
        self.variant = package.metadata["repro.variant"]
        self.calls = itertools.count()

    def predict(self, inputs: Mapping[str, Any]) -> float:
        feature = self.package.inputs[0]
        value = inputs[feature.name]
        assert isinstance(value, np.ndarray)
        assert value.shape == feature.shape
        if self.variant == "hangs_here":
            time.sleep(600)
        if self.variant == "refused":
            raise BackendError("cannot predict: Error computing NN outputs.")
        call = next(self.calls)
        warm = 0.5 if self.variant == "line_16" and call > 10 else 0.1 if call >= 20 else 0.0
        return 1.0 + warm + 0.001 * (call % 5)

    def placement(self) -> Sequence[Placed]:
        operations = self.package.function().block.operations
        off = "relu" if self.variant == "line_16" else ""
        return [
            Placed(
                name=op.outputs[0].name,
                type=op.type,
                device="unknown" if op.type == "const" else "cpu" if op.type in ("cast", off) else "neural_engine",
                supported=("cpu", "neural_engine"),
                cost=None if op.type == "const" else 0.125,
            )
            for op in operations
        ]

    def conditions(self) -> Conditions:
        return Conditions(thermal_state="nominal", low_power_mode="off")


def tablet() -> Phone:
    return Phone(model="iPad mini (6th generation)")


def absent() -> Phone:
    raise BackendError("measuring on an iPhone needs a connected iPhone: connect by cable, unlock, trust this Mac")
