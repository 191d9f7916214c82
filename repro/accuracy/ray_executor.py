"""Spread an evaluation over a Ray cluster (optional extra): one actor a processor, or a GPU.

A shard is a run of batches; it is the unit that is handed out, and the unit that is done again when a worker or a
machine is lost. Batches are the same ones that a single machine makes, so the predictions are the same, image for
image. The images and the weights must be found under the same paths on every machine.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

from repro.accuracy.errors import EvaluationError
from repro.accuracy.executor import ALLOCATOR
from repro.accuracy.job import BatchDone, Event, GroupStarted, Job, ModelEntry, ModelFailed, free_memory, processors
from repro.ray_cluster import joined, one_line, python_path

_PACKAGES = ("torch", "timm", "repro-tables")
_ATTEMPTS = 4  # of one shard: more losses than that are its own doing
_PATIENCE = 300.0  # seconds without any live worker


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


class _Worker:
    """What runs on the cluster: a runner, and the models of the current group."""

    def __init__(self, payload: bytes) -> None:
        from repro.accuracy.worker import Runner

        self.job: Job = pickle.loads(payload)
        options = self.job.options
        if options.device == "cpu":
            # as many of these on this machine as it has processors, each with weights of its own
            memory = options.memory or int(0.6 * free_memory()) // processors()
            options = replace(options, workers=0, memory=max(1, memory))
        self.runner = Runner(self.job.dataset, options)

    def versions(self) -> tuple[str, dict[str, str]]:
        """This machine's name and its packages."""
        import platform

        return platform.node(), _versions()

    def fill(self, entries: Sequence[ModelEntry]) -> tuple[list[str], list[ModelFailed]]:
        """Load a group of models."""
        return self.runner.fill(entries)

    def run(self, batches: Sequence[int]) -> list[BatchDone]:
        """Evaluate one shard."""
        return list(self.runner.run(self.job, batches, self.runner.workers))


@dataclass
class _Shard:
    batches: list[int]
    losses: int = 0


@dataclass
class _Pass:
    """The shards of one group of models, and who works on what."""

    unsent: deque[_Shard]
    names: list[str]
    entries: list[ModelEntry]
    idle: list[Any] = field(default_factory=list)
    running: dict[Any, tuple[Any, _Shard]] = field(default_factory=dict)
    starting: dict[Any, Any] = field(default_factory=dict)


class RayExecutor:
    """The executor of a cluster.

    Parameters
    ----------
    address
        Of the cluster, as ``ray.init`` takes it; None joins the one of the environment, or starts one on this machine.
    workers
        Actors; one for each GPU, or each processor, of the cluster when None.
    shard
        Batches a shard.
    """

    def __init__(self, address: str | None = None, *, workers: int | None = None, shard: int = 8) -> None:
        self.address, self.workers, self.shard = address, workers, shard

    def run(self, job: Job) -> Iterator[Event]:
        """Yield the events of a job.

        Raises
        ------
        EvaluationError
            When Ray is not installed, the cluster has no such processor, its machines have other versions of torch or
            timm, or a shard is lost again and again.
        """
        with joined(self.address, EvaluationError) as ray:
            cluster = _Cluster(ray, job, self._count(ray, job))
            try:
                yield from cluster.run(self.shard)
            finally:
                cluster.stop()

    def _count(self, ray: Any, job: Job) -> int:
        kind = "GPU" if job.options.device == "cuda" else "CPU"
        there = int(ray.cluster_resources().get(kind, 0))
        if there < 1:
            raise EvaluationError(f"the Ray cluster has no {kind}")
        return min(there, self.workers or there)


