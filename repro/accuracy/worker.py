"""The part that needs torch: models built and folded, images decoded, logits ranked.

Runs in the process that an executor started for it, never in the user's. On the CPU each DataLoader worker takes
whole batches, from bytes to predictions, on one thread: throughput grows with the processors, nothing waits for a
slowest thread, and only predictions travel between processes. On an accelerator the workers decode and this process
runs the models.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from repro.accuracy.datasets import ImageDataset
from repro.accuracy.errors import CorruptImageError, EvaluationError
from repro.accuracy.job import (
    BatchDone,
    Event,
    GroupStarted,
    Job,
    ModelEntry,
    ModelFailed,
    Options,
    free_memory,
    processors,
)
from repro.accuracy.preprocess import Geometry, Preprocessing, Preprocessor, normalise
from repro.errors import ReproError

# What a forked worker needs for itself beside the batch: interpreter pages it writes to, oneDNN's kernels and
# scratch. Measured: 120 to 190 MB over eight models.
_WORKER_BASE = 200 * 2**20
# The tensors alive at the widest point of a network are never all in one operator's inputs and outputs; over the
# tables' models three times the widest operator is above the measured peak.
_ALIVE = 3


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to run: its weights in bytes, and the bytes of its widest operator for one image."""

    name: str
    run: Callable[[torch.Tensor], Any]
    preprocessing: Preprocessing
    weights: int
    scratch: int


