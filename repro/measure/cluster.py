"""Run jobs on the machines of a Ray cluster (optional extra) as ``workers.run`` runs them on this one.

A few jobs go to a machine at a time, where the same worker processes with the same limits do them: a job that hangs,
crashes or takes too much memory fails there as it does here. Ray runs the few again elsewhere when their machine is
lost. A project's own models, and folders that jobs write to, must be found under the same paths on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from repro.errors import ReproError
from repro.measure.workers import COUNTING, J, Limits, run
from repro.ray_cluster import joined, one_line, python_path

_PACKAGES = ("torch", "torchvision", "timm", "fvcore", "coremltools", "repro-tables")
_SHARE = 4  # portions a processor: few enough to start few workers, enough that none waits long for the last


class ClusterError(ReproError):
    """A cluster that cannot be used."""


class _Payload:
    """A job whose payload was made elsewhere."""

    def __init__(self, name: str, payload: dict[str, Any]) -> None:
        self.name, self._payload = name, payload

    def payload(self) -> dict[str, Any]:
        return self._payload


def _versions() -> dict[str, str]:
    from repro.results.sources import version

    return {name: version(name) for name in _PACKAGES}


def _portion(
    jobs: list[tuple[str, dict[str, Any]]], limits: Limits, paths: Sequence[str], task: str, versions: dict[str, str]
) -> list[dict[str, Any]]:
    """Run on a machine of the cluster: the outcomes of some jobs, in order, each with where it came from."""
    import platform

    from repro.results.provenance import provenance

    here = _versions()
    for name, wanted in versions.items():
        if here[name] != wanted:
            raise ClusterError(f"{platform.node()} has {name} {here[name]}, this machine {wanted}")
    work = [_Payload(name, payload) for name, payload in jobs]
    outcomes: dict[int, dict[str, Any]] = {}
    run(
        work,
        workers=1,
        limits=limits,
        done=lambda job, outcome: outcomes.update({id(job): {**outcome, "provenance": provenance(here)}}),
        paths=paths,
        task=task,
    )
    return [outcomes[id(job)] for job in work]


def run_on_ray(
    jobs: Sequence[J],
    *,
    limits: Limits,
    done: Callable[[J, dict[str, Any]], None],
    started: Callable[[J], None] | None = None,
    paths: Sequence[str] = (),
    task: str = COUNTING,
    address: str | None = None,
) -> None:
    """Do what ``workers.run`` does, on a cluster; each outcome has the ``provenance`` of the machine it came from.

    Parameters
    ----------
    address
        Of the cluster, as ``ray.init`` takes it; None joins the one that ``RAY_ADDRESS`` names, or starts one on this
        machine.

    Raises
    ------
    ClusterError
        When Ray is not installed, there is no such cluster, or its machines have other versions of what counts.
    """
    if not jobs:
        return
    with joined(address, ClusterError) as ray:
        _spread(ray, jobs, limits, done, started, paths, task)


def _spread(
    ray: Any,
    jobs: Sequence[J],
    limits: Limits,
    done: Callable[[J, dict[str, Any]], None],
    started: Callable[[J], None] | None,
    paths: Sequence[str],
    task: str,
) -> None:
    # a lost machine's portion is run again; an exception of ours is not
    environment = {"env_vars": {"PYTHONPATH": python_path(*paths)}}
    remote = ray.remote(_portion).options(num_cpus=1, max_retries=3, runtime_env=environment)
    processors = int(ray.cluster_resources().get("CPU", 1))
    size = max(1, -(-len(jobs) // (processors * _SHARE)))
    waiting: dict[Any, tuple[J, ...]] = {}
    try:
        for start in range(0, len(jobs), size):
            portion = tuple(jobs[start : start + size])
            plain = [(job.name, job.payload()) for job in portion]
            waiting[remote.remote(plain, limits, list(paths), task, _versions())] = portion
            for job in portion:
                if started is not None:
                    started(job)
        while waiting:
            for reference in ray.wait(list(waiting), num_returns=1)[0]:
                portion = waiting.pop(reference)
                for job, outcome in zip(portion, _outcomes(ray, reference, len(portion)), strict=True):
                    done(job, outcome)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _outcomes(ray: Any, reference: Any, count: int) -> list[dict[str, Any]]:
    try:
        outcomes: list[dict[str, Any]] = ray.get(reference)
        return outcomes
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, ReproError) else ClusterError(one_line(error)) from error
    except ray.exceptions.RayError as error:
        return [{"error": {"reason": "crashed", "message": f"lost with its machine: {one_line(error)}"}}] * count
