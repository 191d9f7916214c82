"""Evaluate several checkpoints in one pass over the images, and keep what each said about every image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repro.accuracy.datasets import ImageDataset
from repro.accuracy.errors import CorruptImageError, DatasetError, EvaluationError
from repro.accuracy.executor import LocalExecutor
from repro.accuracy.job import (
    BatchDone,
    Event,
    Executor,
    GroupStarted,
    Job,
    ModelEntry,
    ModelFailed,
    Options,
)
from repro.accuracy.predictions import PENDING, SKIPPED, Partial, Predictions, PredictionStore


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far an evaluation is.

    Attributes
    ----------
    done, total
        Images of the current pass.
    images_per_second
        In the current pass; 0 before its first batch.
    seconds_left
        For all passes, None before the first batch.
    models
        The models of the current pass.
    passes
        Which pass this is, from 1.
    """

    done: int
    total: int
    images_per_second: float
    seconds_left: float | None
    models: tuple[str, ...]
    passes: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation gave.

    Attributes
    ----------
    predictions
        By the model's name.
    failures
        Why a model has none.
    skipped
        Images that could not be decoded, in the data set's order, with what the decoder said (empty for images that
        an earlier run found).
    passes
        How often the images were read: once, unless the models did not fit into memory together; 0 when everything
        was known.
    evaluated
        Images read in this run, summed over passes; the others were known from an earlier one.
    seconds
        Wall time of this run.
    """

    predictions: dict[str, Predictions]
    failures: dict[str, str]
    skipped: dict[str, str]
    passes: int
    evaluated: int
    seconds: float


def prediction_key(dataset: ImageDataset, entry: ModelEntry, options: Options) -> dict[str, Any]:
    """What the predictions of ``entry`` depend on."""
    return {"images": dataset.fingerprint, "checkpoint": entry.identity, "protocol": options.protocol(entry)}


def evaluate(
    dataset: ImageDataset,
    entries: Sequence[ModelEntry],
    *,
    options: Options | None = None,
    store: PredictionStore | None = None,
    progress: Callable[[Status], None] | None = None,
    executor: Executor | None = None,
) -> Evaluation:
    """Evaluate checkpoints on the images.

    Each image is read and decoded once for all models of a pass, resized once for each distinct geometry, and all
    models run on the batch. What is known from an earlier run with the same images, weights and protocol is not
    computed again.

    Parameters
    ----------
    store
        Where predictions are kept every ``options.save_every`` seconds and at the end, whatever ends the run.
    progress
        Called after every batch.
    executor
        Where the work runs; a child process of this machine when None.

    Raises
    ------
    CorruptImageError
        For an image that cannot be decoded, unless ``options.skip_corrupt``.
    DatasetError
        For an image that cannot be read from disk.
    EvaluationError
        When the work cannot be done at all. A model that fails alone is in ``failures`` instead.
    """
    return _Run(dataset, entries, options or Options(), store, progress).go(executor or LocalExecutor())


class _Run:
    def __init__(
        self,
        dataset: ImageDataset,
        entries: Sequence[ModelEntry],
        options: Options,
        store: PredictionStore | None,
        progress: Callable[[Status], None] | None,
    ) -> None:
        if len({entry.name for entry in entries}) < len(entries):
            raise EvaluationError("two models have the same name")
        self.dataset, self.options, self.store, self.progress = dataset, options, store, progress
        self.entries = {entry.name: entry for entry in entries}
        self.keys = {entry.name: prediction_key(dataset, entry, options) for entry in entries if store}
        self.partials = {name: self._known(name) for name in self.entries}
        self.failures: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.passes = self.evaluated = 0
        self.models: tuple[str, ...] = ()
        self.in_pass = self.pass_total = self.pairs = 0
        self.started = self.pass_started = self.saved = time.monotonic()

    def _known(self, name: str) -> Partial:
        images = len(self.dataset)
        if self.store is None:
            return Partial.empty(images)
        partial = self.store.load(name, self.keys[name], images)
        if not self.options.skip_corrupt:  # who does not skip wants to hear of a corrupt image again
            partial.state[partial.state == SKIPPED] = PENDING
        return partial

    def _need(self, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        size = self.options.batch
        pending = self.partials[name].state == PENDING
        return np.add.reduceat(pending, np.arange(0, len(pending), size)) > 0

    def go(self, executor: Executor) -> Evaluation:
        need = {name: self._need(name) for name in self.entries}
        open_entries = tuple(entry for entry in self.entries.values() if need[entry.name].any())
        self.pairs_total = sum(int(need[entry.name].sum()) for entry in open_entries)
        self.job = Job(dataset=self.dataset, entries=open_entries, options=self.options, need=need)
        try:
            if open_entries:
                for event in executor.run(self.job):
                    self._take(event)
        finally:
            self._save()
        return self._result()

    def _take(self, event: Event) -> None:
        if isinstance(event, GroupStarted):
            self._start_pass(event)
        elif isinstance(event, ModelFailed):
            self._fail(event.name, event.message)
        else:
            self._take_batch(event)

    def _start_pass(self, event: GroupStarted) -> None:
        # a group that starts anew after its process died goes on with the same pass
        if event.names != self.models:
            self.passes += 1
            self.models, self.in_pass, self.pass_started = event.names, 0, time.monotonic()
            self.pass_total = sum(self._span(batch)[1] for batch in self.job.batches(event.names))
            self._tell()

    def _span(self, batch: int) -> tuple[int, int]:
        start = batch * self.options.batch
        return start, min(self.options.batch, len(self.dataset) - start)

    def _take_batch(self, event: BatchDone) -> None:
        if event.unreadable is not None:
            raise DatasetError(event.unreadable)
        start, count = self._span(event.batch)
        for position, reason in event.corrupt.items():
            name = self.dataset.names[start + position]
            if not self.options.skip_corrupt:
                raise CorruptImageError(name, reason)
            self.reasons[name] = reason
        for name, reason in event.failed.items():
            self._fail(name, reason)
        for name, top5 in event.top5.items():
            if name not in self.failures:
                self.partials[name].put(start, top5, event.corrupt)
        self.in_pass += count
        self.evaluated += count
        self.pairs += len(event.top5) + len(event.failed)
        self._tell()
        if time.monotonic() - self.saved >= self.options.save_every:
            self._save()

    def _fail(self, name: str, reason: str) -> None:
        self.failures.setdefault(name, reason)

    def _tell(self) -> None:
        if self.progress is None:
            return
        now = time.monotonic()
        elapsed = now - self.pass_started
        left = (now - self.started) / self.pairs * max(0, self.pairs_total - self.pairs) if self.pairs else None
        self.progress(
            Status(
                done=self.in_pass,
                total=self.pass_total,
                images_per_second=self.in_pass / elapsed if self.in_pass and elapsed > 0 else 0.0,
                seconds_left=left,
                models=self.models,
                passes=self.passes,
            )
        )

    def _save(self) -> None:
        if self.store is not None:
            for name, partial in self.partials.items():
                self.store.save(name, self.keys[name], partial)
        self.saved = time.monotonic()

    def _result(self) -> Evaluation:
        predictions, skipped = {}, set()
        for name, partial in self.partials.items():
            if name in self.failures:
                continue
            if not partial.finished():
                raise EvaluationError(f"{name}: the run ended with images left")
            left_out = np.flatnonzero(partial.state == SKIPPED)
            skipped.update(left_out.tolist())
            kept = partial.state != SKIPPED
            predictions[name] = Predictions(
                image=np.asarray(self.dataset.names, dtype=np.str_)[kept],
                target=self.dataset.targets[kept],
                top5=partial.top5[kept],
                skipped=tuple(self.dataset.names[index] for index in left_out),
            )
        names = [self.dataset.names[index] for index in sorted(skipped)]
        return Evaluation(
            predictions=predictions,
            failures=self.failures,
            skipped={name: self.reasons.get(name, "") for name in names},
            passes=self.passes,
            evaluated=self.evaluated,
            seconds=time.monotonic() - self.started,
        )
