"""Make a package and check it: what a worker does. It imports torch, timm and coremltools."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repro.checkpoints import hash_file
from repro.coreml.check import CheckResult, check_package
from repro.coreml.convert import convert
from repro.coreml.errors import PackageError
from repro.coreml.package import Package
from repro.coreml.quiet import import_coremltools
from repro.coreml.weights import randomise
from repro.errors import UsageError
from repro.models.catalogue import build, without_initialisation
from repro.models.reparam import to_form
from repro.models.resolution import fit_positions
from repro.spec.tables import InputSize, Variant

# coremltools imports joblib, which tries a semaphore when it loads and complains of it when a worker ends.
os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")
import_coremltools()  # here, where a worker starts, and not in the time of its first job


def deployed(variant: Variant, input_size: InputSize, weights: dict[str, Any]) -> nn.Module:
    """Build a variant as it is deployed: weights in, branches merged, heads averaged, BatchNorm folded.

    Parameters
    ----------
    variant
        What to build.
    input_size
        Height and width in pixels.
    weights
        A :class:`repro.coreml.export.WeightSource` as plain data. Without a path the weights are seeded and such that
        no branch is hidden (:mod:`repro.coreml.weights`).

    Raises
    ------
    ModelError
        When the variant cannot be built, or the weights do not fit.
    UsageError
        When the file is not the one that was hashed.
    """
    threads = torch.get_num_threads()
    # Seeded weights follow activations, whose last bits follow the number of threads: a package made by two workers
    # must be the one that a later check with one worker expects.
    torch.set_num_threads(1)
    try:
        return _deployed(variant, input_size, weights)
    finally:
        torch.set_num_threads(threads)


def _deployed(variant: Variant, input_size: InputSize, weights: dict[str, Any]) -> nn.Module:
    from repro.models.loading import load_weights

    size = (3, *input_size)
    if weights["path"] is None:
        with without_initialisation():
            model = fit_positions(build(variant, input_size=input_size), input_size)
        randomise(model, input_size=size, seed=weights["seed"])
    else:
        path = Path(weights["path"])
        if weights["sha256"] and not hash_file(path).startswith(weights["sha256"]):
            raise UsageError(f"{path}: its SHA-256 is not {weights['sha256'][:12]}")
        model = load_weights(build(variant, input_size=input_size), path, weights["wrapper"])
        fit_positions(model, input_size)
    return to_form(model, "folded", torch.zeros(1, *size))


def export(payload: dict[str, Any]) -> dict[str, Any]:
    """Convert and check as a :class:`repro.coreml.export.ExportJob` says.

    Returns
    -------
    dict
        ``content_hash`` of the package, ``seconds`` that the conversion took, and ``check`` as plain data, or None.
    """
    path = Path(payload["path"])
    variant, options = Variant(**payload["build"]), payload["options"]
    height, width = payload["input_size"]
    module = deployed(variant, (height, width), payload["weights"])
    start = time.perf_counter()
    if payload["convert"]:
        metadata = {
            "variant": payload["variant"]["id"],
            "model": f"{variant.builder}:{variant.model}",
            "form": "folded",
            "weights": payload["weights_said"],
            "weights_sha256": payload["weights"]["sha256"] or "",
        }
        convert(module, path, input_size=(3, height, width), metadata=metadata, **options)
    seconds = time.perf_counter() - start
    check = None
    if payload["check"]:
        wanted = {name: options[name] for name in ("mean", "std")} if options["input_kind"] == "image" else {}
        check = plain(check_package(path, module, **wanted))
    return {"content_hash": Package.open(path).content_hash(), "seconds": seconds, "check": check}


def check_against(payload: dict[str, Any]) -> dict[str, Any]:
    """Check a package that someone else made against a variant: as :func:`export`, without a conversion.

    Raises
    ------
    PackageError
        When the package takes something else than one image.
    """
    package = Package.open(payload["path"])
    feature = package.inputs[0]
    shape = feature.shape if feature.kind == "image" else (feature.shape or ())[-2:]
    if len(package.inputs) != 1 or shape is None or len(shape) != 2:
        raise PackageError(f"{package.shown}: its input is not one image")
    variant = Variant(**payload["build"])
    module = deployed(variant, (int(shape[0]), int(shape[1])), payload["weights"])
    found = plain(check_package(payload["path"], module))
    return {"content_hash": package.content_hash(), "check": found, "input_size": [int(side) for side in shape]}


def plain(result: CheckResult) -> dict[str, Any]:
    """A check's result as plain data, the verdict included."""
    data = {**asdict(result), "verdict": result.verdict}
    data["overflows"] = [asdict(overflow) for overflow in result.overflows]
    for name in ("mean", "std", "failures"):
        data[name] = None if data[name] is None else list(data[name])
    data.pop("package")
    return _finite(data)


def _finite(value: Any) -> Any:
    """JSON has no infinity: an error that float16 overflowed away is None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
