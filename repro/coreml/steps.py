"""A program's blocks made ready to run: constants read, parameters bound, the last use of every value known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.coreml.errors import PackageError, ProgramError, UnknownOpError
from repro.coreml.mil import Array, BlobReader, Block, Constant, Op, Value
from repro.coreml.registry import Operator, carrier, operators

#: Types that the interpreter executes itself: they have blocks, results that are no tensors, or nothing to do.
OWN_TYPES = frozenset({"classify", "cond", "const", "while_loop"})


@dataclass(kw_only=True, slots=True)
class Result:
    """One output of a step and what it must be."""

    value: Value
    dtype: torch.dtype | None
    """What the tensor is held in; None for a value that is no tensor."""
    half: bool
    """Whether the program declares it float16."""

    @classmethod
    def of(cls, value: Value) -> Result:
        """The result that a declared value asks for."""
        dtype = value.type.dtype if value.type.kind == "tensor" else None
        held = carrier(dtype) if dtype is not None and dtype.numpy is not None else None
        return cls(value=value, dtype=held, half=dtype is not None and dtype.name == "fp16")

    def check(self, found: Any, op: Op) -> None:
        """Raise ProgramError unless the value has the declared type and shape."""
        if self.dtype is None:
            return
        if not isinstance(found, Tensor) or found.dtype is not self.dtype:
            kind = getattr(found, "dtype", type(found))
            raise ProgramError(f"{op} gave {kind}, the program declares {self.value.type}")
        if not self.value.type.admits(tuple(found.shape)):
            raise ProgramError(f"{op} gave shape {tuple(found.shape)}, the program declares {self.value.type}")


@dataclass(kw_only=True, slots=True)
class Step:
    """One op, ready to run."""

    op: Op
    function: Callable[..., Any] | None
    """None for the types that the interpreter executes itself."""
    static: dict[str, Any]
    """Parameters whose arguments are constants."""
    dynamic: list[tuple[str, Callable[[dict[str, Any]], Any]]]
    """The others, each with the function that takes it from the running values."""
    results: list[Result]
    blocks: list[Code]
    release: list[str] = field(default_factory=list)
    """Values that no later step takes."""

    def call(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """Execute the op on the running values.

        Raises
        ------
        ProgramError
            The op does not go with its arguments, or has another number of results than the program declares.
        """
        assert self.function is not None
        arguments = self.static | {name: take(values) for name, take in self.dynamic} if self.dynamic else self.static
        try:
            found = self.function(**arguments)
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError, ZeroDivisionError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ProgramError(f"{self.op} cannot be executed: {reason}") from error
        found = found if isinstance(found, tuple) else (found,)
        if len(found) != len(self.results):
            raise ProgramError(f"{self.op} gave {len(found)} results, the program declares {len(self.results)}")
        return found


@dataclass(kw_only=True, slots=True)
class Code:
    """A block, ready to run."""

    inputs: list[str]
    outputs: list[str]
    steps: list[Step]


class Compiler:
    """Makes blocks ready to run and holds the program's constants.

    Parameters
    ----------
    read
        Reads the package's weight files.
    replace
        Called with the name and the array of every constant that is a float tensor; the result takes its place.
    """

    def __init__(self, read: BlobReader, replace: Callable[[str, Array], Array] | None = None) -> None:
        self._read = read
        self._replace = replace
        self._operators = operators()
        self._constants: dict[str, Constant] = {}
        self._tensors: dict[str, Tensor] = {}

    def compile(self, block: Block, known: set[str]) -> Code:
        """Make a block ready to run; ``known`` are the values that exist before it.

        Raises
        ------
        PackageError
            A constant cannot be read, or a value is never computed.
        UnknownOpError
            An op, or a parameter of one, is not known.
        """
        known = known | {value.name for value in block.inputs}
        steps: list[Step] = []
        for op in block.operations:
            if op.type == "const":
                if op.value is None:
                    raise PackageError(f"{op} holds no value")
                self._constants[op.outputs[0].name] = op.value
                continue
            step = self._step(op, known)
            if op.type.startswith("constexpr_") and not step.dynamic:
                self._fold(step)
                continue
            known |= {value.name for value in op.outputs}
            steps.append(step)
        for name in block.outputs:
            if name not in known and not self.holds(name):
                raise PackageError(f"output '{name}' is never computed: the program is truncated")
        _release(steps, set(block.outputs))
        return Code(inputs=[value.name for value in block.inputs], outputs=list(block.outputs), steps=steps)

    def holds(self, name: str) -> bool:
        """Whether the name is a constant's."""
        return name in self._constants or name in self._tensors

    def tensor(self, source: str | Constant) -> Tensor:
        """A constant as a tensor in its carrier; a named one is made once."""
        if isinstance(source, str) and source in self._tensors:
            return self._tensors[source]
        constant = self._constants[source] if isinstance(source, str) else source
        array = constant.numpy()
        if self._replace is not None and isinstance(source, str) and array.dtype.kind == "f":
            array = self._replace(source, array)
        if array.dtype in (np.uint16, np.uint32, np.uint64):
            array = array.astype(np.int64)
        assert constant.type.dtype is not None
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy()).to(carrier(constant.type.dtype))
        if isinstance(source, str):
            self._tensors[source] = tensor
        return tensor

    def python(self, source: str | Constant) -> Any:
        """A constant as a Python value."""
        constant = source if isinstance(source, Constant) else self._constants.get(source)
        dtype = constant.type.dtype if constant is not None else None
        if constant is None or (self._replace is not None and dtype is not None and dtype.is_float):
            return self.tensor(source).tolist()
        return constant.python()

    def _step(self, op: Op, known: set[str]) -> Step:
        operator = None if op.type in OWN_TYPES else self._operators.get(op.type)
        if operator is None and op.type not in OWN_TYPES:
            raise UnknownOpError(f"{op} is of a type that the interpreter does not know: {op.type}")
        for arguments in op.inputs.values():
            for name in arguments:
                if isinstance(name, str) and name not in known and not self.holds(name):
                    raise PackageError(f"{op} takes '{name}', which is never computed")
        static: dict[str, Any] = {}
        dynamic: list[tuple[str, Callable[[dict[str, Any]], Any]]] = []
        if operator is not None:
            _check_parameters(op, operator)
            for parameter, arguments in op.inputs.items():
                fixed, value = self._argument(operator, parameter, arguments)
                if fixed:
                    static[parameter] = value
                else:
                    dynamic.append((parameter, value))
        return Step(
            op=op,
            function=operator.run if operator else None,
            static=static,
            dynamic=dynamic,
            results=[Result.of(value) for value in op.outputs],
            blocks=[self.compile(block, known) for block in op.blocks],
        )

    def _argument(self, operator: Operator, parameter: str, arguments: list[Any]) -> tuple[bool, Any]:
        """Whether a parameter is constant, and its value, or else the function that takes it from running values."""
        as_tensor = parameter in operator.tensors
        read = self.tensor if as_tensor else self.python
        items = [
            (name, None) if isinstance(name, str) and not self.holds(name) else (None, read(name)) for name in arguments
        ]

        def take(values: dict[str, Any], name: str) -> Any:
            return values[name] if as_tensor else values[name].tolist()

        if parameter in operator.lists:
            if all(name is None for name, _ in items):
                return True, [value for _, value in items]
            return False, lambda values: [value if name is None else take(values, name) for name, value in items]
        if len(items) != 1:
            raise PackageError(f"parameter '{parameter}' of a {operator.type} has {len(items)} arguments")
        name, value = items[0]
        return (True, value) if name is None else (False, lambda values: take(values, name))

    def _fold(self, step: Step) -> None:
        """Execute a compressed constant once; it is rounded to the type it is declared in, as on the device."""
        for result, value in zip(step.results, step.call({}), strict=True):
            result.check(value, step.op)
            name = result.value.name
            tensor = value.half().float() if result.half else value
            if self._replace is not None and tensor.is_floating_point():
                tensor = torch.from_numpy(self._replace(name, tensor.numpy()))
            self._tensors[name] = tensor


def _check_parameters(op: Op, operator: Operator) -> None:
    unknown, missing = op.inputs.keys() - operator.parameters, operator.required - op.inputs.keys()
    if unknown:
        raise UnknownOpError(f"{op} has a parameter that the interpreter does not know: {', '.join(sorted(unknown))}")
    if missing:
        raise PackageError(f"{op} lacks {', '.join(sorted(missing))}")


def _names(op: Op) -> set[str]:
    """Every value that an op takes, its blocks included."""
    names = {name for arguments in op.inputs.values() for name in arguments if isinstance(name, str)}
    for block in op.blocks:
        names |= set(block.outputs)
        for inner in block.operations:
            names |= _names(inner)
    return names


def _release(steps: list[Step], keep: set[str]) -> None:
    """Let every value go after the last step that takes it."""
    made = {result.value.name for step in steps for result in step.results}
    gone = set(keep)
    for step in reversed(steps):
        last = (_names(step.op) | {result.value.name for result in step.results}) & made - gone
        step.release = sorted(last)
        gone |= last