class _Cluster:
    """The actors of one run."""

    def __init__(self, ray: Any, job: Job, count: int) -> None:
        self.ray, self.job, self.count = ray, job, count
        self.payload = ray.put(pickle.dumps(job))
        self.actors: list[Any] = []

    def start(self) -> Any:
        """Ask for one more actor; it may wait for a place."""
        gpu = self.job.options.device == "cuda"
        total = self.ray.cluster_resources()
        share = max(1, int(total.get("CPU", 1) // max(1, total.get("GPU", 1)))) if gpu else 1
        environment = {**ALLOCATOR, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
        actor = (
            self.ray.remote(_Worker)
            .options(num_cpus=share, num_gpus=1 if gpu else 0, runtime_env={"env_vars": environment})
            .remote(self.payload)
        )
        self.actors.append(actor)
        return actor

    def stop(self) -> None:
        """End every actor, so that their places are free for the cluster's other users."""
        for actor in self.actors:
            self.ray.kill(actor)

    def run(self, size: int) -> Iterator[Event]:
        actors = [self.start() for _ in range(self.count)]
        self._check(actors[0])
        # the same order as on one machine: models that share images side by side
        remaining = sorted(self.job.entries, key=lambda entry: repr(entry.preprocessing))
        while remaining:
            # how much fits is the first actor's to say, and the others take the same
            names, failures = self._get(actors[0].fill.remote(remaining))
            yield from failures
            settled = {*names, *(failure.name for failure in failures)}
            group = [entry for entry in remaining if entry.name in names]
            remaining = [entry for entry in remaining if entry.name not in settled]
            if names:
                yield GroupStarted(names=tuple(names), workers=self.count)
                work = _Pass(deque(self._shards(names, size)), names, group, idle=[actors[0]])
                for actor in actors[1:]:
                    work.starting[actor.fill.remote(group)] = actor
                yield from self._work(work)
                actors = [*work.idle, *work.starting.values()]

    def _get(self, reference: Any) -> Any:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayActorError as error:
            raise EvaluationError(f"a Ray worker was lost before it began: {one_line(error)}") from error

    def _check(self, actor: Any) -> None:
        machine, versions = self._get(actor.versions.remote())
        here = _versions()
        for package, version in versions.items():
            if version != here[package]:
                raise EvaluationError(f"{machine} has {package} {version}, this machine {here[package]}")

    def _shards(self, names: list[str], size: int) -> Iterator[_Shard]:
        batches = self.job.batches(names)
        for start in range(0, len(batches), size):
            yield _Shard(batches[start : start + size])

    def _work(self, work: _Pass) -> Iterator[Event]:
        """Hand out shards until all are done; a lost worker's goes back to the front."""
        alive_at = time.monotonic()
        while work.unsent or work.running:
            while work.unsent and work.idle:
                actor, shard = work.idle.pop(), work.unsent.popleft()
                work.running[actor.run.remote(shard.batches)] = actor, shard
            ready, _ = self.ray.wait([*work.running, *work.starting], num_returns=1, timeout=1.0)
            if ready or work.running:
                alive_at = time.monotonic()
            elif time.monotonic() - alive_at > _PATIENCE:
                raise EvaluationError(f"the Ray cluster gave no worker for {_PATIENCE:g} s")
            for reference in ready:
                if reference in work.starting:
                    self._started(work, reference)
                else:
                    yield from self._finished(work, reference)

    def _started(self, work: _Pass, reference: Any) -> None:
        actor = work.starting.pop(reference)
        try:
            names, _ = self.ray.get(reference)
        except self.ray.exceptions.RayActorError:
            self._replace(work)
            return
        if names == work.names:
            self._check(actor)
            work.idle.append(actor)
        else:  # a machine with less memory than the first one's: the others do its part
            self.ray.kill(actor)

    def _finished(self, work: _Pass, reference: Any) -> list[BatchDone]:
        actor, shard = work.running.pop(reference)
        try:
            done: list[BatchDone] = self.ray.get(reference)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.WorkerCrashedError) as error:
            shard.losses += 1
            if shard.losses >= _ATTEMPTS:
                first = shard.batches[0]
                raise EvaluationError(
                    f"batch {first} and those after it lost {_ATTEMPTS} workers: {one_line(error)}"
                ) from error
            work.unsent.appendleft(shard)
            self._replace(work)
            return []
        work.idle.append(actor)
        return done

    def _replace(self, work: _Pass) -> None:
        actor = self.start()
        work.starting[actor.fill.remote(work.entries)] = actor
