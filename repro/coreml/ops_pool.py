"""Pooling. Definitions: coremltools' ``iOS15/pool.py``; rounding up behaves as PyTorch's ``ceil_mode``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from repro.coreml.ops_nn import flat_pads, padding_of
from repro.coreml.registry import op

_AVERAGE: dict[int, Callable[..., Tensor]] = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
_LARGEST: dict[int, Callable[..., Tensor]] = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}


def _pads(
    x: Tensor, kernel_sizes: list[int], strides: list[int], pad_type: str, pad: list[int] | None
) -> tuple[list[tuple[int, int]], bool]:
    """Padding of each dimension, and whether torch's own pooling takes it (the same on both sides, half a window)."""
    pads = padding_of(pad_type.lower(), pad, x.shape[2:], kernel_sizes, strides, [1] * len(kernel_sizes))
    own = all(before == after <= taps // 2 for (before, after), taps in zip(pads, kernel_sizes, strict=True))
    return pads, own


@op()
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Of ``x`` (n, C, *D); padding never wins."""
    strides = strides or [1] * len(kernel_sizes)
    pads, own = _pads(x, kernel_sizes, strides, pad_type, pad)
    if not own:
        x = F.pad(x, flat_pads(pads), value=-math.inf)
        pads = [(0, 0)] * len(pads)
    return _LARGEST[x.ndim](x, kernel_sizes, strides, [before for before, _ in pads], 1, ceil_mode)


@op()
def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Of ``x`` (n, C, *D); padded zeros count, unless they are excluded."""
    strides = strides or [1] * len(kernel_sizes)
    pads, own = _pads(x, kernel_sizes, strides, pad_type, pad)
    pool = _AVERAGE[x.ndim]
    if own:
        before = [before for before, _ in pads]
        return pool(x, kernel_sizes, strides, before, ceil_mode, not exclude_padding_from_average)
    padded = pool(F.pad(x, flat_pads(pads)), kernel_sizes, strides, 0, ceil_mode)
    if not exclude_padding_from_average:
        return padded
    inside = F.pad(torch.ones_like(x[:1, :1]), flat_pads(pads))
    return padded / pool(inside, kernel_sizes, strides, 0, ceil_mode)


@op()
def l2_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Root of the sum of squares in each window of ``x`` (n, C, *D)."""
    mean = avg_pool(x.square(), kernel_sizes, pad_type, strides, pad, False, ceil_mode)
    return torch.sqrt(mean * math.prod(kernel_sizes))
