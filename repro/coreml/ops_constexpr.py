# ruff: noqa: D103 - an operator's name is its MIL type, and its definition is the one that the module names.
"""Compressed constants: palettes, quantisation, sparsity; and quantised activations.

Definitions: coremltools' ``iOS16/constexpr_ops.py``, ``iOS18/compression.py`` and ``iOS17/quantization_ops.py``. The
interpreter executes ``constexpr_*`` once, when the program is loaded, as Core ML does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from repro.coreml.mil import DTYPES, unpack
from repro.coreml.registry import carrier, integer_range, op


def _bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned integers of a few bits out of a vector of bytes, lowest bits first."""
    return torch.from_numpy(unpack(np.ascontiguousarray(packed.numpy()), DTYPES[f"uint{bits}"], count).copy())


def _blocks(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Each value repeated over its block of a tensor of ``shape``; the leading dimensions are blocked."""
    for axis, size in enumerate(shape):
        if values.shape[axis] != size:
            values = values.repeat_interleave(size // values.shape[axis], axis)
    return values


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A vector of scales or zero points laid along ``axis`` of ``x``; a scalar as it is."""
    if values.ndim == 0:
        return values
    return values.reshape([-1 if i == (axis or 0) % x.ndim else 1 for i in range(x.ndim)])


@op(tensors="quantized_data zero_point scale")
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    return dequantize(quantized_data, scale, zero_point, axis)


@op(tensors="input zero_point scale")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """``scale * (input - zero_point)``, with one pair for all or one for each place along ``axis``."""
    x = input.to(scale.dtype)
    if zero_point is not None:
        x = x - _along(zero_point.to(scale.dtype), x, axis)
    return x * _along(scale, x, axis)


@op(tensors="input zero_point scale")
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """``round(input / scale) + zero_point``, clipped to the range of ``output_dtype``."""
    x = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        x = x + _along(zero_point.to(x.dtype), input, axis)
    return x.clamp(*integer_range(output_dtype)).to(carrier(output_dtype))


@op(tensors="source_val")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    return source_val.to(carrier(output_dtype))


@op(tensors="indices lut")
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Sequence[int] | None = None, vector_axis: int | None = None
) -> Tensor:
    """Look each index up in its palette.

    With ``shape`` (iOS 16) the indices are packed bytes and ``lut`` is one palette. Otherwise (iOS 18) ``lut`` has a
    palette for each block of ``indices``, of single values or of vectors laid along ``vector_axis``.
    """
    if shape is not None:
        places = _bits(indices, round(math.log2(lut.numel())), math.prod(shape))
        return lut[places.long()].reshape(tuple(shape))
    vector = lut.shape[-1]
    dense = torch.gather(
        _blocks(lut, indices.shape), -2, indices.long()[..., None, None].expand(*indices.shape, 1, vector)
    ).squeeze(-2)
    if vector == 1:
        return dense.squeeze(-1)
    axis = (vector_axis or 0) % indices.ndim
    return dense.movedim(-1, axis + 1).flatten(axis, axis + 1)


@op(tensors="nonzero_data mask")
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Values at the places of a mask, which is packed bytes where ``shape`` is given (iOS 16)."""
    if shape is not None:
        mask = _bits(mask, 1, math.prod(shape)).reshape(tuple(shape))
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


@op(tensors="data scale offset")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """``scale * (data - offset)``, with one pair for each block of ``data``."""
    x = data.to(scale.dtype)
    if offset is not None:
        x = x - _blocks(offset.to(scale.dtype), x.shape)
    return x * _blocks(scale, x.shape)


@op(tensors="indices_mask indices_nonzero_data lut")
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the values of a sparse tensor whose values are looked up in palettes."""
    dense = constexpr_lut_to_dense(
        constexpr_sparse_to_dense(indices_nonzero_data, indices_mask), lut, None, vector_axis
    )
    mask = indices_mask
    if lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], (vector_axis or 0) % mask.ndim)
    return mask, dense[mask != 0]


@op(tensors="data_mask nonzero_data scale offset")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the values of a sparse tensor that is quantised block by block."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]
