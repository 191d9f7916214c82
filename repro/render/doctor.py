"""What this machine can measure, and what is missing for the rest."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from tabulate import tabulate

from repro.results.sources import version
from repro.spec.project import Project

_PACKAGES = ("torch", "torchvision", "timm", "fvcore", "coremltools", "jinja2", "pandas", "tabulate", "numpy")


def abilities() -> str:
    """What this machine can measure, and with which packages: the part of the report that names no folder."""
    mac = platform.system() == "Darwin"
    able = [
        ("params, GMACs", "yes", "counted on any machine"),
        ("Core ML latency", "on this Mac" if mac else "no", "" if mac else "Core ML predicts only on macOS"),
        ("packages", "yes", "converted and checked on any machine: repro export --check"),
        ("latency estimate", "yes", "from ML programs, not a measurement: repro estimate"),
        ("top-1", "no", "needs the ImageNet validation set and the rows' released checkpoints"),
        (
            "AP, mIoU",
            "no",
            "needs COCO or ADE20K (repro evaluate 13 --coco DIR --ade20k DIR) and the rows' released checkpoints",
        ),
        ("LaTeX to PDF", "yes" if shutil.which("pdflatex") else "no", "only for looking; repro writes .tex itself"),
    ]
    packages = [(name, version(name)) for name in _PACKAGES]
    parts = [
        tabulate(able, headers=["Can measure", "Here", "Remark"], tablefmt="simple"),
        tabulate(packages, headers=["Package", "Installed"], tablefmt="simple", disable_numparse=True),
    ]
    return "\n\n".join(str(part) for part in parts) + "\n"


def doctor(project: Project, store: Path) -> str:
    """The report as text."""
    machine = [
        (
            "system",
            f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        ),
        ("processors", str(os.cpu_count())),
        ("tables", f"{project.folder('tables')} ({len(project.paths)} specs)"),
        ("ledger", f"{project.folder('results')} ({_count(project.folder('results'))} records)"),
        ("store", f"{store} ({_count(store)} records)"),
    ]
    return f"{abilities()}\n{phone()}\n{tabulate(machine, tablefmt='plain')}\n"


def phone() -> str:
    """What measuring on a connected iPhone needs, step by step."""
    from repro.coreml.apple import steps

    found = steps(team=os.environ.get("REPRO_APPLE_TEAM"), profile=os.environ.get("REPRO_APPLE_PROFILE"))
    lines = [(name, "done" if done else "missing", "" if done else how) for name, done, how in found]
    return str(tabulate(lines, headers=["Latency on an iPhone", "", "What to do"], tablefmt="simple")) + "\n"


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*.json")) if folder.is_dir() else 0
