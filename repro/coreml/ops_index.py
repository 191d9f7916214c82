# ruff: noqa: D103 - an operator's name is its MIL type, and its definition is the one that the module names.
"""Slices, gathers and scatters.

Definitions: coremltools' ``iOS15/tensor_transformation.py`` (slices), ``scatter_gather.py`` and their successors. A
negative index counts from the end, as iOS 15 and 16 define it; iOS 17 leaves that case open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from repro.coreml.registry import op


def _ranges(
    sizes: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None,
    begin_mask: Sequence[bool] | None,
    end_mask: Sequence[bool] | None,
    squeeze_mask: Sequence[bool] | None,
) -> list[range]:
    """The places that a slice takes of each dimension; one place where it is squeezed out."""
    ranges = []
    for i, size in enumerate(sizes):
        first = None if begin_mask and begin_mask[i] else begin[i]
        if squeeze_mask and squeeze_mask[i]:
            place = (first or 0) % size
            ranges.append(range(place, place + 1))
        else:
            last = None if end_mask and end_mask[i] else end[i]
            ranges.append(range(size)[slice(first, last, stride[i] if stride else None)])
    return ranges


@op()
def slice_by_index(
    x: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """As numpy's ``x[begin:end:stride, ...]``; a mask leaves a bound open, a squeezed dimension is indexed."""
    ranges = _ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, places in enumerate(ranges):
        if places.step < 0:
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
        elif len(places) != x.shape[axis]:
            x = x[(slice(None),) * axis + (slice(places.start, places.stop, places.step),)]
    squeezed = tuple(i for i, mask in enumerate(squeeze_mask or ()) if mask)
    return x.squeeze(squeezed) if squeezed else x


@op()
def slice_by_size(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """``size`` elements from ``begin`` of each dimension; -1 takes the rest."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first = first % x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@op(tensors="x update")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """``x`` with the slice that :func:`slice_by_index` would take replaced."""
    ranges = _ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    x = x.clone()
    x[torch.meshgrid(*(torch.tensor(places, dtype=torch.int64) for places in ranges), indexing="ij")] = update.reshape(
        [len(places) for places in ranges]
    )
    return x


def _places(indices: Tensor, size: int, validate: bool) -> Tensor:
    """Indices as torch takes them: int64, from the front."""
    places = indices.long()
    if validate and places.numel() and (int(places.min()) < 0 or int(places.max()) >= size):
        raise IndexError(f"an index is not from 0 to {size - 1}")
    return torch.where(places < 0, places + size, places)


@op(tensors="x indices")
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """``x[:axis] + indices[batch_dims:] + x[axis + 1:]``, the first ``batch_dims`` dimensions taken one by one."""
    axis %= x.ndim
    places = _places(indices, x.shape[axis], validate_indices)
    if batch_dims:
        batch = x.shape[:batch_dims]
        pairs = zip(x.flatten(0, batch_dims - 1), places.flatten(0, batch_dims - 1), strict=True)
        found = torch.stack([gather(one, at, axis - batch_dims) for one, at in pairs])
        return found.reshape(batch + found.shape[1:])
    return x.index_select(axis, places.flatten()).reshape(x.shape[:axis] + places.shape + x.shape[axis + 1 :])


@op(tensors="x indices")
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return x.gather(axis, _places(indices, x.shape[axis], validate_indices))


@op(tensors="x indices")
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """The last dimension of ``indices`` is an index into the dimensions of ``x`` that follow the batch."""
    depth = indices.shape[-1]
    at = [_places(indices[..., i], x.shape[batch_dims + i], validate_indices) for i in range(depth)]
    for i in range(batch_dims):
        spread = [1] * (indices.ndim - 1)
        spread[i] = x.shape[i]
        at.insert(i, torch.arange(x.shape[i]).reshape(spread))
    return x[tuple(at)]


def _scatter(data: Tensor, axis: int, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """``updates`` to ``data`` at ``places`` along ``axis``; all three of one rank."""
    if mode == "update":
        return data.scatter(axis, places, updates)
    if mode in ("add", "sub"):
        return data.scatter_add(axis, places, updates if mode == "add" else -updates)
    if mode == "div":
        return data / torch.ones_like(data).scatter_reduce(axis, places, updates, "prod")
    reductions = {"mul": "prod", "max": "amax", "min": "amin"}
    if mode not in reductions:
        raise ValueError(f"unknown mode {mode}")
    return data.scatter_reduce(axis, places, updates, reductions[mode])


@op(tensors="data indices updates")
def scatter(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """Slices of ``updates`` along ``axis`` to the places that the vector ``indices`` names."""
    axis %= data.ndim
    spread = [-1 if i == axis else 1 for i in range(data.ndim)]
    places = _places(indices, data.shape[axis], validate_indices).reshape(spread).expand(updates.shape)
    return _scatter(data, axis, places, updates, mode)


@op(tensors="data indices updates")
def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    return _scatter(data, axis, _places(indices, data.shape[axis], validate_indices), updates, mode)


@op(tensors="data indices updates")
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """The last dimension of ``indices`` is an index into the first dimensions of ``data``."""
    depth = indices.shape[-1]
    leading, rest = data.shape[:depth], data.shape[depth:]
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for i, size in enumerate(leading):
        place = place * size + _places(indices[..., i], size, validate_indices)
    rows = data.reshape(math.prod(leading), math.prod(rest))
    new = updates.reshape(place.numel(), math.prod(rest))
    return _scatter(rows, 0, place.reshape(-1, 1).expand(new.shape), new, mode).reshape(data.shape)
