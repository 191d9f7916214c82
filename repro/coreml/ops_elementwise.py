# ruff: noqa: D103 - an operator's name is its MIL type, and its definition is the one that the module names.
"""Elementwise operators: arithmetic, comparison, logic, rounding, activations.

Definitions: coremltools' ``iOS15/elementwise_unary.py``, ``elementwise_binary.py`` and ``activation.py``, and their
iOS 17 successors, which differ in the types that they allow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from repro.coreml.registry import add, carrier, integer_range, op


def _positional(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch's own functions call their arguments input and other, MIL's are x and y."""

    def run(**arguments: Tensor) -> Tensor:
        return function(*(arguments[name] for name in ("x", "y") if name in arguments))

    return run


_UNARY: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,  # halves to even, as numpy and Core ML do
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
for _name, _function in _UNARY.items():
    add(_name, _positional(_function), tensors="x")

_BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,  # the sign of the divisor, as Python's %
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}
for _name, _function in _BINARY.items():
    add(_name, _positional(_function), tensors="x y")


@op(tensors="x y")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


@op(tensors="x y")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    # MIL keeps the integer type, so that the quotient of integers is cut off.
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@op()
def exp2(x: Tensor) -> Tensor:
    return torch.exp2(x).to(x.dtype)


@op()
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


@op()
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


@op()
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return torch.reciprocal(x + epsilon)


@op()
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x, alpha, beta)


@op()
def threshold(x: Tensor, alpha: float) -> Tensor:
    return torch.clamp(x, min=alpha)


@op()
def cast(x: Tensor, dtype: str) -> Tensor:
    """Between element types; to a float16 that is not rounded nothing happens, since it is held as float32."""
    held = carrier(dtype)
    if x.is_floating_point() and not held.is_floating_point and held is not torch.bool:
        return x.double().trunc().clamp(*integer_range(dtype)).to(held)  # float32 does not hold the largest int32
    return x.to(held)


@op(tensors="cond a b")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


@op()
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"unknown mode {mode}")


@op()
def elu(x: Tensor, alpha: float) -> Tensor:
    return F.elu(x, alpha)


@op()
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return F.leaky_relu(x, alpha)


@op()
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, torch.zeros((), dtype=x.dtype))


@op()
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(torch.where(x >= 0, x, alpha * x), max=beta)


@op()
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * x + beta


@op()
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


@op()
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@op(tensors="x alpha")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """``alpha`` holds a slope for each channel; the channels of ``x`` are its second dimension."""
    return F.prelu(x, alpha)


@op(tensors="x alpha beta")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``alpha * log(1 + exp(beta * x))``, each with a value for each channel (the second dimension)."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    return alpha.reshape(shape) * F.softplus(x * beta.reshape(shape))


@op()
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)
