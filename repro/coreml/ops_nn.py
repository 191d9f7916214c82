# ruff: noqa: D103 - an operator's name is its MIL type, and its definition is the one that the module names.
"""Layers: convolution, matrix products, attention, normalisation.

Definitions: coremltools' ``iOS15/conv.py``, ``linear.py``, ``normalization.py`` and ``iOS18/transformers.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repro.coreml.registry import op

_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_CONV_TRANSPOSE = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


def padding_of(
    pad_type: str,
    pad: Sequence[int] | None,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """Elements padded before and after each spatial dimension.

    ``same`` pads so that the output has ``ceil(size / stride)`` elements, the odd one after (``same_lower``: before).
    """
    if pad_type == "valid":
        return [(0, 0)] * len(size)
    if pad_type == "custom":
        pad = pad or [0] * (2 * len(size))
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(size))]
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"unknown pad_type {pad_type}")
    pads = []
    for extent, taps, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(extent / stride) - 1) * stride + (taps - 1) * dilation + 1 - extent)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if pad_type == "same" else (large, small))
    return pads


def flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As ``torch.nn.functional.pad`` takes them: the last dimension first."""
    return [amount for pair in reversed(pads) for amount in pair]


@op(tensors="x weight bias")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """``x`` (n, C, *D) with ``weight`` (C_out, C / groups, *K), in one to three dimensions."""
    ones = [1] * (x.ndim - 2)
    strides, dilations = strides or ones, dilations or ones
    pads = padding_of(pad_type, pad, x.shape[2:], weight.shape[2:], strides, dilations)
    if any(before != after for before, after in pads):
        x = F.pad(x, flat_pads(pads))
        pads = [(0, 0)] * len(pads)
    return _CONV[x.ndim](x, weight, bias, strides, [before for before, _ in pads], dilations, groups)


@op(tensors="x weight bias")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pad_type: str = "valid",
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """``x`` (n, C, *D) with ``weight`` (C, C_out / groups, *K): the whole result, then cut as the padding says."""
    dims = x.ndim - 2
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    full = _CONV_TRANSPOSE[x.ndim](x, weight, None, strides, 0, 0, groups, dilations)
    cuts = []
    for i in range(dims):
        whole, before, after = full.shape[2 + i], 0, 0
        if pad_type == "same":
            size = output_shape[2 + i] if output_shape else x.shape[2 + i] * strides[i]
            before = max(0, whole - size) // 2
            after = whole - size - before
        else:
            if pad_type == "custom" and pad:
                before, after = pad[2 * i], pad[2 * i + 1]
            if output_shape:
                after = whole - before - output_shape[2 + i]
        cuts.append((-before, -after))
    if any(cut != (0, 0) for cut in cuts):
        full = F.pad(full, flat_pads(cuts))
    return full if bias is None else full + bias.reshape([1, -1] + [1] * dims)


@op(tensors="x weight bias")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (*, D_in) with ``weight`` (D_out, D_in)."""
    return F.linear(x, weight, bias)


@op(tensors="x y")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x and x.ndim > 1 else x, y.mT if transpose_y and y.ndim > 1 else y)


@op(tensors="values", lists="values")
def einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@op(tensors="query key value attn_mask")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """``query`` (*, L, E), ``key`` (*, S, E), ``value`` (*, S, EV); a boolean mask keeps, a float one is added."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


@op(tensors="x mean variance gamma beta")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``x`` (n, C, *D) with statistics of length C."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


@op(tensors="x gamma beta")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each sample of ``x`` (n, C, *D) by its own mean and variance."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


@op(tensors="x gamma beta")
def layer_norm(
    x: Tensor,
    axes: Sequence[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """``gamma`` and ``beta`` have the normalised dimensions' shape, in the order of ``x``."""
    dims = sorted(axis % x.ndim for axis in axes) if axes is not None else list(range(x.ndim))
    shape = [x.shape[i] for i in dims]
    if dims == list(range(x.ndim - len(dims), x.ndim)):
        return F.layer_norm(x, shape, gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    x = (x - mean) * torch.rsqrt(variance + epsilon)
    spread = [x.shape[i] if i in dims else 1 for i in range(x.ndim)]
    if gamma is not None:
        x = x * gamma.reshape(spread)
    return x if beta is None else x + beta.reshape(spread)


@op()
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """By the root of the sum of squares over the last three dimensions."""
    return x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


@op()
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Over ``size`` neighbouring channels of ``x`` (n, C, *D)."""
    return F.local_response_norm(x, size, alpha, beta, k)
