# ruff: noqa: D103 - an operator's name is its MIL type, and its definition is the one that the module names.
"""Reductions over dimensions. Definitions: coremltools' ``iOS15/reduction.py`` and ``iOS17/reduction.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repro.coreml.registry import carrier, op


def _dims(x: Tensor, axes: Sequence[int] | None) -> list[int]:
    """The dimensions to reduce: all of them where none are named."""
    return list(range(x.ndim)) if axes is None else sorted({axis % x.ndim for axis in axes})


@op()
def reduce_sum(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.sum(_dims(x, axes), keep_dims, dtype=x.dtype)


@op()
def reduce_mean(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    if x.is_floating_point():
        return x.mean(_dims(x, axes), keep_dims)
    return x.mean(_dims(x, axes), keep_dims, dtype=torch.float64).to(x.dtype)


@op()
def reduce_max(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.amax(_dims(x, axes), keep_dims)


@op()
def reduce_min(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    return x.amin(_dims(x, axes), keep_dims)


@op()
def reduce_prod(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    for dim in reversed(_dims(x, axes)):
        x = x.prod(dim, keep_dims, dtype=x.dtype)
    return x


@op()
def reduce_l1_norm(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    return reduce_sum(x.abs(), axes, keep_dims)


@op()
def reduce_l2_norm(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    return reduce_sum(x.square(), axes, keep_dims).sqrt().to(x.dtype)


@op()
def reduce_sum_square(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    return reduce_sum(x.square(), axes, keep_dims)


@op()
def reduce_log_sum(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    return reduce_sum(x, axes, keep_dims).log().to(x.dtype)


@op()
def reduce_log_sum_exp(x: Tensor, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    return torch.logsumexp(x, _dims(x, axes), keep_dims).to(x.dtype)


@op()
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmax(axis, keep_dims).to(carrier(output_dtype))


@op()
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmin(axis, keep_dims).to(carrier(output_dtype))
