"""Run a detector or segmenter over the images that are left, keep each image's result, and measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from repro.accuracy.dense.datasets import DenseDataset
from repro.accuracy.dense.metrics import coco_metrics, miou
from repro.accuracy.dense.results import ResultStore
from repro.accuracy.dense.worker import DenseEntry, Worker
from repro.accuracy.engine import Status
from repro.accuracy.errors import DatasetError, EvaluationError
from repro.ray_cluster import joined, python_path
from repro.spec.manifest import DETECTION

SHARD = 4  # images that are handed out, and kept, together
_METHOD = "dense 1"  # raise it when the way from image to result changes


class Executor(Protocol):
    """Runs shards of images somewhere."""

    def run(self, entry: DenseEntry, dataset: DenseDataset, device: str, shards: Sequence[Sequence[int]]) -> Any:
        """Yield a dict of results by place for each shard, in any order."""


@dataclass(frozen=True, kw_only=True)
class DenseEvaluation:
    """What an evaluation gave.

    Attributes
    ----------
    metrics
        By name, in percent, and what else the evaluator says.
    results
        Each image's result by its place in the data set.
    evaluated
        Images run now; the others were known.
    """

    metrics: dict[str, Any]
    results: dict[int, Any]
    evaluated: int
    seconds: float


def evaluate(
    dataset: DenseDataset,
    entry: DenseEntry,
    *,
    folder: Path,
    device: str = "cpu",
    executor: Executor | None = None,
    progress: Callable[[Status], None] | None = None,
) -> DenseEvaluation:
    """Evaluate one model; what an earlier run with the same images, weights and protocol kept is not done again.

    Parameters
    ----------
    folder
        Where results are kept, a folder for each model and protocol.

    Raises
    ------
    EvaluationError
        For a damaged result file.
    ReproError
        For weights that do not fit, or an image that cannot be used.
    """
    began = time.monotonic()
    store = ResultStore.of(folder, entry.name, result_key(dataset, entry, device))
    known = store.load(dataset.images)
    left = [place for place in range(len(dataset)) if place not in known]
    shards = [left[start : start + SHARD] for start in range(0, len(left), SHARD)]
    done = 0
    if shards:
        for results in (executor or InProcess()).run(entry, dataset, device, shards):
            store.save(results)
            known.update(results)
            done += len(results)
            if progress is not None:
                progress(_status(entry.name, len(known), len(dataset), done, time.monotonic() - began))
    if len(known) < len(dataset):
        raise EvaluationError(f"{entry.name}: the run ended with images left")
    measure = coco_metrics if entry.task == DETECTION else _miou
    return DenseEvaluation(
        metrics=measure(dataset, known), results=known, evaluated=done, seconds=time.monotonic() - began
    )


def result_key(dataset: DenseDataset, entry: DenseEntry, device: str) -> dict[str, Any]:
    """What an image's result depends on."""
    return {
        "images": dataset.fingerprint,
        "weights": entry.sha256,
        "backbone": entry.backbone,
        "wrapper": entry.wrapper,
        "pipeline": entry.pipeline,
        "device": device,
        "method": _METHOD,
        **{name: _version(name) for name in ("torch", "torchvision", "timm", "opencv-python-headless")},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _miou(dataset: DenseDataset, results: dict[int, Any]) -> dict[str, Any]:
    return miou([results[place] for place in sorted(results)], dataset.classes)


def _status(name: str, done: int, total: int, now: int, seconds: float) -> Status:
    speed = now / seconds if seconds > 0 else 0.0
    left = (total - done) / speed if speed else None
    return Status(done=done, total=total, images_per_second=speed, seconds_left=left, models=(name,), passes=1)


class InProcess:
    """Runs everything in this process."""

    def run(
        self, entry: DenseEntry, dataset: DenseDataset, device: str, shards: Sequence[Sequence[int]]
    ) -> Iterator[dict[int, Any]]:
        """Yield the results of one shard after another."""
        worker = Worker(entry, dataset, device)
        for shard in shards:
            yield worker.run(shard)


@dataclass(frozen=True)
class Processes:
    """Runs shards in several processes of this machine, each with the model and one thread."""

    count: int

    def run(
        self, entry: DenseEntry, dataset: DenseDataset, device: str, shards: Sequence[Sequence[int]]
    ) -> Iterator[dict[int, Any]]:
        """Yield the results of each shard as it is done.

        Raises
        ------
        EvaluationError
            When a process is killed: too little memory, most likely.
        """
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from concurrent.futures.process import BrokenProcessPool
        from multiprocessing import get_context

        with _environment():
            pool = ProcessPoolExecutor(
                min(self.count, len(shards)), get_context("spawn"), _begin, (entry, dataset, device)
            )
            try:
                for future in as_completed([pool.submit(_one_shard, shard) for shard in shards]):
                    yield future.result()
            except BrokenProcessPool as error:
                raise EvaluationError(
                    f"{entry.name}: a process of the evaluation was killed (too little memory? fewer --jobs take less)"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _environment() -> Iterator[None]:
    """What processes that run models are started with, while they are started."""
    import os

    from repro.accuracy.executor import child_environment

    before = dict(os.environ)
    os.environ.update(child_environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


_held: list[Any] = []  # this process's worker, or why there is none


def _begin(entry: DenseEntry, dataset: DenseDataset, device: str) -> None:
    from repro.errors import ReproError

    try:
        _held.append(Worker(entry, dataset, device))
    except ReproError as error:  # an initialiser that raises would only break the pool
        _held.append(error)


def _one_shard(shard: Sequence[int]) -> dict[int, Any]:
    if isinstance(_held[0], Exception):
        raise _held[0]
    results: dict[int, Any] = _held[0].run(shard)
    return results


@dataclass(frozen=True)
class Ray:
    """Runs shards on the actors of a Ray cluster; images and weights lie under the same paths everywhere."""

    address: str | None = None

    def run(
        self, entry: DenseEntry, dataset: DenseDataset, device: str, shards: Sequence[Sequence[int]]
    ) -> Iterator[dict[int, Any]]:
        """Yield the results of each shard as it is done; a lost actor's shard goes to another, a few times.

        Raises
        ------
        EvaluationError
            When Ray is not installed, or there is no cluster.
        """
        with joined(self.address, EvaluationError) as ray:
            yield from self._run(ray, entry, dataset, device, shards)

    @staticmethod
    def _run(
        ray: Any, entry: DenseEntry, dataset: DenseDataset, device: str, shards: Sequence[Sequence[int]]
    ) -> Iterator[dict[int, Any]]:
        kind = "GPU" if device == "cuda" else "CPU"
        count = min(int(ray.cluster_resources().get(kind, 0)), len(shards))
        if count < 1:
            raise EvaluationError(f"the Ray cluster has no {kind}")
        environment = {"env_vars": {"PYTHONPATH": python_path()}}
        options = {"num_cpus": 1, "num_gpus": int(device == "cuda"), "max_restarts": 3, "max_task_retries": 3}
        worker = ray.remote(Worker).options(**options, runtime_env=environment)
        actors: list[Any] = [worker.remote(entry, dataset, device) for _ in range(count)]
        try:
            pool: Any = ray.util.ActorPool(actors)
            yield from pool.map_unordered(lambda actor, shard: actor.run.remote(shard), shards)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            raise (
                cause
                if isinstance(cause, (EvaluationError, DatasetError))
                else EvaluationError(f"{entry.name}: {' '.join(str(error).split())[-300:]}")
            ) from error
        finally:
            for actor in actors:
                ray.kill(actor)
