"""Where and when a record was made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _commit() -> str | None:
    """The checkout's commit, with ``+`` where the working tree differs; ``None`` when installed as a wheel."""
    import subprocess

    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def provenance(versions: Mapping[str, str]) -> dict[str, Any]:
    """Where and when a record was made: code, machine and the releases of everything that took part."""
    import platform
    import socket

    from repro import __version__

    return {
        "repro": __version__,
        "commit": _commit(),
        "packages": dict(versions),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu(),
        "host": socket.gethostname(),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


@cache
def _cpu() -> str:
    """The processor's own name where the system tells it."""
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