class _Widest(TorchDispatchMode):
    """Notes the largest sum of inputs and outputs of an operator, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, outputs)) if isinstance(leaf, torch.Tensor)]
        self.bytes = max(self.bytes, sum(t.nbytes for t in tensors if not isinstance(t, nn.Parameter)))
        return outputs


def message(error: BaseException) -> str:
    """An exception as one line; the user's own mistakes need no type."""
    if isinstance(error, ReproError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def top5(logits: torch.Tensor) -> torch.Tensor:
    """The five largest logits of each row, as timm's ``accuracy`` ranks them: int16, shape (B, 5), -1 for none."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1, largest=True, sorted=True).indices.to(torch.int16)
    missing = 5 - ranked.shape[1]
    return nn.functional.pad(ranked, (0, missing), value=-1) if missing else ranked


def _check_logits(logits: Any, images: int, classes: int) -> None:
    if not isinstance(logits, torch.Tensor):
        raise EvaluationError(f"the model returns {type(logits).__name__}, expected logits")
    if tuple(logits.shape) != (images, classes):
        shape = " x ".join(map(str, logits.shape))
        raise EvaluationError(f"the model returns {shape} values for {images} images of {classes} classes")


def _check_folding(model: nn.Module, folded: nn.Module, example: torch.Tensor) -> None:
    """Refuse a folded model that computes something else: it would put a wrong figure into a table."""
    before, after = model(example), folded(example)
    difference = float((before - after).abs().max())
    if difference > 1e-3 * max(1.0, float(before.abs().max())):
        raise EvaluationError(f"the folded model's logits differ by {difference:.3g} from the model's own")


class Decoded(NamedTuple):
    """A batch ready for the models.

    Attributes
    ----------
    pixels
        uint8, shape (B, H, W, 3), one for each geometry.
    corrupt
        Position and reason of images that could not be decoded.
    unreadable
        Why the files could not be read; then there are no pixels.
    """

    batch: int
    pixels: list[torch.Tensor]
    corrupt: dict[int, str]
    unreadable: str | None


class Decoder:
    """Reads batches of images and gives their pixels; knows no model, so that decoding processes need none.

    Parameters
    ----------
    preprocessings
        Those of the models.
    """

    def __init__(self, dataset: ImageDataset, size: int, preprocessings: Sequence[Preprocessing]) -> None:
        self.dataset, self.size = dataset, size
        self.preprocessor = Preprocessor(preprocessings)

    @property
    def geometries(self) -> list[Geometry]:
        """The distinct geometries, in the order of the arrays."""
        return self.preprocessor.geometries

    def span(self, batch: int) -> tuple[int, int]:
        """First image of a batch and how many it has."""
        start = batch * self.size
        return start, min(self.size, len(self.dataset) - start)

    def decode(self, batch: int) -> Decoded:
        """Read and decode a batch.

        The places of corrupt images, and those past the last image, are black: every batch has B images, so that each
        image goes through the same kernels in any run.
        """
        start, count = self.span(batch)
        batches = [np.zeros((self.size, g.height, g.width, 3), dtype=np.uint8) for g in self.geometries]
        corrupt: dict[int, str] = {}
        for position in range(count):
            name = self.dataset.names[start + position]
            try:
                data = self.dataset.read(start + position)
            except OSError as error:
                return Decoded(batch, [], {}, f"{name}: cannot be read: {error.strerror or error}")
            try:
                for place, pixels in zip(batches, self.preprocessor(data, name), strict=True):
                    place[position] = pixels
            except CorruptImageError as error:
                corrupt[position] = error.reason
        return Decoded(batch, [torch.from_numpy(array) for array in batches], corrupt, None)


class Runner:
    """Models on a device, and the loop over batches.

    Parameters
    ----------
    dataset, options
        Of the job.
    """

    def __init__(self, dataset: ImageDataset, options: Options) -> None:
        self.dataset, self.options = dataset, options
        self.device = torch.device(options.device)
        self.loaded: list[Loaded] = []
        self.decoder = Decoder(dataset, options.batch, [])
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available[options.device]:
            raise EvaluationError(f"this machine has no {options.device} device that torch can use")
        torch.set_num_threads(1)
        # float32 means float32, and a run that is resumed computes as before
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        self.memory = options.memory or int(0.6 * free_memory())

    # -- models -------------------------------------------------------------------------------------------------------

    def fill(self, entries: Sequence[ModelEntry]) -> tuple[list[str], list[ModelFailed]]:
        """Build models, in order, while they fit into memory beside one worker; at least one.

        Returns
        -------
        names, failures
            Of the models that are ready and of those that cannot be built. Entries in neither are for the next pass.
        """
        self.loaded, failures = [], []
        budget = self._device_memory()
        for entry in entries:
            try:
                loaded = self._load(entry)
            except Exception as error:  # a model that cannot be built is a result: it must not end the others' pass
                failures.append(ModelFailed(name=entry.name, message=message(error)))
                continue
            if self.loaded and self._weights(loaded) + self._one_worker(loaded) > budget:
                break
            self.loaded.append(loaded)
        self.decoder = Decoder(self.dataset, self.options.batch, [loaded.preprocessing for loaded in self.loaded])
        gc.collect()
        return [loaded.name for loaded in self.loaded], failures

    def _weights(self, *more: Loaded) -> int:
        return sum(loaded.weights for loaded in (*self.loaded, *more))

    def _one_worker(self, *more: Loaded) -> int:
        """Bytes that a worker takes: the widest model's tensors, and the images in each geometry."""
        loaded = (*self.loaded, *more)
        scratch = _ALIVE * max(model.scratch for model in loaded)
        pixels = sum(3 * g.height * g.width for g in {model.preprocessing.geometry for model in loaded})
        largest = max(3 * 4 * g.height * g.width for g in (model.preprocessing.geometry for model in loaded))
        return self.options.batch * (scratch + pixels + largest) + _WORKER_BASE

    def _device_memory(self) -> int:
        if self.device.type == "cuda":
            return min(self.options.memory or 2**62, int(0.8 * torch.cuda.mem_get_info()[0]))
        return self.memory

    @property
    def workers(self) -> int:
        """How many processes decode or evaluate."""
        workers = processors() if self.options.workers is None else self.options.workers
        if self.device.type != "cpu" or workers == 0:
            return workers
        return max(1, min(workers, (self.memory - self._weights()) // self._one_worker()))

    def _load(self, entry: ModelEntry) -> Loaded:
        channels, height, width = entry.preprocessing.input_size
        generator = torch.Generator().manual_seed(0)
        example = torch.randn((2, channels, height, width), generator=generator)
        model: Any = entry.build()
        weights = 0
        with torch.inference_mode(), _Widest() as widest:
            if isinstance(model, nn.Module):
                model.eval()
            _check_logits(model(example), 2, self.dataset.classes)
        if isinstance(model, nn.Module):
            model = self._deploy(model, example)
            weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        return Loaded(
            name=entry.name,
            run=model,
            preprocessing=entry.preprocessing,
            weights=weights,
            scratch=widest.bytes // 2,
        )

    def _deploy(self, model: nn.Module, example: torch.Tensor) -> nn.Module:
        if self.options.fold:
            from repro.models.reparam import to_form

            folded: nn.Module = to_form(model, "folded", example)
            with torch.inference_mode():
                _check_folding(model, folded, example)
            model = folded
        model.requires_grad_(False)
        dtype = torch.bfloat16 if self.options.precision == "bfloat16" else torch.float32
        moved: nn.Module = model.to(self.device, dtype)
        return moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    # -- predictions --------------------------------------------------------------------------------------------------

    def _autocast(self) -> AbstractContextManager[Any]:
        kind, _, dtype = self.options.precision.partition("-")
        return torch.autocast(self.device.type, dtype=getattr(torch, dtype)) if kind == "amp" else nullcontext()

    def predict(self, batches: Sequence[torch.Tensor], names: frozenset[str]) -> dict[str, Any]:
        """Run the models in ``names`` on one batch.

        Parameters
        ----------
        batches
            uint8 pixels (B, H, W, 3) on the device, one tensor for each geometry.

        Returns
        -------
        dict
            For each model a pair of tensors, top-5 classes and whether the row was finite, or a message. On an
            accelerator the tensors may still be in the making.
        """
        results: dict[str, Any] = {}
        wanted = sorted((m for m in self.loaded if m.name in names), key=lambda m: repr(m.preprocessing))
        with torch.inference_mode(), self._autocast():
            for preprocessing, models in groupby(wanted, key=lambda m: m.preprocessing):
                images = normalise(batches[self.decoder.geometries.index(preprocessing.geometry)], preprocessing)
                if self.options.precision == "bfloat16":
                    images = images.to(torch.bfloat16)
                for model in models:
                    try:
                        logits = model.run(images)
                        _check_logits(logits, len(images), self.dataset.classes)
                        results[model.name] = top5(logits), torch.isfinite(logits).all(dim=1)
                    except Exception as error:  # the model's failure, not the pass's
                        results[model.name] = message(error)
        return results

    def collect(self, batch: int, results: dict[str, Any], corrupt: dict[int, str]) -> BatchDone:
        """Bring the results of a batch to the host and leave out what stands for no image."""
        start, count = self.decoder.span(batch)
        done = BatchDone(batch=batch, top5={}, corrupt=corrupt)
        for name, result in results.items():
            if isinstance(result, str):
                done.failed[name] = result
                continue
            ranked, finite = result[0].cpu().numpy()[:count], result[1].cpu().numpy()[:count]
            finite[list(corrupt)] = True
            if finite.all():
                done.top5[name] = ranked
            else:
                image = self.dataset.names[start + int(finite.argmin())]
                done.failed[name] = f"the logits for {image} are not finite"
        return done

    def run(self, job: Job, batches: Sequence[int], workers: int) -> Iterator[BatchDone]:
        """Evaluate the loaded models on ``batches``, in any order; ``workers`` 0 does everything in this process."""
        names = {batch: frozenset(m.name for m in self.loaded if job.need[m.name][batch]) for batch in batches}
        if self.device.type == "cpu":
            yield from _loader(_Evaluated(self, names), batches, workers)
            return
        pending: deque[tuple[int, dict[str, Any], dict[int, str]]] = deque()
        for decoded in _loader(_Decoded(self.decoder), batches, workers):
            if decoded.unreadable is not None:
                yield BatchDone(batch=decoded.batch, top5={}, unreadable=decoded.unreadable)
                return
            moved = [pixels.to(self.device, non_blocking=True) for pixels in decoded.pixels]
            pending.append((decoded.batch, self.predict(moved, names[decoded.batch]), decoded.corrupt))
            if len(pending) > 1:  # wait for a batch only while the next one is under way
                yield self.collect(*pending.popleft())
        while pending:
            yield self.collect(*pending.popleft())


class _Evaluated(Dataset[BatchDone]):
    """Batches from bytes to predictions."""

    def __init__(self, runner: Runner, names: dict[int, frozenset[str]]) -> None:
        self.runner, self.names = runner, names

    def __getitem__(self, batch: int) -> BatchDone:
        decoded = self.runner.decoder.decode(batch)
        if decoded.unreadable is not None:
            return BatchDone(batch=batch, top5={}, unreadable=decoded.unreadable)
        return self.runner.collect(batch, self.runner.predict(decoded.pixels, self.names[batch]), decoded.corrupt)


class _Decoded(Dataset[Decoded]):
    """Batches from bytes to pixels."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def __getitem__(self, batch: int) -> Decoded:
        return self.decoder.decode(batch)


def _same(batch: Any) -> Any:
    return batch


def _loader(dataset: Dataset[Any], batches: Sequence[int], workers: int) -> DataLoader[Any]:
    workers = min(workers, len(batches))
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=list(batches),
        num_workers=workers,
        collate_fn=_same,  # torch's would turn predictions into tensors, which travel through shared memory
        pin_memory=isinstance(dataset, _Decoded) and torch.cuda.is_available(),
        # forked workers share the weights; macOS forbids to fork once its frameworks are in use
        multiprocessing_context=("fork" if sys.platform == "linux" else "spawn") if workers else None,
        in_order=False,
    )


def run_job(job: Job) -> Iterator[Event]:
    """Do a whole job on this machine, group after group."""
    runner = Runner(job.dataset, job.options)
    # models with the same images side by side, so that a group decodes for as few geometries as can be
    remaining = sorted(job.entries, key=lambda entry: repr(entry.preprocessing))
    while remaining:
        names, failures = runner.fill(remaining)
        yield from failures
        settled = {*names, *(failure.name for failure in failures)}
        remaining = [entry for entry in remaining if entry.name not in settled]
        if names:
            workers = runner.workers
            yield GroupStarted(names=tuple(names), workers=workers)
            yield from runner.run(job, job.batches(names), workers)
