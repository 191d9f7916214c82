"""A cold ``repro table 18 --refresh`` against a process a model, and against one plain script with the same counts.

    python benchmarks/cold_table.py

A process a model is how timm's own bulk benchmark runs. Both competitors build every distinct (variant, input size) of
Table 18 as timm or torchvision do, count params and fvcore's operations as trained and reparameterised, and
FlopCounterMode's. With ``--sample N`` only N of the models are run a process each, and their mean stands for the rest.
Aims: at least 15 times faster than a process a model; at most 1.5 times the plain script's time divided by the workers.
Peak memory of the workers is sampled meanwhile; the aim is under 1.5 GiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from repro.measure.needs import Need, need_of
from repro.spec.project import Project

PLAIN = """
import json, logging, sys
logging.disable(logging.CRITICAL)
import timm, torch, torchvision
from fvcore.nn import FlopCountAnalysis
from timm.utils.model import reparameterize_model
from torch.utils.flop_counter import FlopCounterMode
import repro.models
torch.set_num_threads(int(sys.argv[2]))
for builder, name, size in json.loads(sys.argv[1]):
    model = (timm.create_model if builder == "timm" else torchvision.models.get_model)(name).eval()
    example = torch.zeros(1, 3, *size)
    for form in (model, reparameterize_model(model)):
        params = sum(parameter.numel() for parameter in form.parameters())
        analysis = FlopCountAnalysis(form, example)
        analysis.tracer_warnings("none")
        operators = analysis.by_operator()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            form(example)
        print(name, params, sum(operators.values()), counter.get_total_flops())
"""


def models() -> list[tuple[str, str, tuple[int, int]]]:
    """Builder, name and input size of each distinct count behind Table 18's own cells, ported families left out."""
    table = Project().table(18)
    found: dict[tuple[str, str, tuple[int, int]], None] = {}
    for row in table.rows:
        need = need_of(table, row, "gmacs")
        if isinstance(need, Need) and not need.subject.source.startswith("repro "):
            found[need.variant.builder, need.variant.model, need.input_size] = None
    return list(found)


class Peak(threading.Thread):
    """The largest resident memory of any child process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.running = 0, True

    def run(self) -> None:
        own = psutil.Process()
        while self.running:
            for child in own.children(recursive=True):
                try:
                    self.bytes = max(self.bytes, child.memory_info().rss)
                except psutil.Error:
                    continue
            time.sleep(0.1)


def seconds(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sample", type=int, default=0, help="models that run in a process each; 0: all")
    arguments = parser.parse_args()
    wanted = models()
    names = [row for row in Project().table(18).rows if row.variant is not None]
    only = [
        part
        for row in names
        for part in ("--only", row.model)
        if row.variant is not None and (row.variant.builder, row.variant.model) in {item[:2] for item in wanted}
    ]
    with TemporaryDirectory() as name:
        folder = Path(name)
        ours = [sys.executable, "-m", "repro", "table", "18", "--refresh", "--jobs", str(arguments.workers)]
        ours += ["--store", str(folder / "store"), *only]
        peak = Peak()
        peak.start()
        cold = seconds(ours, folder)
        peak.running = False
        plain = [sys.executable, "-c", PLAIN]
        script = seconds([*plain, json.dumps(wanted), "1"], folder)
        step = max(1, len(wanted) // arguments.sample) if arguments.sample else 1
        each = [seconds([*plain, json.dumps([item]), str(arguments.workers)], folder) for item in wanted[::step]]
    bulk = sum(each) / len(each) * len(wanted)
    share = script / arguments.workers
    print(f"{len(wanted)} models; repro with {arguments.workers} workers: {cold:.1f} s")
    print(f"peak memory of a process: {peak.bytes / 2**30:.2f} GiB (aim: under 1.5)")
    print(
        f"a process a model: {bulk:.0f} s, {bulk / len(wanted):.1f} s each ({len(each)} run): {bulk / cold:.1f} times"
    )
    print(f"one plain script: {script:.1f} s, {share:.1f} s a worker: ratio {cold / share:.2f} (aim: at most 1.50)")


if __name__ == "__main__":
    main()
