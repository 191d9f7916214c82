"""Layers, against torch's own or against the definition written out in numpy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from tests.coreml.programs import Case, booleans, floats

IMAGE = floats(2, 4, 9, 7)
CHANNELS = {name: floats(4, seed=i, low=0.3, high=1.5) for i, name in enumerate(("mean", "variance", "gamma", "beta"))}


def _t(function):
    """A reference in torch, on arrays."""
    return lambda *arrays: function(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)).numpy()


def _pads(size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], lower: bool):
    """Padding after which there are ``ceil(size / stride)`` windows, an odd element after (or before)."""
    pairs = []
    for extent, taps, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(extent / stride) - 1) * stride + (taps - 1) * dilation + 1 - extent)
        pairs.append((total - total // 2, total // 2) if lower else (total // 2, total - total // 2))
    return pairs


def _windows(x: np.ndarray, pads, kernel, strides, fill: float):
    """Every window of the padded spatial dimensions, and where it stands in the output."""
    x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    counts = [(size - taps) // stride + 1 for size, taps, stride in zip(x.shape[2:], kernel, strides, strict=True)]
    for place in itertools.product(*map(range, counts)):
        cut = tuple(
            slice(at * stride, at * stride + taps) for at, stride, taps in zip(place, strides, kernel, strict=True)
        )
        yield place, counts, x[(slice(None), slice(None), *cut)]


def _pool(x: np.ndarray, kernel, strides, pads, kind: str) -> np.ndarray:
    fill = {"max": -np.inf, "average": 0.0, "inside": np.nan, "l2": 0.0}[kind]
    functions = {
        "max": np.max,
        "average": np.mean,
        "inside": np.nanmean,
        "l2": lambda w, axis: np.sqrt((w**2).sum(axis)),
    }
    out = None
    for place, counts, window in _windows(x, pads, kernel, strides, fill):
        if out is None:
            out = np.zeros((*x.shape[:2], *counts), np.float32)
        out[(slice(None), slice(None), *place)] = functions[kind](window, axis=tuple(range(2, x.ndim)))
    return out


def _padded_conv(pads, strides, dilations):
    def want(x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, [amount for pair in reversed(pads) for amount in pair])
        return F.conv2d(x, torch.from_numpy(WEIGHT), None, strides, 0, dilations)

    return _t(want)


WEIGHT = floats(6, 4, 3, 2, seed=7)


def _conv(note: str, x: np.ndarray, weight: np.ndarray, want, target: str = "iOS15", **arguments: object) -> Case:
    return Case(
        op="conv",
        note=note,
        inputs=(x,),
        target=target,
        tolerance=1e-4,
        build=lambda mb, x: mb.conv(x=x, weight=weight, **arguments),
        want=want,
    )


def _same(note: str, lower: bool, strides: list[int], dilations: list[int]) -> Case:
    pads = _pads(IMAGE.shape[2:], (3, 2), strides, dilations, lower)
    return _conv(
        note,
        IMAGE,
        WEIGHT,
        _padded_conv(pads, strides, dilations),
        "iOS16" if lower else "iOS15",
        pad_type="same_lower" if lower else "same",
        strides=strides,
        dilations=dilations,
    )


BIAS = floats(6, seed=8)
CONV = [
    _conv(
        "plain", IMAGE, WEIGHT, _t(lambda x: F.conv2d(x, torch.from_numpy(WEIGHT), torch.from_numpy(BIAS))), bias=BIAS
    ),
    _conv(
        "padded",
        IMAGE,
        WEIGHT,
        _t(lambda x: F.conv2d(x, torch.from_numpy(WEIGHT), None, (2, 1), (2, 1))),
        strides=[2, 1],
        pad_type="custom",
        pad=[2, 2, 1, 1],
    ),
    _conv(
        "more on one side",
        IMAGE,
        WEIGHT,
        _padded_conv([(0, 2), (3, 1)], (2, 2), (1, 1)),
        strides=[2, 2],
        pad_type="custom",
        pad=[0, 2, 3, 1],
    ),
    _conv(
        "depthwise",
        IMAGE,
        floats(8, 1, 3, 3, seed=5),
        _t(lambda x: F.conv2d(x, torch.from_numpy(floats(8, 1, 3, 3, seed=5)), None, 1, 0, 2, 4)),
        groups=4,
        dilations=[2, 2],
    ),
    _same("same", False, [1, 1], [1, 1]),
    _same("same strided", False, [2, 3], [1, 1]),
    _same("same dilated", False, [1, 1], [2, 3]),
    _same("same below", True, [2, 1], [1, 1]),
    _conv(
        "one dimension",
        floats(2, 4, 9),
        floats(3, 4, 3, seed=5),
        _t(lambda x: F.conv1d(x, torch.from_numpy(floats(3, 4, 3, seed=5)), None, 2)),
        strides=[2],
    ),
    _conv(
        "three dimensions",
        floats(1, 2, 5, 4, 6),
        floats(3, 2, 2, 3, 2, seed=5),
        _t(lambda x: F.conv3d(x, torch.from_numpy(floats(3, 2, 2, 3, 2, seed=5)), None, 1, (1, 0, 1))),
        pad_type="custom",
        pad=[1, 1, 0, 0, 1, 1],
    ),
    Case(
        op="conv",
        note="weight computed",
        inputs=(IMAGE, WEIGHT),
        tolerance=1e-4,
        build=lambda mb, x, w: mb.conv(x=x, weight=w),
        want=_t(F.conv2d),
    ),
]

UP = floats(4, 3, 3, 2, seed=9)


def _up(note: str, want, **arguments: object) -> Case:
    return Case(
        op="conv_transpose",
        note=note,
        inputs=(IMAGE,),
        tolerance=1e-4,
        build=lambda mb, x: mb.conv_transpose(x=x, weight=UP, **arguments),
        want=_t(lambda x: want(x, torch.from_numpy(UP))),
    )


def _same_up(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    full = F.conv_transpose2d(x, weight, None, (2, 1))
    return full[:, :, : 2 * x.shape[2], : x.shape[3]]


TRANSPOSED = [
    _up("plain", lambda x, w: F.conv_transpose2d(x, w, torch.from_numpy(BIAS[:3]), 2), strides=[2, 2], bias=BIAS[:3]),
    _up(
        "padded",
        lambda x, w: F.conv_transpose2d(x, w, None, (2, 3), (1, 1)),
        strides=[2, 3],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    _up(
        "more on one side",
        lambda x, w: F.conv_transpose2d(x, w, None, 2)[:, :, :-2, 1:],
        strides=[2, 2],
        pad_type="custom",
        pad=[0, 2, 1, 0],
    ),
    _up("dilated", lambda x, w: F.conv_transpose2d(x, w, dilation=2), dilations=[2, 2]),
    _up("same", _same_up, strides=[2, 1], pad_type="same"),
    _up(
        "shape given",
        lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, (1, 1)),
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        output_shape=[2, 3, 18, 13],
    ),
    Case(
        op="conv_transpose",
        note="grouped",
        inputs=(IMAGE,),
        tolerance=1e-4,
        build=lambda mb, x: mb.conv_transpose(x=x, weight=floats(4, 2, 3, 3, seed=4), groups=2),
        want=_t(lambda x: F.conv_transpose2d(x, torch.from_numpy(floats(4, 2, 3, 3, seed=4)), groups=2)),
    ),
]


def _pooling(op: str, kind: str, note: str, pads, kernel=(3, 2), strides=(2, 1), target="iOS15", **arguments) -> Case:
    x = floats(2, 3, 9, 7)[(slice(None), slice(None), *(slice(None),) * len(kernel))]
    return Case(
        op=op,
        note=note,
        inputs=(x,),
        target=target,
        build=lambda mb, x: getattr(mb, op)(x=x, kernel_sizes=list(kernel), strides=list(strides), **arguments),
        want=lambda x: _pool(x, kernel, strides, pads, kind),
    )


_LOW = _pads((9, 7), (3, 2), (2, 1), (1, 1), True)
_HIGH = _pads((9, 7), (3, 2), (2, 1), (1, 1), False)
POOLS = [
    case
    for op, kind in (("max_pool", "max"), ("avg_pool", "average"), ("l2_pool", "l2"))
    for case in (
        _pooling(op, kind, "valid", [(0, 0), (0, 0)], pad_type="valid"),
        _pooling(op, kind, "custom", [(1, 1), (1, 1)], pad_type="custom", pad=[1, 1, 1, 1]),
        _pooling(op, kind, "more on one side", [(0, 1), (1, 0)], pad_type="custom", pad=[0, 1, 1, 0]),
        _pooling(op, kind, "wide padding", [(2, 2), (1, 1)], pad_type="custom", pad=[2, 2, 1, 1]),
        _pooling(op, kind, "same", _HIGH, pad_type="same"),
        _pooling(op, kind, "same below", _LOW, target="iOS16", pad_type="same_lower"),
    )
] + [
    _pooling(
        "avg_pool",
        "inside",
        "inside",
        [(1, 1), (1, 1)],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        exclude_padding_from_average=True,
    ),
    _pooling("avg_pool", "inside", "inside same", _HIGH, pad_type="same", exclude_padding_from_average=True),
    *(
        Case(
            op="max_pool" if largest else "avg_pool",
            note=f"rounded up, padded {pad}",
            inputs=(floats(2, 3, 8, 9),),
            build=lambda mb, x, pad=pad, largest=largest: (mb.max_pool if largest else mb.avg_pool)(
                x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[pad] * 4, ceil_mode=True
            ),
            want=_t(
                lambda x, pad=pad, largest=largest: (
                    F.max_pool2d(x, 3, 2, pad, ceil_mode=True)
                    if largest
                    else F.avg_pool2d(x, 3, 2, pad, ceil_mode=True)
                )
            ),
        )
        for pad in (0, 1)
        for largest in (True, False)
    ),
    *(
        Case(
            op=op,
            note="one dimension",
            inputs=(floats(2, 3, 9),),
            build=lambda mb, x, op=op: getattr(mb, op)(x=x, kernel_sizes=[3], strides=[2], pad_type="valid"),
            want=lambda x, kind=kind: _pool(x, (3,), (2,), [(0, 0)], kind),
        )
        for op, kind in (("max_pool", "max"), ("avg_pool", "average"))
    ),
    Case(
        op="avg_pool",
        note="three dimensions",
        inputs=(floats(1, 2, 4, 5, 6),),
        build=lambda mb, x: mb.avg_pool(x=x, kernel_sizes=[2, 2, 3], strides=[2, 1, 3], pad_type="valid"),
        want=lambda x: _pool(x, (2, 2, 3), (2, 1, 3), [(0, 0)] * 3, "average"),
    ),
]


def _attention(mask: bool):
    def want(q, k, v, *rest):
        scores = np.matmul(q, np.swapaxes(k, -1, -2)) / math.sqrt(q.shape[-1])
        if mask:
            scores = np.where(rest[0], scores, -np.inf) if rest[0].dtype == bool else scores + rest[0]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.matmul(weights / weights.sum(-1, keepdims=True), v)

    return want


_HEADS = (floats(2, 3, 5, 4), floats(2, 3, 6, 4, seed=1), floats(2, 3, 6, 7, seed=2))
_MASK = booleans(5, 6, seed=5) | np.eye(5, 6, dtype=bool)
PRODUCTS = [
    Case(
        op="linear",
        inputs=(floats(2, 3, 4),),
        build=lambda mb, x: mb.linear(x=x, weight=floats(5, 4, seed=1), bias=floats(5, seed=2)),
    ),
    Case(op="linear", note="no bias", inputs=(floats(3, 4),), build=lambda mb, x: mb.linear(x=x, weight=floats(5, 4))),
    Case(op="matmul", inputs=(floats(2, 1, 3, 4), floats(5, 4, 6)), build=lambda mb, x, y: mb.matmul(x=x, y=y)),
    Case(
        op="matmul",
        note="transposed",
        inputs=(floats(2, 4, 3), floats(2, 6, 4)),
        build=lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
    ),
    Case(op="matmul", note="vector", inputs=(floats(4), floats(4, 6)), build=lambda mb, x, y: mb.matmul(x=x, y=y)),
    Case(
        op="einsum",
        inputs=(floats(2, 3, 4, 5), floats(2, 5, 4, 6)),
        build=lambda mb, x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
    ),
    Case(
        op="einsum",
        note="broadcast",
        inputs=(floats(3, 1, 5), floats(5, 4, 6)),
        build=lambda mb, x, y: mb.einsum(values=(x, y), equation="chw,whr->chr"),
    ),
    Case(
        op="scaled_dot_product_attention",
        target="iOS18",
        inputs=_HEADS,
        build=lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        want=_attention(False),
    ),
    *(
        Case(
            op="scaled_dot_product_attention",
            note=note,
            target="iOS18",
            inputs=(*_HEADS, mask),
            build=lambda mb, q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
            want=_attention(True),
        )
        for note, mask in (("mask", _MASK), ("bias", floats(1, 3, 5, 6)))
    ),
]


def _norm_over(axes: tuple[int, ...]):
    def want(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-3)

    return want


def _layer_norm(note: str, axes: list[int], affine: bool = True, x: np.ndarray = IMAGE) -> Case:
    shape = [x.shape[i] for i in sorted(axis % x.ndim for axis in axes)]
    extra = {"gamma": floats(*shape, seed=3, low=0.5), "beta": floats(*shape, seed=4)} if affine else {}
    return Case(
        op="layer_norm",
        note=note,
        inputs=(x,),
        build=lambda mb, x: mb.layer_norm(x=x, axes=axes, epsilon=np.float32(1e-3), **extra),
    )


NORMS = [
    Case(
        op="batch_norm",
        inputs=(IMAGE,),
        build=lambda mb, x: mb.batch_norm(x=x, epsilon=np.float32(0.01), **CHANNELS),
        want=_t(
            lambda x: F.batch_norm(
                x, *(torch.from_numpy(CHANNELS[name]) for name in ("mean", "variance", "gamma", "beta")), eps=0.01
            )
        ),
    ),
    Case(
        op="batch_norm",
        note="plain",
        inputs=(floats(2, 4, 5),),
        build=lambda mb, x: mb.batch_norm(x=x, mean=CHANNELS["mean"], variance=CHANNELS["variance"]),
        want=lambda x: (x - CHANNELS["mean"][:, None]) / np.sqrt(CHANNELS["variance"][:, None] + 1e-5),
    ),
    Case(
        op="instance_norm",
        inputs=(IMAGE,),
        build=lambda mb, x: mb.instance_norm(
            x=x, gamma=CHANNELS["gamma"], beta=CHANNELS["beta"], epsilon=np.float32(1e-3)
        ),
        want=lambda x: _norm_over((2, 3))(x) * CHANNELS["gamma"][:, None, None] + CHANNELS["beta"][:, None, None],
    ),
    Case(
        op="instance_norm",
        note="plain",
        inputs=(floats(2, 4, 5),),
        build=lambda mb, x: mb.instance_norm(x=x, epsilon=np.float32(1e-3)),
        want=_norm_over((2,)),
    ),
    _layer_norm("last", [-1]),
    _layer_norm("last two", [2, 3]),
    _layer_norm("channels", [1]),
    _layer_norm("apart", [1, -1]),
    _layer_norm("no factors", [1, 2], affine=False),
    Case(op="l2_norm", inputs=(IMAGE,), build=lambda mb, x: mb.l2_norm(x=x, epsilon=np.float32(1e-2))),
    Case(op="l2_norm", note="rank 3", inputs=(floats(2, 3, 4),), build=lambda mb, x: mb.l2_norm(x=x)),
    Case(
        op="local_response_norm",
        inputs=(IMAGE,),
        build=lambda mb, x: mb.local_response_norm(
            x=x, size=3, alpha=np.float32(0.3), beta=np.float32(0.6), k=np.float32(1.5)
        ),
        want=lambda x: (
            x
            / (1.5 + 0.3 / 3 * sum(np.pad(x**2, ((0, 0), (1, 1), (0, 0), (0, 0)))[:, i : i + 4] for i in range(3)))
            ** 0.6
        ),
    ),
]

CASES = CONV + TRANSPOSED + POOLS + PRODUCTS + NORMS
