"""Elementwise ops, nearly all against coremltools' own constant folding."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from tests.coreml.programs import Case, booleans, floats, integers

X = floats(2, 3, 4)
POSITIVE = floats(2, 3, 4, low=0.1)
UNIT = floats(2, 3, 4, low=-0.9, high=0.9)
INTS = integers(2, 3, 4, low=-5, high=6)


def _unary(op: str, x: np.ndarray = X, note: str = "", target: str = "iOS15", **arguments: object) -> Case:
    return Case(op=op, note=note, inputs=(x,), target=target, build=lambda mb, x: getattr(mb, op)(x=x, **arguments))


def _binary(op: str, x: np.ndarray = X, y: np.ndarray | None = None, note: str = "") -> Case:
    y = floats(3, 1, seed=1) if y is None else y
    return Case(op=op, note=note, inputs=(x, y), build=lambda mb, x, y: getattr(mb, op)(x=x, y=y))


def _torch(function):
    return lambda *arrays: function(*(torch.from_numpy(array) for array in arrays)).numpy()


CASES = [
    *(_unary(op) for op in ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "relu", "relu6")),
    *(
        _unary(op)
        for op in ("round", "sigmoid", "sign", "sin", "sinh", "softplus", "softsign", "square", "tan", "tanh")
    ),
    *(_unary(op, UNIT) for op in ("acos", "asin", "atanh")),
    *(_unary(op, INTS, "integers") for op in ("abs", "sign", "square")),
    _unary("relu6", floats(4, 5, low=-10, high=10), "beyond six"),
    _unary("round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32), "halves"),
    _unary("softplus", floats(3, 4, low=-90, high=90), "far out"),
    _unary("sqrt", POSITIVE),
    _unary("log", POSITIVE),
    _unary("log", POSITIVE, "epsilon", epsilon=np.float32(0.5)),
    _unary("rsqrt", POSITIVE),
    _unary("rsqrt", POSITIVE, "epsilon", epsilon=np.float32(0.5)),
    _unary("inverse", POSITIVE),
    _unary("inverse", POSITIVE, "epsilon", epsilon=np.float32(0.5)),
    _unary("clip", alpha=np.float32(-0.5), beta=np.float32(0.7)),
    _unary("threshold", alpha=np.float32(0.3)),
    _unary("elu", alpha=np.float32(0.7)),
    _unary("leaky_relu", alpha=np.float32(0.2)),
    _unary("leaky_relu", X, "mixed types", "iOS17", alpha=np.float16(0.2)),
    Case(
        op="thresholded_relu",
        inputs=(X,),
        build=lambda mb, x: mb.thresholded_relu(x=x, alpha=np.float32(0.5)),
        want=lambda x: np.where(x >= 0.5, x, 0),
    ),
    _unary("clamped_relu", alpha=np.float32(0.3), beta=np.float32(1.2)),
    _unary("linear_activation", alpha=np.float32(0.3), beta=np.float32(1.2)),
    _unary("scaled_tanh", alpha=np.float32(0.3), beta=np.float32(1.2)),
    _unary("sigmoid_hard", alpha=np.float32(0.3), beta=np.float32(0.4)),
    _unary("prelu", floats(2, 3, 4, 5), alpha=np.array([0.1, 0.2, 0.7], np.float32)),
    _unary(
        "softplus_parametric",
        alpha=np.array([0.5, 1.0, 2.0], np.float32),
        beta=np.array([2.0, 0.3, 1.0], np.float32),
    ),
    *(_unary("gelu", X, mode.lower(), mode=mode) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    _unary("gelu", X, "default"),
    Case(op="silu", inputs=(X,), build=lambda mb, x: mb.silu(x=x), want=_torch(F.silu)),
    _unary("softmax", X, "last"),
    _unary("softmax", X, "middle", axis=1),
    _unary("softmax", X, "negative", axis=-3),
    Case(op="identity", inputs=(X,), build=lambda mb, x: mb.identity(x=x), want=lambda x: x),
    Case(
        op="logical_not",
        inputs=(booleans(3, 4),),
        build=lambda mb, x: mb.logical_not(x=x),
    ),
    _unary("cast", floats(3, 4, low=-5, high=5), "to int32", dtype="int32"),
    _unary("cast", INTS, "to fp32", dtype="fp32"),
    _unary("cast", INTS, "to bool", dtype="bool"),
    _unary("cast", floats(3, 4, low=0, high=200), "to uint8", "iOS17", dtype="uint8"),
    _unary("cast", floats(3, 4, low=-100, high=100), "to int16", "iOS17", dtype="int16"),
    _unary("cast", floats(3, 4, low=0, high=60000), "to uint16", "iOS17", dtype="uint16"),
    *(_binary(op) for op in ("add", "maximum", "minimum", "mod", "mul", "real_div", "sub", "floor_div")),
    *(_binary(op, INTS, integers(4, low=1, high=4), "integers") for op in ("add", "floor_div", "mod", "mul", "sub")),
    Case(
        op="real_div",
        note="integers",
        inputs=(INTS, integers(4, low=1, high=4)),
        build=lambda mb, x, y: mb.real_div(x=x, y=y),
        want=lambda x, y: np.trunc(x / y).astype(np.int32),
    ),
    _binary("pow", POSITIVE),
    *(
        _binary(op, INTS, integers(4, low=-2, high=3, seed=4), "integers")
        for op in ("equal", "greater", "greater_equal", "less", "less_equal", "not_equal")
    ),
    *(_binary(op) for op in ("greater", "less")),
    *(_binary(op, booleans(3, 4), booleans(4, seed=1)) for op in ("logical_and", "logical_or", "logical_xor")),
    Case(
        op="select",
        inputs=(booleans(2, 3, 4), X, floats(2, 3, 4, seed=1)),
        build=lambda mb, cond, a, b: mb.select(cond=cond, a=a, b=b),
    ),
]
