"""Measure what channel chunking (paper, appendix F, Table 17) does to the memory of iFormer's hybrid attention.

Every tensor that a forward pass allocates is followed from its allocation to its release, so the figures are exact,
repeatable and the machine's own noise is not in them. Weights and the input image are not counted. The models are
reparameterised, as they are deployed.

    python benchmarks/chunking_memory.py --model m --size 512 --chunks 16

Attention is computed with its matrix written out, as converted models do; ``--fused`` uses PyTorch's fused kernel,
which never holds the matrix.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from timm.layers import set_fused_attn
from timm.utils.model import reparameterize_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repro.models import iformer_ablations as ablations

MIB = 2**20
SIZES = {
    "t": ablations.IFORMER_T,
    "s": ablations.IFORMER_S,
    "m": ablations.IFORMER_M,
    "l": ablations.IFORMER_L,
    "l2": ablations.IFORMER_L2,
}


class LiveBytes(TorchDispatchMode):
    """Follow the bytes of all tensors allocated while active, and remember the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.peak_at = ""
        self.modules: list[str] = []
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), before)
        return result

    def _add(self, storage: torch.UntypedStorage, inputs: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or key in inputs:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live += size
        weakref.finalize(storage, self._remove, key, size)
        if self.live > self.peak:
            self.peak = self.live
            self.peak_at = self.modules[-1] if self.modules else ""

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def watch(self, model: nn.Module) -> None:
        """Name the innermost module at the peak."""
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.modules.append(name))
            module.register_forward_hook(lambda *_: self.modules.pop() and None)


def measure(run: Callable[[], object], model: nn.Module | None = None) -> LiveBytes:
    """Run once without gradients and return what was allocated."""
    with torch.no_grad(), LiveBytes() as memory:
        if model is not None:
            memory.watch(model)
        result = run()
        del result
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="m")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--chunks", type=int, nargs="+", default=[16])
    parser.add_argument("--fused", action="store_true", help="use PyTorch's fused attention")
    arguments = parser.parse_args()
    set_fused_attn(arguments.fused)

    base = SIZES[arguments.model]
    hybrid = ablations.hybrid(base)
    rows = {"SHMA": base, "all windows": replace(base, windowed=base.attention_blocks), "hybrid": hybrid}
    rows |= {f"hybrid, {n} chunks": replace(hybrid, chunks=n) for n in arguments.chunks}

    image = torch.randn(1, 3, arguments.size, arguments.size)
    print(f"iFormer-{arguments.model.upper()}, {arguments.size} px, float32, MiB")
    print("| design | peak of the model | at | peak in stage 3 | its partition: peak | largest piece moved | pieces |")
    print("|---|---|---|---|---|---|---|")
    for label, config in rows.items():
        model = reparameterize_model(ablations.create(config).eval())
        whole = measure(lambda model=model: model(image), model)
        with torch.no_grad():
            x = model.stages[:2](model.stem(image))
            stage = model.stages[2]
            entry = stage.downsample(x)
        third = measure(lambda stage=stage, x=x: stage(x))
        cells = [f"{whole.peak / MIB:.2f}", whole.peak_at, f"{(third.peak + x.nbytes) / MIB:.2f}"]
        if config.windowed[2]:
            moved = measure(lambda stage=stage, entry=entry: stage.partition(entry))
            piece = entry.nbytes / config.chunks
            cells += [f"{(moved.peak + entry.nbytes) / MIB:.2f}", f"{piece / MIB:.3f}", str(config.chunks)]
        else:
            cells += ["-", "-", "-"]
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
