"""The interpreter against PyTorch's own eager forward of the traced network, at batch 1.

    python benchmarks/export_interpreter.py iformer_m mobilenetv2_100

Medians of interleaved runs in one process with one thread. Aim: no more than 3 times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from repro.coreml.convert import convert
from repro.coreml.exporting import deployed
from repro.coreml.interpreter import Program
from repro.coreml.weights import sample_inputs
from repro.spec.tables import Variant


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["mobilenetv2_100", "iformer_m", "efficientvit_b1", "shvit_s4"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        size = (arguments.size, arguments.size)
        variant = Variant(id=name, builder="timm", model=name)
        module = deployed(variant, size, {"path": None, "seed": 0, "sha256": None, "wrapper": None})
        x = sample_inputs((3, *size), count=1, seed=1)
        trace: Any = torch.jit.trace
        with TemporaryDirectory() as folder, torch.inference_mode():
            program = Program.load(convert(module, Path(folder) / "m.mlpackage", input_size=arguments.size))
            traced = trace(module, x, check_trace=False)
            for _ in range(3):
                traced(x), program.run({"image": x})
            pairs = [
                (timed(lambda: program.run({"image": x})), timed(lambda: traced(x)))  # noqa: B023 - called at once
                for _ in range(arguments.pairs)
            ]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name}: interpreter {1000 * ours:.1f} ms, eager {1000 * theirs:.1f} ms, ratio {ratio:.2f} (aim: 3)")


if __name__ == "__main__":
    main()
