"""What is evaluated and how, and what the workers say while they do it. All of it can be pickled."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from repro.accuracy.datasets import ImageDataset
from repro.accuracy.errors import EvaluationError
from repro.accuracy.preprocess import Preprocessing

DEVICES = ("cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16", "amp-bfloat16", "amp-float16")
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One checkpoint to evaluate.

    Attributes
    ----------
    name
        Unique in a run; what the results are called by.
    identity
        What the predictions depend on beside the protocol: the hash of the weights, the variant's arguments.
    build
        Returns the model with its weights: a module, or any callable from images (B, 3, H, W) to logits (B, classes).
        It is called in another process, so it must be importable there: a function of a module, or a ``partial``.
    preprocessing
        How this checkpoint wants its images.
    """

    name: str
    identity: str
    build: Callable[[], Callable[[Any], Any]]
    preprocessing: Preprocessing


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to evaluate.

    Attributes
    ----------
    device
        ``cpu``, ``cuda`` or ``mps``.
    precision
        ``float32`` for the record; ``bfloat16`` (weights and activations) or ``amp-bfloat16`` and ``amp-float16``
        (autocast) as labelled options.
    batch_size
        Images a batch; 16 on the CPU, where larger ones leave the cache, and 128 elsewhere. Part of the protocol:
        kernels differ with it in the last bit.
    fold
        Reparameterise, and fold BatchNorm into its neighbours.
    skip_corrupt
        Leave images out that cannot be decoded, and count them, instead of stopping at the first.
    workers
        Processes that decode (and, on the CPU, run the models); one for each processor when None, and none beside
        the evaluation's own when 0.
    memory
        Bytes that models and workers may take together; 60% of what is free when None. Models that do not fit at once
        take turns, each group with a pass of its own over the images.
    save_every
        Seconds between two savings of the predictions.
    """

    device: str = "cpu"
    precision: str = "float32"
    batch_size: int | None = None
    fold: bool = True
    skip_corrupt: bool = False
    workers: int | None = None
    memory: int | None = None
    save_every: float = 120.0

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise EvaluationError(f"unknown device {self.device!r}: {', '.join(DEVICES)}")
        if self.precision not in PRECISIONS:
            raise EvaluationError(f"unknown precision {self.precision!r}: {', '.join(PRECISIONS)}")
        for name, least in (("batch_size", 1), ("workers", 0), ("memory", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise EvaluationError(f"{name} {value}: expected at least {least}")

    @property
    def batch(self) -> int:
        """Images a batch."""
        return self.batch_size or (16 if self.device == "cpu" else 128)

    def protocol(self, entry: ModelEntry) -> dict[str, Any]:
        """Everything that may change a prediction of ``entry``, beside the images and the weights.

        On the CPU the number of workers is not among it: each runs on one thread and batches are always full, so that
        every image is computed in the same way whoever computes it.
        """
        return {
            "preprocessing": entry.preprocessing.to_dict(),
            "device": self.device,
            "precision": self.precision,
            "batch": self.batch,
            "form": "folded" if self.fold else "as_trained",
            "machine": platform.machine(),
            "torch": metadata.version("torch"),
            "timm": metadata.version("timm"),
        }


@dataclass(frozen=True, kw_only=True)
class Job:
    """Models, images, and which batches each model still needs (bool arrays, one value a batch)."""

    dataset: ImageDataset
    entries: tuple[ModelEntry, ...]
    options: Options
    need: Mapping[str, Array]

    def only(self, names: Sequence[str]) -> Job:
        """The same job with fewer models."""
        return replace(self, entries=tuple(entry for entry in self.entries if entry.name in names))

    def batches(self, names: Sequence[str]) -> list[int]:
        """The batches that any of ``names`` needs, in order."""
        if not names:
            return []
        wanted = np.logical_or.reduce([self.need[name] for name in names])
        return [int(batch) for batch in np.flatnonzero(wanted)]


@dataclass(frozen=True, kw_only=True)
class GroupStarted:
    """A group of models that fit into memory together begins its pass over the images."""

    names: tuple[str, ...]
    workers: int


@dataclass(frozen=True, kw_only=True)
class ModelFailed:
    """A model that could not be built, or not run; the others go on."""

    name: str
    message: str


@dataclass(frozen=True, kw_only=True)
class BatchDone:
    """The predictions of one batch.

    Attributes
    ----------
    batch
        Its number: images ``batch * size`` to ``batch * size + size - 1``.
    top5
        For each model an int16 array of shape (images, 5).
    failed
        For each model that could not run on this batch, why.
    corrupt
        Position in the batch, and reason, of images that could not be decoded.
    unreadable
        Why the batch's files could not be read at all; then there is nothing else in it. Such images are never
        skipped: they may be well, and the disk not.
    """

    batch: int
    top5: dict[str, Array]
    failed: dict[str, str] = field(default_factory=dict)
    corrupt: dict[int, str] = field(default_factory=dict)
    unreadable: str | None = None


Event = GroupStarted | ModelFailed | BatchDone


class Executor(Protocol):
    """Runs a job somewhere and says what comes of it, in any order; each needed batch of each model once."""

    def run(self, job: Job) -> Any:
        """Yield events until all is done.

        Raises
        ------
        EvaluationError
            When the work cannot be done; what was yielded before stands.
        """


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes of memory that can be had, by the machine's account and the container's."""
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such container, or no limit ("max")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(free, 0)
