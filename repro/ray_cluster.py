"""Joining a Ray cluster (optional extra): what every executor on one has in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from repro.errors import ReproError


@contextmanager
def joined(address: str | None, error: type[ReproError]) -> Iterator[Any]:
    """The ``ray`` module, connected; a cluster that was not joined before is left in the end.

    Parameters
    ----------
    address
        As ``ray.init`` takes it; None joins the cluster that ``RAY_ADDRESS`` names, or starts one on this machine.
    error
        What is raised when Ray is not installed or there is no such cluster.
    """
    try:
        import ray  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as missing:
        raise error("the Ray executor needs ray, which is not installed") from missing
    started = not ray.is_initialized()
    if started:
        try:
            # without a name Ray would join whatever cluster somebody else's program has started on this machine
            where = address or os.environ.get("RAY_ADDRESS") or "local"
            ray.init(address=where, log_to_driver=False, configure_logging=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as problem:
            raise error(f"no Ray cluster at {address or 'this machine'}: {one_line(problem)}") from problem
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def python_path(*paths: str) -> str:
    """``PYTHONPATH`` for the cluster's processes: ``paths``, then what this one finds beside its installed packages.

    A checkout, or a project's own module of builders, must be found there under the same path.
    """
    own: Sequence[str] = [path for path in sys.path if path and not path.startswith((sys.prefix, sys.base_prefix))]
    return os.pathsep.join(dict.fromkeys([*paths, *own]))


def one_line(error: BaseException, length: int = 200) -> str:
    """An exception's message without line breaks."""
    return " ".join(str(error).split())[:length]
