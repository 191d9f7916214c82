"""What has to be measured for a cell, and whether this machine could.

Light: a cached table asks this for every cell, so nothing here imports torch.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from repro.results.record import Subject
from repro.results.sources import source_of, version
from repro.spec.metrics import METRICS
from repro.spec.tables import COUNTERS, InputSize, Row, Table, Variant, plain_size, printed_size

COUNTED = ("params", "gmacs")
# Counts of another method are other measurements: raise this when the counting code changes its results.
COUNT_METHOD = "counts 2"
ACCURACY_METHOD = "accuracy 1"
DENSE_METHOD = "dense 1"
ARCHITECTURE_METHOD = "architecture 1"
LATENCY_METHOD = "latency 1"
PROGRAM_METHOD = "program 1"
IMAGENET = "ImageNet-1k"
DEFAULT_SIZE: InputSize = (224, 224)


@dataclass(frozen=True, kw_only=True)
class Need:
    """One measurement: its record is found by subject, metric, protocol and versions."""

    subject: Subject
    metric: str
    protocol: Mapping[str, Any]
    versions: Mapping[str, str]
    variant: Variant
    input_size: InputSize
    counter: str | None = None  # another program that counts
    task: str = "counts"  # which of the workers' tasks yields it: counts, architecture, operators
    shape: tuple[int, ...] = ()  # of the input, where it is no image


@dataclass(frozen=True, kw_only=True)
class Unmeasurable:
    """Why a cell has no measurement to ask for."""

    reason: str
    hint: str = ""


def subject_of(variant: Variant) -> Subject:
    """The subject of a variant's records."""
    return Subject(
        variant=variant.id,
        builder=variant.builder,
        model=variant.model,
        arguments=dict(variant.arguments),
        source=source_of(variant.builder, variant.model),
    )


def count_versions(variant: Variant) -> dict[str, str]:
    """The releases that define a count."""
    libraries = ("torch", "fvcore", "torchvision" if variant.builder == "torchvision" else "timm")
    return {**{name: version(name) for name in libraries}, "method": COUNT_METHOD}


def counter_need(variant: Variant, counter: str, input_size: InputSize) -> Need | Unmeasurable:
    """The measurement of ``gmacs`` by another program, as trained."""
    if version(counter) == "absent":
        return Unmeasurable(reason="needs_package", hint=f"install {counter} (the extra 'counters')")
    need = count_need(variant, "gmacs", input_size)
    return replace(
        need,
        protocol={**need.protocol, "counting": counter},
        versions={**need.versions, counter: version(counter)},
        counter=counter,
    )


def count_need(variant: Variant, metric: str, input_size: InputSize) -> Need:
    """The measurement of ``params`` or ``gmacs``: one record holds every form and convention."""
    return Need(
        subject=subject_of(variant),
        metric=metric,
        protocol={"input_size": plain_size(input_size), "batch_size": 1},
        versions=count_versions(variant),
        variant=variant,
        input_size=input_size,
    )


def architecture_need(table: Table, row: Row) -> Need | Unmeasurable:
    """The walk over the model of a row of an architecture table."""
    if row.variant is None:
        return Unmeasurable(reason="no_builder", hint="no library or port builds this model")
    size = input_size_of(table.protocol_of(row, "gmacs"))
    libraries = ("torch", "torchvision" if row.variant.builder == "torchvision" else "timm")
    return Need(
        subject=subject_of(row.variant),
        metric="architecture",
        protocol={"input_size": plain_size(size)},
        versions={**{name: version(name) for name in libraries}, "method": ARCHITECTURE_METHOD},
        variant=row.variant,
        input_size=size,
        task="architecture",
    )


def operators_need(variant: Variant, shape: tuple[int, ...]) -> Need:
    """The operations of one block, by operator, on an input of ``shape`` (B, C, H, W)."""
    return Need(
        subject=subject_of(variant),
        metric="operators",
        protocol={"shape": list(shape)},
        versions=count_versions(variant),
        variant=variant,
        input_size=(shape[-2], shape[-1]),
        task="operators",
        shape=shape,
    )


