"""A cold ``repro export N`` with two workers against one conversion after the other, and again when cached.

    python benchmarks/export_cold.py --tables 18

"One after the other" is what a user would write: one process that builds each network, merges and folds it, traces it
and converts it with the same calls. Aims: at least 1.8 times faster with two workers on two processors; cached in under
a second without importing torch or coremltools. ``--sample N`` takes every n-th variant only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from repro.commands.packages import Wanted
from repro.coreml.export import ExportJob
from repro.spec.project import Project

PLAIN = """
import json, sys
from repro.coreml.exporting import export
for payload in json.load(open(sys.argv[1])):
    export(payload)
"""
LOADED = """
import sys
from repro.cli import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in ("torch", "coremltools", "timm") if name in sys.modules], file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", default=["18"])
    parser.add_argument("--sample", type=int, default=1)
    arguments = parser.parse_args()
    wanted = Wanted(weights=None, checkpoints=None, precision="float16", target="iOS15", input_kind="tensor", size=None)
    project = Project.find(None)
    chosen = arguments.tables
    if arguments.sample > 1:
        sampled = wanted.requests(project, chosen)[:: arguments.sample]
        chosen = list(dict.fromkeys(request.variant.id for request in sampled))
    requests = wanted.requests(project, chosen)
    with TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [ExportJob(request=item, folder=folder / "plain", check=False, convert=True) for item in requests]
        (folder / "jobs.json").write_text(json.dumps([job.payload() for job in jobs]))
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", PLAIN, str(folder / "jobs.json")], check=True, stderr=subprocess.DEVNULL)
        plain = time.perf_counter() - start
        command = ["export", *chosen, "--jobs", "2", "--output", str(folder / "packages")]
        seconds, loaded = [], ""
        for _ in range(4):
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", LOADED, *command], check=True, capture_output=True, text=True)
            seconds.append(time.perf_counter() - start)
            loaded = done.stderr.splitlines()[-1]
        cold, cached = seconds[0], min(seconds[1:])
    print(f"{len(requests)} packages: {plain:.0f} s one after the other, {cold:.0f} s with two workers, "
          f"{plain / cold:.2f} times faster (aim: 1.8)")  # fmt: skip
    print(f"cached: {cached:.2f} s (aim: under 1), imported of torch, coremltools, timm: {loaded}")


if __name__ == "__main__":
    main()
