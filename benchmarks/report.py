"""The report of all tables over 5,000 records of history, beside ten runs of ``repro table N --format html``.

    python benchmarks/report.py [--records 5000]

Prints the seconds of both (processor time beside elapsed), their ratio, the size of Table 18's page and, where
playwright and Chromium are installed, how long a browser takes from opening that page to showing it filtered and
sorted.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from repro.results.store import Store
from repro.spec.project import Project


def make_history(folder: Path, count: int) -> None:
    """The ledger's records as many nights would have left them: equal but for the time."""
    published = list(Store(Project().folder("results")).all())
    store = Store(folder)
    nights = (
        replace(record, provenance={**record.provenance, "time": f"2026-{1 + night // 28:02d}-{1 + night % 28:02d}T03"})
        for night in range(count)
        for record in published
    )
    for record in islice(nights, count):
        store.put(record)


def timed(*arguments: str) -> tuple[float, float]:
    """Elapsed and processor seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "repro", *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def browser(page: Path) -> None:
    """Open, filter and sort Table 18."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("no browser: playwright or Chromium is not installed")
        return
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        for _ in range(3):
            start = time.perf_counter()
            window.goto(page.as_uri())
            window.locator("#shown").filter(has_text="62 of 62").wait_for()
            ready = time.perf_counter()
            window.get_by_role("searchbox").fill("iformer")
            window.get_by_role("button", name="Latency (ms)").click()
            window.locator("#shown").filter(has_text="4 of 62").wait_for()
            done = time.perf_counter()
            print(f"Chromium: ready after {ready - start:.2f} s, filtered and sorted {done - ready:.2f} s later")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=5000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_history(folder / "store", count)
        place = ["--store", str(folder / "store")]
        site = timed("report", "--output", str(folder / "site"), *place)
        numbers = sorted(Project().paths)
        pages = [
            timed("table", str(n), "--no-measure", "--format", "html", "--output", str(folder / "html"), *place)
            for n in numbers
        ]
        others = sum(item[0] for item in pages), sum(item[1] for item in pages)
        print(f"repro report, {count} records: {site[0]:.2f} s, {site[1]:.2f} s of a processor")
        print(f"repro table N --format html, {len(numbers)} runs: {others[0]:.2f} s, {others[1]:.2f} s of a processor")
        print(f"ratio {site[1] / others[1]:.2f} (all pages, stories, plots and downloads against the tables alone)")
        print(f"Table 18's page: {(folder / 'site' / 'table_18.html').stat().st_size / 1e6:.2f} MB")
        browser(folder / "site" / "table_18.html")


if __name__ == "__main__":
    main()
