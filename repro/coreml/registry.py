"""The operators that the interpreter knows, by MIL type.

An operator is a function whose parameters bear MIL's own names and defaults. It is registered under its type with the
names of those parameters it wants as tensors; every other parameter reaches it as a Python value (a number, a string,
a list), whether it was a constant of the program or computed by another op.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from repro.coreml.mil import DTYPES, DType

_F = TypeVar("_F", bound=Callable[..., Any])

_MODULES = ("constexpr", "elementwise", "image", "index", "nn", "pool", "recurrent", "reduce", "tensor")
_OPERATORS: dict[str, Operator] = {}

#: What an element type is held in while a program runs. Float16 is held as float32: its arithmetic on a CPU is slow
#: and not the device's; the interpreter rounds where it is asked to. torch has little arithmetic for unsigned types.
CARRIERS: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "fp16": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "int4": torch.int8,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
} | dict.fromkeys(("uint1", "uint2", "uint3", "uint4", "uint6"), torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """How one type of op is executed."""

    type: str
    run: Callable[..., Any]
    """Takes MIL's parameters by name; returns a tensor, or a tuple of them for several outputs."""
    tensors: frozenset[str]
    """Parameters handed over as tensors."""
    lists: frozenset[str]
    """Parameters that take any number of arguments, handed over as a list."""
    parameters: frozenset[str]
    required: frozenset[str]


def op(*types: str, tensors: str = "x", lists: str = "") -> Callable[[_F], _F]:
    """Register a function as the operator of the given types.

    Parameters
    ----------
    types
        MIL types; without any, the function's own name.
    tensors, lists
        Parameter names, separated by blanks: see :class:`Operator`.
    """

    def register(function: _F) -> _F:
        signature = inspect.signature(function).parameters
        for kind in types or (function.__name__,):
            add(
                kind,
                function,
                tensors=tensors,
                lists=lists,
                parameters=frozenset(signature),
                required=frozenset(name for name, item in signature.items() if item.default is item.empty),
            )
        return function

    return register


def add(
    kind: str,
    function: Callable[..., Any],
    *,
    tensors: str,
    lists: str = "",
    parameters: frozenset[str] | None = None,
    required: frozenset[str] | None = None,
) -> None:
    """Register one operator; :func:`op` is the usual way, this one is for functions without a Python signature."""
    if kind in _OPERATORS:
        raise ValueError(f"two operators are registered for {kind}")
    wanted = frozenset(tensors.split())
    _OPERATORS[kind] = Operator(
        type=kind,
        run=function,
        tensors=wanted,
        lists=frozenset(lists.split()),
        parameters=wanted if parameters is None else parameters,
        required=wanted if required is None else required,
    )


def operators() -> Mapping[str, Operator]:
    """Every operator, by MIL type."""
    for name in _MODULES:
        importlib.import_module(f"repro.coreml.ops_{name}")
    return _OPERATORS


def carrier(dtype: DType | str) -> torch.dtype:
    """What a MIL element type, or one by its name, is held in while a program runs."""
    return CARRIERS[dtype if isinstance(dtype, str) else dtype.name]


def integer_range(name: str) -> tuple[int, int]:
    """Smallest and largest value of a MIL integer type."""
    bits = DTYPES[name].bits
    return (0, (1 << bits) - 1) if name.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
