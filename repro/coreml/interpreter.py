"""Execute a Core ML ML program on any machine, op by op, with torch.

``Program.load(path).run({"image": array})`` is the public face. What it computes is what the program says: every op's
result is checked against the shape and the type that the program declares for it, and an op that is not known is an
error that names it. Arithmetic is float32; ``round_float16`` also rounds every float16 intermediate, as a device that
stores float16 would, and says where a finite value overflowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.coreml import images
from repro.coreml.errors import PackageError, ProgramError
from repro.coreml.mil import Array, Constant, Op
from repro.coreml.package import Feature, Package
from repro.coreml.registry import carrier
from repro.coreml.steps import Code, Compiler, Step


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """An op that computed a finite value which float16 cannot hold."""

    op: str
    """The op's name in the program."""
    type: str
    largest: float
    """The largest finite magnitude it computed."""
    elements: int
    """How many elements became infinite."""

    def __str__(self) -> str:
        return f"{self.type} '{self.op}' ({self.elements} elements, up to {self.largest:.3g})"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What one run of a program gave."""

    outputs: dict[str, Array]
    """The model's outputs in their declared types. A classifier's label is a 0-d array; its probabilities are an
    array in the order of :attr:`Program.class_labels`."""
    overflows: tuple[Overflow, ...]
    """Ops whose finite results float16 cannot hold, in the order of execution; without rounding there are none."""
    kept: dict[str, Tensor]
    """The values that were asked for, as they were computed: those of float16 as float32."""


class Program:
    """One function of a saved ML program, ready to run.

    Parameters
    ----------
    package
        The opened package.
    function
        Its name; by default the one that Core ML runs.
    constants
        Called with the name and the array of every constant that is a float tensor; what it returns takes its place.
        The exactness check runs a float32 program with rounded constants through it.

    Raises
    ------
    PackageError
        A constant cannot be read, or an output is never computed.
    UnknownOpError
        The program has an op, or an op a parameter, that is not known.
    """

    inputs: tuple[Feature, ...]
    """The model's inputs as the package describes them."""
    outputs: tuple[Feature, ...]
    """The model's outputs as the package describes them."""

    def __init__(
        self,
        package: Package,
        function: str | None = None,
        *,
        constants: Callable[[str, Array], Array] | None = None,
    ) -> None:
        self.package = package
        self.function = package.function(function)
        self.inputs, self.outputs = package.features(self.function.name)
        self._compiler = Compiler(package.read_blob, constants)
        with _blame(package):
            self._code = self._compiler.compile(self.function.block, {value.name for value in self.function.inputs})

    @classmethod
    def load(cls, path: str | Path, function: str | None = None) -> Program:
        """Open the package (a folder, or a zip of one) and make it ready to run; the errors are those of the class."""
        return cls(Package.open(path), function)

    @property
    def op_types(self) -> dict[str, int]:
        """How often each type of op occurs, constants aside."""
        counts: dict[str, int] = {}
        for op in self.function.block.walk():
            if op.type != "const":
                counts[op.type] = counts.get(op.type, 0) + 1
        return counts

    @property
    def class_labels(self) -> list[Any] | None:
        """A classifier's labels, in the order of its probabilities; None for any other model."""
        for op in self.function.block.operations:
            if op.type == "classify":
                return list(self._compiler.python(op.inputs["classes"][0]))
        return None

    def run(self, inputs: Mapping[str, Any], *, round_float16: bool = False) -> dict[str, Array]:
        """Run the program once.

        Parameters
        ----------
        inputs
            By name: an array or a tensor of the declared shape; for an image also a PIL image or an array of uint8
            (H, W, 3), see :func:`repro.coreml.images.planes`.
        round_float16
            Round every intermediate that the program declares float16, as a device would.

        Returns
        -------
        dict
            The model's outputs by name, in their declared types (see :attr:`Execution.outputs`).

        Raises
        ------
        ProgramError
            An input is missing, unknown or of another shape; or an op fails, or gives another shape or type than the
            program declares.
        """
        return self.execute(inputs, round_float16=round_float16).outputs

    def execute(self, inputs: Mapping[str, Any], *, round_float16: bool = False, keep: Iterable[str] = ()) -> Execution:
        """As :meth:`run`; also says where float16 overflowed, and keeps the named values as they were computed."""
        overflows: list[Overflow] = []
        wanted = set(keep)
        with torch.inference_mode():
            values = self._bind(inputs, round_float16)
            kept = {name: values[name] for name in wanted & values.keys()}
            with _blame(self.package):
                self._run(self._code, values, overflows if round_float16 else None, wanted, kept)
            outputs = {name: values[name] for name in self._code.outputs}
        kept |= {name: outputs[name] for name in wanted & outputs.keys()}
        if wanted - kept.keys():
            raise ProgramError(f"{self.package.shown}: computes no value '{min(wanted - kept.keys())}'")
        return Execution(
            outputs={name: self._numpy(name, value) for name, value in outputs.items()},
            overflows=tuple(overflows),
            kept=kept,
        )

    def top(self, outputs: Mapping[str, Array], k: int = 5) -> list[tuple[Any, float]]:
        """The ``k`` likeliest classes of a run's outputs, each its label (or index) and its probability.

        An output that is no distribution yet is taken for logits.

        Raises
        ------
        ProgramError
            The model does not give one score for each class.
        """
        labels = self.class_labels
        name = self.package.probabilities_feature if labels else None
        scores = [outputs[name]] if name else [value for value in outputs.values() if value.dtype.kind == "f"]
        if len(scores) != 1 or scores[0].size != max(scores[0].shape, default=0):
            raise ProgramError(f"{self.package.shown}: gives no single row of class scores")
        row = scores[0].astype(np.float64).ravel()
        if row.min() < 0 or not math.isclose(row.sum(), 1, abs_tol=1e-2):
            row = np.exp(row - row.max())
            row /= row.sum()
        best = np.argsort(-row, kind="stable")[:k]
        return [(labels[i] if labels else int(i), float(row[i])) for i in best]

    def _bind(self, inputs: Mapping[str, Any], round_float16: bool) -> dict[str, Any]:
        features = {feature.name: feature for feature in self.inputs}
        wanted = {value.name: value for value in self.function.inputs}
        for name in inputs:
            if name not in wanted:
                raise ProgramError(f"{self.package.shown}: has no input '{name}', only {', '.join(wanted)}")
        values: dict[str, Any] = {}
        for name, value in wanted.items():
            if name not in inputs:
                raise ProgramError(f"{self.package.shown}: input '{name}' is missing")
            if value.type.kind != "tensor" or value.type.dtype is None:
                raise ProgramError(
                    f"{self.package.shown}: input '{name}' is a {value.type.kind}, which is not supported"
                )
            given, feature = inputs[name], features.get(name)
            if feature is not None and feature.kind == "image":
                given = images.planes(given, feature)
            try:
                array = given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
            except (TypeError, ValueError):
                raise ProgramError(f"{self.package.shown}: input '{name}' is no array of numbers") from None
            if not value.type.admits(tuple(array.shape)):
                shape = tuple(array.shape)
                raise ProgramError(f"{self.package.shown}: input '{name}' has shape {shape}, not {value.type}")
            held = carrier(value.type.dtype)
            if array.is_floating_point() and not held.is_floating_point:
                raise ProgramError(f"{self.package.shown}: input '{name}' is {array.dtype}, not {value.type}")
            tensor = array.to(held)
            values[name] = tensor.half().float() if round_float16 and value.type.dtype.name == "fp16" else tensor
        return values

    def _run(
        self,
        code: Code,
        values: dict[str, Any],
        overflows: list[Overflow] | None,
        wanted: set[str],
        kept: dict[str, Tensor],
    ) -> None:
        for step in code.steps:
            own = step.function is None
            found = self._run_own(step, values, overflows, wanted, kept) if own else step.call(values)
            for result, value in zip(step.results, found, strict=True):
                result.check(value, step.op)
                if overflows is not None and result.half:
                    value = _round(value, step.op, overflows)
                values[result.value.name] = value
                if result.value.name in wanted:
                    kept[result.value.name] = value
            for name in step.release:
                del values[name]
        for name in code.outputs:
            if name not in values:
                values[name] = self._compiler.tensor(name)

    def _run_own(
        self,
        step: Step,
        values: dict[str, Any],
        overflows: list[Overflow] | None,
        wanted: set[str],
        kept: dict[str, Tensor],
    ) -> tuple[Any, ...]:
        def take(source: str | Constant) -> Any:
            return values[source] if isinstance(source, str) and source in values else self._compiler.tensor(source)

        def inner(code: Code, given: Iterable[Any]) -> tuple[Any, ...]:
            scope = values | dict(zip(code.inputs, given, strict=True))
            self._run(code, scope, overflows, wanted, kept)
            return tuple(scope[name] for name in code.outputs)

        op = step.op
        if op.type == "classify":
            probabilities = take(op.inputs["probabilities"][0])
            labels = self._compiler.python(op.inputs["classes"][0])
            if probabilities.numel() != len(labels):
                raise ProgramError(f"{op} has {len(labels)} labels for {probabilities.numel()} probabilities")
            return labels[int(probabilities.argmax())], probabilities
        if op.type == "cond":
            return inner(step.blocks[0 if bool(take(op.inputs["pred"][0])) else 1], ())
        state = tuple(take(source) for source in op.inputs["loop_vars"])
        condition, body = step.blocks
        while bool(inner(condition, state)[0]):
            state = inner(body, state)
        return state

    def _numpy(self, name: str, value: Any) -> Array:
        if not isinstance(value, Tensor):
            return np.array(value)
        array: Array = value.numpy()
        feature = next((item for item in self.outputs if item.name == name), None)
        if feature is not None and feature.kind == "image":
            pixels: Array = np.clip(np.rint(array), 0, 255).astype(np.uint8)[0].transpose(1, 2, 0)
            return pixels[..., ::-1] if feature.colour == "bgr" else pixels
        # An execution's array must not be a window on a constant, or on an input that the caller may change.
        dtype = np.dtype(feature.dtype) if feature is not None and feature.dtype else array.dtype
        with np.errstate(over="ignore"):
            copy: Array = array.astype(dtype, copy=True)
            return copy


@contextmanager
def _blame(package: Package) -> Iterator[None]:
    """Begin every message with the package's path."""
    try:
        yield
    except (PackageError, ProgramError) as error:
        message = str(error)
        if message.startswith(package.shown):
            raise
        raise type(error)(f"{package.shown}: {message}") from error.__cause__


def _round(value: Tensor, op: Op, overflows: list[Overflow]) -> Tensor:
    half = value.half()
    if not bool(torch.isfinite(half).all()):
        lost = torch.isinf(half) & torch.isfinite(value)
        if count := int(lost.sum()):
            largest = float(value[lost].abs().max())
            overflows.append(Overflow(op=op.name, type=op.type, largest=largest, elements=count))
    return half.float()
