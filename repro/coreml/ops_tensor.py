# ruff: noqa: D103 - an operator's name is its MIL type, and its definition is the one that the module names.
"""Shape, order and construction of tensors.

Definitions: coremltools' ``iOS15/tensor_operation.py``, ``tensor_transformation.py`` and their successors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repro.coreml.registry import carrier, op


@op()
def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A 0 takes the size of ``x`` at that place, counted from the right (iOS 17; before, both had the same rank)."""
    offset = x.ndim - len(shape)
    sizes = [
        (x.shape[i + offset] if i + offset >= 0 else 1) if size == 0 and x.numel() else size
        for i, size in enumerate(shape)
    ]
    return x.reshape(sizes)


@op(tensors="x ref_tensors", lists="ref_tensors begins ends end_masks")
def reshape_like(
    x: Tensor, ref_tensors: list[Tensor], begins: list[int], ends: list[int], end_masks: list[bool]
) -> Tensor:
    """To the chosen dimensions of each reference tensor, one after the other."""
    shape: list[int] = []
    for reference, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape.extend(reference.shape[begin:] if to_end else reference.shape[begin:end])
    return x.reshape(shape)


@op()
def transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    return x.permute(tuple(perm))


@op()
def expand_dims(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op()
def squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@op()
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op(tensors="values", lists="values")
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    if not interleave:
        return torch.cat([value.reshape(1) if value.ndim == 0 else value for value in values], axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@op(tensors="values", lists="values")
def stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(values, axis)


@op()
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None
) -> tuple[Tensor, ...]:
    return torch.split(x, list(split_sizes) if split_sizes else x.shape[axis] // (num_splits or 1), axis)


@op()
def tile(x: Tensor, reps: Sequence[int]) -> Tensor:
    return x.repeat(tuple(reps))


@op()
def reverse(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return x.flip(tuple(axes) if axes is not None else tuple(range(x.ndim)))


@op()
def reverse_sequence(x: Tensor, lengths: Sequence[int], seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first ``lengths[i]`` elements of sample ``i`` in reverse, the rest as they are."""
    x = x.clone()
    for i, length in enumerate(lengths):
        head = x.select(batch_axis, i).narrow(seq_axis - (batch_axis < seq_axis), 0, length)
        head.copy_(head.flip(seq_axis - (batch_axis < seq_axis)))
    return x


@op()
def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """The last ``len(pad) / 2`` dimensions, each before and after."""
    pairs = [(pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)]
    if mode == "constant":
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=constant_val)
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        if before or after:
            size = x.shape[axis]
            place = torch.arange(-before, size + after)
            if mode == "reflect":
                place = size - 1 - (size - 1 - place.abs()).abs()
            elif mode == "replicate":
                place = place.clamp(0, size - 1)
            else:
                raise ValueError(f"unknown mode {mode}")
            x = x.index_select(axis, place)
    return x


@op()
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channels (block, block, C) of ``x`` (n, block * block * C, H, W) to blocks of H and W."""
    n, c, h, w = x.shape
    b = block_size
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


@op()
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """Blocks of H and W of ``x`` (n, C, H, W) to channels (block, block, C)."""
    n, c, h, w = x.shape
    b = block_size
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


@op()
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


@op()
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


@op()
def space_to_batch(x: Tensor, block_shape: Sequence[int], paddings: Sequence[Sequence[int]]) -> Tensor:
    """Blocks of H and W of the padded ``x`` (n, C, H, W) to the batch, which they lead."""
    (top, bottom), (left, right) = paddings
    x = F.pad(x, [left, right, top, bottom])
    n, c, h, w = x.shape
    p, q = block_shape
    return x.reshape(n, c, h // p, p, w // q, q).permute(3, 5, 0, 1, 2, 4).reshape(n * p * q, c, h // p, w // q)


@op()
def batch_to_space(x: Tensor, block_shape: Sequence[int], crops: Sequence[Sequence[int]]) -> Tensor:
    """The leading part of the batch of ``x`` (n, C, H, W) to blocks of H and W, then cropped."""
    n, c, h, w = x.shape
    p, q = block_shape
    x = x.reshape(p, q, n // (p * q), c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n // (p * q), c, h * p, w * q)
    (top, bottom), (left, right) = crops
    return x[:, :, top : h * p - bottom, left : w * q - right]


@op()
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """A new dimension after ``axis`` holds each window's elements."""
    axis %= x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


@op()
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero outside a band of diagonals around the main one; a negative width keeps everything on that side."""
    rows, columns = x.shape[-2:]
    below = torch.arange(rows)[:, None] - torch.arange(columns)
    inside = ((below <= lower) | (lower < 0)) & ((-below <= upper) | (upper < 0))
    return torch.where(inside, x, torch.zeros((), dtype=x.dtype))


@op()
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    if reverse:
        x = x.flip(axis)
    total = x.cumsum(axis, dtype=x.dtype)
    if exclusive:
        total = torch.cat([torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


@op()
def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@op(tensors="value")
def fill(shape: Sequence[int], value: Tensor | None = None) -> Tensor:
    """The type is that of ``value``."""
    return torch.zeros(tuple(shape)) if value is None else torch.full(tuple(shape), value.item(), dtype=value.dtype)


@op(tensors="ref_tensor value")
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """The shape of ``ref_tensor``, the type of ``value``."""
    return fill(ref_tensor.shape, value)


@op(tensors="start end step")
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@op(tensors="indices on_value off_value")
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """A new dimension at ``axis``; an index outside of the vector sets nothing."""
    on = torch.ones((), dtype=torch.int32) if on_value is None else on_value
    off = torch.zeros((), dtype=on.dtype) if off_value is None else off_value
    places = torch.arange(one_hot_vector_size)
    return torch.where(indices.unsqueeze(-1) == places, on, off).movedim(-1, axis)


@op()
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return x.argsort(dim=axis, descending=not ascending, stable=True).to(torch.int32)


@op()
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The ``k`` largest (or smallest) and their places; always in order, which an unsorted request allows too."""
    values, places = x.sort(dim=axis, descending=not ascending, stable=True)
    k = x.shape[axis] if k == -1 else k
    values = values.narrow(axis, 0, k)
    return (values, places.narrow(axis, 0, k).to(carrier(output_indices_dtype))) if return_indices else values


@op()
def non_zero(x: Tensor) -> Tensor:
    return x.nonzero().to(torch.int32)
