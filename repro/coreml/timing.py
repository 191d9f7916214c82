"""Time one package through a backend: what a worker does. It runs alone and can be killed."""

from __future__ import annotations

import importlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from repro.coreml.errors import PackageError
from repro.coreml.latency import LatencyBackend, Timing, placement_summary
from repro.coreml.package import Feature, Package
from repro.errors import UsageError
from repro.results.record import canonical

_backends: dict[str, LatencyBackend] = {}


def backend_of(name: str, options: dict[str, Any]) -> LatencyBackend:
    """The backend that module:factory names; the factory takes ``options`` as keywords.

    A worker keeps it from one package to the next: starting the runner on a phone takes a minute.

    Raises
    ------
    UsageError
        When there is no such factory.
    """
    known = canonical([name, options])
    if known in _backends:
        return _backends[known]
    module, _, factory = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--backend {name}: {error}") from None
    _backends[known] = made(**options)
    return _backends[known]


def inputs_of(package: Package, seed: int = 0) -> dict[str, Any]:
    """Seeded inputs as Core ML takes them: float32 arrays, and PIL images where the package wants images.

    Raises
    ------
    PackageError
        For an input of another kind.
    """
    generator = np.random.default_rng(seed)
    return {feature.name: _input(package, feature, generator) for feature in package.inputs}


def _input(package: Package, feature: Feature, generator: np.random.Generator) -> Any:
    if feature.kind == "image":
        from PIL import Image

        height, width = feature.shape or (0, 0)
        gray = (feature.colour or "").startswith("gray")
        shape = (height, width) if gray else (height, width, 3)
        return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
    if feature.kind != "tensor" or not feature.shape or not (feature.dtype or "").startswith("float"):
        raise PackageError(f"{package.shown}: input '{feature.name}' is no image and no float tensor")
    return generator.standard_normal(feature.shape, dtype=np.float32)


def measure(payload: dict[str, Any]) -> dict[str, Any]:
    """Load a package, warm up, run the rounds, and read what may throttle before and after.

    Without a path only the device is told; a package that it has a record of (``have``) is not timed again.

    Returns
    -------
    dict
        ``device``, ``samples`` (milliseconds by round), ``warmup`` (those that do not count), ``placement``,
        ``conditions`` (before and after) and ``input_type`` with ``input_shape``.
    """
    backend = backend_of(payload["backend"], payload["options"])
    device = asdict(backend.device())
    if payload["path"] is None:
        return {"device": device}
    if device["model"] in payload["have"]:
        return {"device": device, "on_record": True}
    timing = Timing(**payload["timing"])
    package = Package.open(payload["path"])
    inputs = inputs_of(package)
    with backend.session(Path(package.path), payload["compute_units"]) as session:
        before = session.conditions()
        warmup = [session.predict(inputs) for _ in range(timing.warmup)]
        rounds = []
        for number in range(timing.rounds):
            if number:
                time.sleep(timing.pause)
            rounds.append([session.predict(inputs) for _ in range(timing.iterations)])
        after = session.conditions()
        placement = placement_summary(session.placement())
    feature = package.inputs[0]
    return {
        "device": device,
        "samples": rounds,
        "warmup": warmup,
        "placement": placement,
        "conditions": [asdict(before), asdict(after)],
        "input_type": feature.kind,
        "input_shape": list(feature.shape or ()),
        "package_hash": package.content_hash(),
    }
