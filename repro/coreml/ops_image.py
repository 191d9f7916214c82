# ruff: noqa: D103 - an operator's name is its MIL type, and its definition is the one that the module names.
"""Resizing and resampling of the last two dimensions.

Definitions: coremltools' ``iOS15/image_resizing.py`` and its successors, which give the sampled places by formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repro.coreml.registry import op


def _grid(size: int, out: int, mode: str) -> Tensor:
    """Where along a dimension of ``size`` elements the ``out`` results are sampled, as float64."""
    i = torch.arange(out, dtype=torch.float64)
    if mode == "ALIGN_CORNERS" and out == 1:
        return torch.tensor([(size - 1) / 2], dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        place = i * ((size - 1) / (out - 1) if out > 1 else 0.0)
    elif mode == "DEFAULT":
        place = i * (size / out)
    elif mode == "OFFSET_CORNERS":
        place = (i + 0.5) * (max(1, size - 1) / out)
    elif mode == "UNALIGN_CORNERS":
        place = (i + 0.5) * (size / out) - 0.5
    else:
        raise ValueError(f"unknown sampling_mode {mode}")
    return place.clamp(0, size - 1)


def _linear(x: Tensor, axis: int, out: int, mode: str) -> Tensor:
    size = x.shape[axis]
    if size == out and mode != "OFFSET_CORNERS":
        return x
    place = _grid(size, out, mode)
    low = place.floor().long().clamp(max=size - 1)
    weight = (place - low).to(x.dtype).reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1)), weight)


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    if mode in ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS") and x.ndim == 4:
        resized: Tensor = F.interpolate(
            x, (height, width), mode="bilinear", align_corners=mode == "STRICT_ALIGN_CORNERS"
        )
        return resized
    return _linear(_linear(x, -2, height, mode), -1, width, mode)


def _nearest(x: Tensor, axis: int, out: int, step: float) -> Tensor:
    """The element below ``i * step`` for each of the ``out`` results."""
    if step == 1 and out == x.shape[axis]:
        return x
    # The nudge keeps a product such as 3 * (1 / 3) from falling below the element that it means.
    place = torch.floor(torch.arange(out, dtype=torch.float64) * step + 1e-9).long()
    return x.index_select(axis, place.clamp(max=x.shape[axis] - 1))


@op()
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    for axis, scale in ((-2, scale_factor_height), (-1, scale_factor_width)):
        x = _nearest(x, axis, math.floor(x.shape[axis] * scale + 1e-6), 1 / scale)
    return x


@op()
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    x = _nearest(x, -2, target_size_height, x.shape[-2] / target_size_height)
    return _nearest(x, -1, target_size_width, x.shape[-1] / target_size_width)


@op()
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """The grid follows from the sizes before and after, not from the factors."""
    height = math.floor(x.shape[-2] * scale_factor_height + 1e-6)
    width = math.floor(x.shape[-1] * scale_factor_width + 1e-6)
    if align_corners:
        return _bilinear(x, height, width, "STRICT_ALIGN_CORNERS")
    return _bilinear(x, height, width, "DEFAULT" if half_pixel_centers is False else "UNALIGN_CORNERS")


@op()
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    return _bilinear(x, target_size_height, target_size_width, sampling_mode)


@op()
def resize(
    x: Tensor,
    shape: Sequence[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last ``resized_dims`` dimensions to the last entries of ``shape``; a 0 keeps a size (iOS 17)."""
    dtype = x.dtype
    for axis in range(-resized_dims, 0):
        out = shape[axis] or x.shape[axis]
        if interpolation_mode == "LINEAR":
            x = _linear(x if dtype.is_floating_point else x.double(), axis, out, sampling_mode)
        elif sampling_mode == "DEFAULT":
            x = _nearest(x, axis, out, x.shape[axis] / out)
        else:
            x = x.index_select(axis, torch.floor(_grid(x.shape[axis], out, sampling_mode) + 0.5).long())
    return x.to(dtype)


@op()
def crop(x: Tensor, crop_height: Sequence[int], crop_width: Sequence[int]) -> Tensor:
    return x[..., crop_height[0] : x.shape[-2] - crop_height[1], crop_width[0] : x.shape[-1] - crop_width[1]]


def _pixels(coordinate: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates in pixels: 0 is the centre of the first one."""
    if mode == "unnormalized":
        return coordinate
    if mode not in ("normalized_minus_one_to_one", "normalized_zero_to_one"):
        raise ValueError(f"unknown coordinates_mode {mode}")
    unit = (coordinate + 1) / 2 if mode == "normalized_minus_one_to_one" else coordinate
    return unit * (size - 1) if align_corners else unit * size - 0.5


def _fold(place: Tensor, low: float, high: float) -> Tensor:
    """Reflect at both ends, as often as it takes."""
    if high <= low:
        return torch.full_like(place, low)
    span = high - low
    folded: Tensor = low + span - (torch.remainder((place - low).abs(), 2 * span) - span).abs()
    return folded


@op(tensors="x coordinates")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """``x`` (B, C, H, W) at ``coordinates`` (B, H', W', 2), each the pair of x and y."""
    normalised = []
    for axis, size in ((0, x.shape[-1]), (1, x.shape[-2])):
        place = _pixels(coordinates[..., axis].to(x.dtype), size, coordinates_mode, align_corners)
        if padding_mode == "border":
            place = place.clamp(0, size - 1)
        elif padding_mode == "reflection":
            place = _fold(place, 0, size - 1)
        elif padding_mode == "symmetric":
            place = _fold(place, -0.5, size - 0.5).clamp(0, size - 1)
        elif padding_mode != "constant":
            raise ValueError(f"unknown padding_mode {padding_mode}")
        normalised.append((2 * place + 1) / size - 1)
    grid = torch.stack(normalised, -1)
    # Zeros are what torch pads with, so that any other value is moved there and back.
    shift = padding_value if padding_mode == "constant" else 0.0
    sampled: Tensor = F.grid_sample(
        x - shift if shift else x, grid, mode=sampling_mode, padding_mode="zeros", align_corners=False
    )
    return sampled if shift == 0 else sampled + shift


@op(tensors="x transform_matrix")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """``x`` (B, C, H, W) under a matrix of six numbers for each image, or one for all."""
    theta = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], -1, -1)
    grid = F.affine_grid(theta, [x.shape[0], x.shape[1], output_height, output_width], align_corners=align_corners)
    return resample(x, grid, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)
