"""A cached ``repro table 18`` against ``python -c "import torch"``, in pairs, and again with 20,000 unrelated records.

    python benchmarks/cached_table.py

Prints the median ratio of whole-process wall times; the aim is at most 0.5. Counts first if the store lacks any.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from repro.results.store import Store


def seconds(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def ratio(ours: list[str], theirs: list[str], folder: Path, pairs: int) -> tuple[float, float, float]:
    """Median seconds of both and the median of the ratios of neighbours."""
    seconds(ours, folder)
    seconds(theirs, folder)
    measured = [(seconds(ours, folder), seconds(theirs, folder)) for _ in range(pairs)]
    a, b = zip(*measured, strict=True)
    return statistics.median(a), statistics.median(b), statistics.median(x / y for x, y in measured)


def crowd(store: Path, count: int) -> None:
    """Fill the store with records of other variants."""
    original = next(Store(store).all())
    for index in range(count):
        subject = replace(original.subject, variant=f"unrelated_{index % 500}", model=f"unrelated_{index % 500}")
        Store(store).put(replace(original, subject=subject, provenance={"time": str(index)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--unrelated", type=int, default=20_000)
    pairs = (arguments := parser.parse_args()).pairs
    with TemporaryDirectory() as name:
        folder, store = Path(name), Path(name) / "store"
        ours = [sys.executable, "-m", "repro", "table", "18", "--store", str(store)]
        torch = [sys.executable, "-c", "import torch"]
        subprocess.run(ours, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for label in ("cached", f"cached, {arguments.unrelated:,} unrelated records"):
            mine, base, quotient = ratio(ours, torch, folder, pairs)
            print(f"{label}: {mine:.3f} s, import torch {base:.3f} s, ratio {quotient:.2f} (aim: at most 0.50)")
            if label == "cached":
                crowd(store, arguments.unrelated)


if __name__ == "__main__":
    main()
