"""Small programs for the tests: one op in a saved package, and what coremltools' own constant folding makes of it."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.coreml.interpreter import Program
from repro.coreml.quiet import import_coremltools, muffled

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op with given arguments, and what it must give."""

    op: str
    build: Callable[..., Any]
    """Called with coremltools' builder and a value for each input; returns the op's result or results."""
    inputs: Arrays
    want: Callable[..., Any] | None = None
    """Called with the input arrays; by default coremltools folds the op on constants."""
    target: str = "iOS15"
    note: str = ""
    tolerance: float = 1e-5

    @property
    def id(self) -> str:
        return "-".join(part for part in (self.op, self.note, self.target if self.target != "iOS15" else "") if part)


@functools.cache
def coremltools() -> Any:
    """The library, loaded once and without its noise."""
    loaded = import_coremltools()
    gc.freeze()  # each conversion ends in a full collection, of which all of coremltools and torch would be 95%
    return loaded


def builder() -> Any:
    """coremltools' builder of programs, ``mb`` in its own documentation."""
    coremltools()
    from coremltools.converters.mil import Builder

    return Builder


def _function(count: int, body: Callable[..., Any]) -> Callable[..., Any]:
    """A function with as many named parameters as the builder looks for."""
    names = ", ".join(f"x{i}" for i in range(count))
    scope: dict[str, Any] = {"body": body}
    exec(f"def function({names}):\n    return body({names})", scope)
    return scope["function"]


def save_program(build: Callable[..., Any], inputs: Arrays, path: Path, *, target: str = "iOS15") -> Path:
    """Save a program of what ``build`` makes from inputs of these shapes and types; no pass touches it.

    Inputs are named x0, x1 and so on; a bool input arrives as an int32 that is cast.
    """
    ct, mb = coremltools(), builder()
    from coremltools.converters.mil.mil import types

    kinds = {"f": types.fp32, "i": types.int32, "b": types.int32}

    def body(*values: Any) -> Any:
        ready = [
            mb.cast(x=value, dtype="bool") if array.dtype.kind == "b" else value
            for value, array in zip(values, inputs, strict=True)
        ]
        return build(mb, *ready)

    with muffled():
        specs = [mb.TensorSpec(shape=array.shape, dtype=kinds[array.dtype.kind]) for array in inputs]
        version = getattr(ct.target, target)
        program = mb.program(input_specs=specs, opset_version=version)(_function(len(inputs), body))
        ct.convert(
            program,
            convert_to="mlprogram",
            pass_pipeline=ct.PassPipeline.EMPTY,
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=version,
            skip_model_load=True,
        ).save(str(path))
    return path


def interpret(case: Case, folder: Path) -> Arrays:
    """The case's op, executed from a saved package."""
    program = Program.load(save_program(case.build, case.inputs, folder / "op.mlpackage", target=case.target))
    assert case.op in program.op_types, f"coremltools made {program.op_types} of it"
    feeds = {f"x{i}": array.astype(np.int32) if array.dtype == bool else array for i, array in enumerate(case.inputs)}
    outputs = program.run(feeds)
    return tuple(outputs[name] for name in program.function.block.outputs)


def expected(case: Case) -> Arrays:
    """What the op must give: the case's own reference, or coremltools' constant folding."""
    found = case.want(*case.inputs) if case.want is not None else _fold(case)
    return tuple(np.asarray(item) for item in (found if isinstance(found, tuple | list) else (found,)))


def _fold(case: Case) -> Any:
    ct, mb = coremltools(), builder()
    folded: list[Any] = []

    def body(value: Any) -> Any:
        made = case.build(mb, *(mb.const(val=array) for array in case.inputs))
        for item in made if isinstance(made, tuple | list) else (made,):
            folded.append(item.val if item.val is not None else item.op.materialized_val_inference())
        return value

    with muffled():
        spec = mb.TensorSpec(shape=(1,))
        mb.program(input_specs=[spec], opset_version=getattr(ct.target, case.target))(_function(1, body))
    return tuple(folded)


def check(case: Case, folder: Path) -> None:
    """Execute the case and compare shapes and values."""
    found, want = interpret(case, folder), expected(case)
    assert len(found) == len(want)
    for one, other in zip(found, want, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(
            one.astype(np.float64), other.astype(np.float64), rtol=case.tolerance, atol=case.tolerance
        )


def floats(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Seeded float32 values, evenly spread."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def integers(*shape: int, seed: int = 0, low: int = 0, high: int = 10) -> np.ndarray:
    """Seeded int32 values from ``low`` to below ``high``."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def booleans(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded truth values."""
    return integers(*shape, seed=seed, high=2).astype(bool)
