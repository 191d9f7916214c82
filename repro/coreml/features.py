"""What an ML program moves and computes: bytes, multiply-adds and ops by class, from its declared shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from repro.coreml.mil import Binding, Constant, Op, ValueType
from repro.coreml.package import Package

#: Op types by what they do to memory. What is in none of them works element by element.
CLASSES: Mapping[str, frozenset[str]] = {
    "conv": frozenset({"conv", "conv_transpose"}),
    "linear": frozenset({"linear"}),
    "matmul": frozenset({"matmul", "einsum", "scaled_dot_product_attention"}),
    "layout": frozenset(
        "concat depth_to_space expand_dims gather pixel_shuffle pixel_unshuffle pad reshape slice_by_index "
        "slice_by_size space_to_depth split squeeze stack tile transpose shape reverse".split()
    ),
    "reduce": frozenset(
        "avg_pool batch_norm instance_norm l2_norm layer_norm max_pool reduce_l1_norm reduce_l2_norm reduce_max "
        "reduce_mean reduce_min reduce_sum reduce_sum_square softmax".split()
    ),
    "resample": frozenset({"resize_bilinear", "resize_nearest_neighbor", "upsample_bilinear"}),
}
ELEMENTWISE = "elementwise"


def class_of(kind: str) -> str:
    """The class of an op type."""
    return next((name for name, kinds in CLASSES.items() if kind in kinds), ELEMENTWISE)


def features_of(package: Package) -> dict[str, Any]:
    """Count a package's main function.

    Returns
    -------
    dict
        ``weight_bytes``: of the constants in the weight file. ``activation_bytes``: what the ops write, by class, casts
        aside. ``macs``: multiply-adds by class. ``operations``: how many, by class. ``content_hash`` of the package.
    """
    function = package.function()
    types: dict[str, ValueType] = {value.name: value.type for value in function.inputs}
    weight_bytes = 0
    activation: dict[str, int] = {}
    macs: dict[str, int] = {}
    operations: dict[str, int] = {}
    for op in function.block.walk():
        types |= {value.name: value.type for value in op.outputs}
        if op.type == "const":
            assert op.value is not None
            if op.value.blob is not None:
                weight_bytes += _bytes(op.value.type)
            continue
        if op.type == "cast":
            continue
        kind = class_of(op.type)
        operations[kind] = operations.get(kind, 0) + 1
        activation[kind] = activation.get(kind, 0) + sum(_bytes(value.type) for value in op.outputs)
        if (count := _macs(op, types)) > 0:
            macs[kind] = macs.get(kind, 0) + count
    return {
        "weight_bytes": weight_bytes,
        "activation_bytes": dict(sorted(activation.items())),
        "macs": dict(sorted(macs.items())),
        "operations": dict(sorted(operations.items())),
        "content_hash": package.content_hash(),
    }


def _bytes(kind: ValueType) -> int:
    return (kind.elements or 0) * kind.dtype.bits // 8 if kind.kind == "tensor" and kind.dtype is not None else 0


def _shape(source: Binding, types: Mapping[str, ValueType]) -> tuple[int, ...]:
    kind = source.type if isinstance(source, Constant) else types[source]
    return tuple(size or 0 for size in kind.shape or ())


def _arguments(op: Op, types: Mapping[str, ValueType]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, sources in op.inputs.items():
        if len(sources) == 1:
            yield name, _shape(sources[0], types)


def _macs(op: Op, types: Mapping[str, ValueType]) -> int:
    shapes = dict(_arguments(op, types))
    out = math.prod(size or 0 for size in op.outputs[0].type.shape or ()) if op.outputs else 0
    if op.type == "conv":
        return out * math.prod(shapes["weight"][1:])  # inputs of a group, times the kernel
    if op.type == "conv_transpose":
        return math.prod(shapes["x"]) * math.prod(shapes["weight"][1:])
    if op.type == "linear":
        return out * shapes["weight"][-1]
    if op.type == "matmul":
        x, y = shapes["x"], shapes["y"]
        # (..., M, K) by (..., K, N), either transposed: M K N is the root of the product of all three sizes
        rows, columns = (op.outputs[0].type.shape or (0, 0))[-2:]
        batch = out // max(1, (rows or 1) * (columns or 1))
        inner = math.isqrt(x[-1] * x[-2] * y[-1] * y[-2] // max(1, (rows or 1) * (columns or 1)))
        return batch * (rows or 0) * (columns or 0) * inner
    if op.type == "einsum":
        return _einsum(op, types, out)
    if op.type == "scaled_dot_product_attention":
        query, key, value = shapes["query"], shapes["key"], shapes["value"]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


def _einsum(op: Op, types: Mapping[str, ValueType], out: int) -> int:
    """The product of all index sizes of its equation."""
    equation = op.inputs["equation"][0]
    if isinstance(equation, str):
        return out
    left = str(equation.python()).partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for part, source in zip(left, op.inputs["values"], strict=True):
        sizes |= dict(zip(part.strip(), _shape(source, types), strict=True))
    return math.prod(sizes.values())