def accuracy_need(variant: Variant, checkpoint: str, input_size: InputSize, protocol: Mapping[str, Any]) -> Need:
    """The top-1 accuracy of one checkpoint of a variant.

    Parameters
    ----------
    checkpoint
        Its id in the manifest, or ``local`` for weights that no manifest lists.
    protocol
        Data set, split and precision; a spec that does not name them means ImageNet-1k's validation images in float32.
    """
    libraries = ("torch", "torchvision" if variant.builder == "torchvision" else "timm")
    return Need(
        subject=subject_of(variant),
        metric="top1",
        protocol={
            "checkpoint": checkpoint,
            "dataset": protocol.get("dataset", IMAGENET),
            "split": protocol.get("split", "validation"),
            "precision": protocol.get("precision", "float32"),
            "input_size": plain_size(input_size),
        },
        versions={**{name: version(name) for name in libraries}, "method": ACCURACY_METHOD},
        variant=variant,
        input_size=input_size,
        task="accuracy",
    )


def latency_need(variant: Variant, protocol: Mapping[str, Any], **other: Any) -> Need:
    """The latency of a variant under a table's protocol: size, batch, precision, form, device and compute units.

    Nothing of this machine's is part of the key, so that what one machine measured, another shows. ``other`` are
    options that no table states (target, kind of input): with them it is another measurement.
    """
    plain = {**protocol, "input_size": plain_size(input_size_of(protocol)), **other}
    return Need(
        subject=subject_of(variant),
        metric="latency",
        protocol=plain,
        versions={"method": LATENCY_METHOD},
        variant=variant,
        input_size=input_size_of(protocol),
        task="latency",
    )


def dense_need(variant: Variant, metric: str, *, checkpoint: str, pipeline: str, dataset: str, precision: str) -> Need:
    """One metric of a detector or segmenter whose backbone is ``variant``.

    Parameters
    ----------
    checkpoint
        Its id in the manifest, or ``local`` for weights that no manifest lists.
    pipeline
        How its images are resized and padded, by the manifest's name.
    """
    return Need(
        subject=subject_of(variant),
        metric=metric,
        protocol={
            "checkpoint": checkpoint,
            "dataset": dataset,
            "split": "validation",
            "precision": precision,
            "pipeline": pipeline,
        },
        versions={**{name: version(name) for name in ("torch", "torchvision", "timm")}, "method": DENSE_METHOD},
        variant=variant,
        input_size=DEFAULT_SIZE,
        task="dense",
    )


def program_need(variant: Variant, input_size: InputSize) -> Need:
    """What the ML program of a variant moves and computes, as float16 for iOS 15."""
    libraries = ("torch", "torchvision" if variant.builder == "torchvision" else "timm", "coremltools")
    return Need(
        subject=subject_of(variant),
        metric="program",
        protocol={"input_size": plain_size(input_size), "precision": "float16", "target": "iOS15", "form": "folded"},
        versions={**{name: version(name) for name in libraries}, "method": PROGRAM_METHOD},
        variant=variant,
        input_size=input_size,
        task="program",
    )


def input_size_of(protocol: Mapping[str, Any]) -> InputSize:
    """The input size of a cell's protocol, 224 x 224 where nothing is said."""
    size = protocol.get("input_size")
    if size is None:
        return DEFAULT_SIZE
    return printed_size(str(size)) or DEFAULT_SIZE if isinstance(size, int) else (int(size[0]), int(size[1]))


def need_of(table: Table, row: Row, metric: str) -> Need | Unmeasurable:
    """What to measure for one cell, or why nothing can be."""
    kind = METRICS[metric].kind
    if row.variant is None:
        return Unmeasurable(reason="no_builder", hint="no library or port builds this model")
    if kind == "count":
        protocol = table.protocol_of(row, metric)
        if metric == "gmacs" and protocol.get("counting") in COUNTERS:
            return counter_need(row.variant, protocol["counting"], input_size_of(protocol))
        return count_need(row.variant, metric, input_size_of(protocol))
    if kind == "latency":
        if platform.system() != "Darwin":
            return Unmeasurable(reason="needs_macos", hint="Core ML predicts only on macOS")
        return Unmeasurable(reason="needs_device", hint="no latency record of the paper's device")
    return Unmeasurable(reason="needs_dataset", hint="evaluating needs the data set and a released checkpoint")
