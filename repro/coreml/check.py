"""Is a package the network that it was made from?

Three gates. A float32 package agrees with PyTorch within 1e-4, on seeded inputs. A float16 package equals a float32
one of the same network *exactly* once that one's constants are rounded: the same ops with the same arguments
(:mod:`repro.coreml.exact`), and the same outputs to the last bit in float32 arithmetic. Rounding every float16
intermediate then says what a device may make of it: the error, the agreement of the best class, and each op where a
finite value overflows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from repro.coreml.convert import TARGETS, InputKind, convert
from repro.coreml.errors import ProgramError
from repro.coreml.exact import match
from repro.coreml.interpreter import Overflow, Program
from repro.coreml.mil import Op
from repro.coreml.weights import sample_inputs

if TYPE_CHECKING:
    from torch import nn

#: The largest difference of a float32 package from PyTorch, relative to the spread of PyTorch's outputs.
TOLERANCE = 1e-4
#: How far a normalisation read from a float16 program may lie from the stated one.
NORMALISATION_TOLERANCE = 2e-3

#: Ops that a normalisation is made of; coremltools turns a product and a sum by channel into a batch_norm.
_PREPROCESSING = frozenset({"add", "batch_norm", "cast", "mul", "real_div", "sub"})


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Outputs against PyTorch's."""

    error: float
    """Largest difference, divided by the largest deviation of PyTorch's outputs from their mean over the inputs."""
    argmax: float
    """Part of the inputs whose best class is the same."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What checking one package found."""

    package: str
    precision: Literal["float16", "float32"]
    samples: int
    """Seeded inputs that were compared."""
    float32: Agreement
    """The float32 package against PyTorch: the package itself, or the float32 twin of a float16 one."""
    exact: bool | None
    """Whether a float16 package is the float32 one with rounded constants; None for a float32 package, and for one
    whose constants are compressed, which cannot be compared so."""
    difference: str | None
    """Where the programs part, or why they cannot be compared."""
    constants: Agreement | None
    """A float16 package against PyTorch in float32 arithmetic: what rounding the constants costs."""
    rounded: Agreement | None
    """The same with every float16 intermediate rounded, as a device does."""
    overflows: tuple[Overflow, ...]
    """Ops whose finite results float16 cannot hold, each once."""
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    """The normalisation that the package itself applies, for values from 0 to 1, as read from the program."""
    failures: tuple[str, ...]
    """Every gate that does not hold, in words."""

    @property
    def verdict(self) -> Literal["passed", "failed", "unproven"]:
        """Unproven is a package with compressed constants: its agreement is reported, no gate can vouch for it."""
        if self.failures:
            return "failed"
        return "unproven" if self.precision == "float16" and self.exact is None else "passed"


def check_conversion(
    module: nn.Module,
    *,
    input_size: int | tuple[int, int, int],
    folder: str | Path,
    target: str = "iOS15",
    input_kind: InputKind = "tensor",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    samples: int = 3,
    seed: int = 0,
) -> tuple[CheckResult, CheckResult]:
    """Convert a module at both precisions and check both packages.

    Parameters
    ----------
    module, input_size, target, input_kind, mean, std
        As :func:`repro.coreml.convert.convert` takes them.
    folder
        Where the packages ``float32.mlpackage`` and ``float16.mlpackage`` are saved.
    samples, seed
        How many inputs are compared, and what they are drawn from.

    Returns
    -------
    CheckResult, CheckResult
        Of the float32 package and of the float16 one.
    """
    folder = Path(folder)
    options: dict[str, Any] = {"input_size": input_size, "target": target, "mean": mean, "std": std}
    full = convert(module, folder / "float32.mlpackage", precision="float32", input_kind=input_kind, **options)
    half = convert(module, folder / "float16.mlpackage", precision="float16", input_kind=input_kind, **options)
    normalisation: dict[str, Any] = {"mean": mean, "std": std} if input_kind == "image" else {}
    first = check_package(full, module, samples=samples, seed=seed, **normalisation)
    return first, check_package(half, module, float32=full, samples=samples, seed=seed, **normalisation)


def check_package(
    path: str | Path,
    module: nn.Module,
    *,
    float32: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    samples: int = 3,
    seed: int = 0,
) -> CheckResult:
    """Check a package, one's own or someone else's, against the module that it should be.

    The normalisation that a package applies to its input is read from the program, and the module is given what
    comes out of it. A package that ends in a softmax is compared with the softmax of the module's outputs.

    Parameters
    ----------
    path
        The package: a tensor or an image input, at either precision.
    module
        The network without normalisation, on the CPU in float32.
    float32
        A float32 package of the module, to hold a float16 package against: with a tensor input, or with the same
        image input. By default one is made.
    mean, std
        The normalisation that the package must apply; by default any.
    samples, seed
        How many inputs are compared, and what they are drawn from.

    Raises
    ------
    PackageError, ProgramError
        The package cannot be read or executed, or takes or gives something else than one image and its scores.
    ConversionError
        The float32 twin of a float16 package cannot be made.
    """
    module = module.eval()
    program = Program.load(path)
    subject = _Subject(program, module, samples, seed)
    failures: list[str] = []
    found_mean, found_std = subject.normalisation()
    _check_normalisation(found_mean, found_std, mean, std, failures)
    common: dict[str, Any] = {"package": str(path), "samples": samples, "mean": found_mean, "std": found_std}
    own = subject.agreement(subject.scores)
    if not subject.half:
        _check_error(own, failures)
        nothing: dict[str, Any] = {"exact": None, "difference": None, "constants": None, "rounded": None}
        return CheckResult(
            **common, **nothing, precision="float32", float32=own, overflows=(), failures=tuple(failures)
        )
    with _twin(float32, subject, module) as other:
        twin = _Subject(other, module, samples, seed, softmax=subject.softmax)
        full = twin.agreement(twin.scores)
        _check_error(full, failures)
        exact, difference = _check_exact(subject, other, failures)
    rounded, overflows = subject.rounded()
    return CheckResult(
        **common,
        precision="float16",
        float32=full,
        exact=exact,
        difference=difference,
        constants=own,
        rounded=rounded,
        overflows=overflows,
        failures=tuple(failures),
    )


class _Subject:
    """A program beside its module: inputs, what the network proper is given, and both sides' outputs."""

    def __init__(
        self, program: Program, module: nn.Module, samples: int, seed: int, *, softmax: bool | None = None
    ) -> None:
        self.program = program
        self.module = module
        self.half = any(result.type.dtype and result.type.dtype.name == "fp16" for result in _results(program))
        self.input, self.output = _single_input(program), _scores_name(program)
        self.inputs = _inputs(program, samples, seed)
        candidates = _entries(program, self.input)
        kept = [program.execute({self.input: x}, keep=[*candidates, self.output]).kept for x in self.inputs]
        self.scores = torch.cat([values[self.output].reshape(1, -1) for values in kept])
        tried = []
        for entry in candidates:
            given = [values[entry].float().clone() for values in kept]
            try:
                logits = self._ask(given)
            except (RuntimeError, ValueError, AssertionError) as error:
                raise ProgramError(f"{program.package.shown}: the module does not take its input: {error}") from None
            for soft in (False, True) if softmax is None else (softmax,):
                reference = logits.softmax(-1) if soft else logits
                if reference.shape != self.scores.shape:
                    raise ProgramError(
                        f"{program.package.shown}: gives {self.scores.shape[1]} scores, the module {reference.shape[1]}"
                    )
                tried.append((_agreement(self.scores, reference).error, entry, soft, given, reference))
        _, self.entry, self.softmax, self.given, self.reference = min(tried, key=lambda item: item[0])

    def agreement(self, scores: Tensor) -> Agreement:
        return _agreement(scores, self.reference)

    def rounded(self) -> tuple[Agreement, tuple[Overflow, ...]]:
        """With every float16 intermediate rounded, and each op that overflows."""
        runs = [self.program.execute({self.input: x}, round_float16=True, keep=[self.output]) for x in self.inputs]
        scores = torch.cat([run.kept[self.output].reshape(1, -1) for run in runs])
        overflows = {overflow.op: overflow for run in reversed(runs) for overflow in run.overflows}
        order = [overflow.op for run in runs for overflow in run.overflows]
        return self.agreement(scores), tuple(overflows[name] for name in dict.fromkeys(order))

    def normalisation(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Mean and deviation for values from 0 to 1, from what the program makes of a black and of a white input."""
        if self.entry == self.input:
            return None, None
        white = 255.0 if self.program.inputs[0].kind == "image" else 1.0
        ends = []
        for level in (0.0, white):
            x = np.full(self.inputs[0].shape, level, dtype=np.float32)
            ends.append(self.program.execute({self.input: x}, keep=[self.entry]).kept[self.entry][0, :, 0, 0].double())
        std = 1 / (ends[1] - ends[0])
        return tuple((-ends[0] * std).tolist()), tuple(std.tolist())

    def _ask(self, given: list[Tensor]) -> Tensor:
        with torch.inference_mode():
            return torch.cat([self.module(x).reshape(1, -1) for x in given])


@contextmanager
def _twin(path: str | Path | None, subject: _Subject, module: nn.Module) -> Iterator[Program]:
    """A float32 program of the module with a tensor input: the given package, or one made for the occasion."""
    if path is not None:
        yield Program.load(path)
        return
    target = subject.program.package.target
    _, channels, height, width = subject.given[0].shape
    with tempfile.TemporaryDirectory(prefix="repro-check-") as folder:
        made = convert(
            torch.nn.Sequential(module, torch.nn.Softmax(-1)) if subject.softmax else module,
            Path(folder) / "twin.mlpackage",
            input_size=(channels, height, width),
            precision="float32",
            target=target if target in TARGETS else TARGETS[-1],
        )
        yield Program.load(made)


def _check_exact(subject: _Subject, twin: Program, failures: list[str]) -> tuple[bool | None, str | None]:
    """The float16 program against the float32 twin with rounded constants: op by op, then output by output."""
    program = subject.program
    compressed = sorted(kind for kind in program.op_types if kind.startswith("constexpr_"))
    if compressed:
        return None, f"the constants are compressed ({', '.join(compressed)})"
    same_input = twin.inputs[0].kind == program.inputs[0].kind
    entry, given = (subject.input, subject.inputs) if same_input else (subject.entry, subject.given)
    name, output = _single_input(twin), _scores_name(twin)
    found = match(program.function, twin.function, entries=(entry, name), outputs=(subject.output, output))
    if found.difference is not None:
        failures.append(f"the float16 program is not the float32 one with rounded constants: {found.difference}")
        return False, found.difference
    rounded = Program(twin.package, constants=lambda name, array: found.rounded.get(name, array))
    for x, want in zip(given, subject.scores, strict=True):
        found_scores = rounded.execute({name: x}, keep=[output]).kept[output].reshape(-1)
        if not torch.equal(found_scores, want):
            off = float((found_scores - want).abs().max())
            difference = f"the programs are the same, their outputs differ by {off:.3g} in float32 arithmetic"
            failures.append(difference)
            return False, difference
    return True, None


def _check_error(agreement: Agreement, failures: list[str]) -> None:
    if not agreement.error <= TOLERANCE:
        failures.append(f"the float32 program is off PyTorch by {agreement.error:.2g}, more than {TOLERANCE:g}")


def _check_normalisation(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    want_mean: Sequence[float] | None,
    want_std: Sequence[float] | None,
    failures: list[str],
) -> None:
    for what, found, want in (("mean", mean, want_mean), ("std", std, want_std)):
        if want is None:
            continue
        if found is None or not np.allclose(found, want, rtol=NORMALISATION_TOLERANCE, atol=NORMALISATION_TOLERANCE):
            shown = "none" if found is None else ", ".join(f"{value:.4f}" for value in found)
            failures.append(f"the package's {what} is {shown}, not {', '.join(f'{value:.4f}' for value in want)}")


def _agreement(scores: Tensor, reference: Tensor) -> Agreement:
    """Both (samples, classes). What is common to all inputs says nothing about the network, and is not counted."""
    spread = (reference - reference.mean(0)).abs().max() if len(reference) > 1 else reference.abs().max()
    error = (scores.float() - reference).abs().max() / spread.clamp(min=torch.finfo(torch.float32).tiny)
    same = (scores.argmax(-1) == reference.argmax(-1)).float().mean()
    return Agreement(error=float(error) if torch.isfinite(error) else float("inf"), argmax=float(same))


def _results(program: Program) -> Iterator[Any]:
    for op in program.function.block.walk():
        if op.type not in ("const", "cast"):
            yield from op.outputs


def _single_input(program: Program) -> str:
    if len(program.function.inputs) != 1:
        names = ", ".join(value.name for value in program.function.inputs)
        raise ProgramError(
            f"{program.package.shown}: takes {len(program.function.inputs)} inputs ({names}), one is wanted"
        )
    return program.function.inputs[0].name


def _scores_name(program: Program) -> str:
    """The value that holds a score for each class: the output, or what a classifier makes its outputs from."""
    for op in program.function.block.operations:
        if op.type == "classify" and isinstance(source := op.inputs["probabilities"][0], str):
            return source
    floats = [item.name for item in program.outputs if item.kind == "tensor" and (item.dtype or "").startswith("float")]
    if len(floats) != 1:
        raise ProgramError(f"{program.package.shown}: gives {len(floats)} float tensors, one is wanted")
    return floats[0]


def _inputs(program: Program, samples: int, seed: int) -> list[Tensor]:
    declared, feature = program.function.inputs[0].type, program.inputs[0]
    default = feature.shape or ()
    shape = (1, 1 if (feature.colour or "").startswith("gray") else 3, *default) if feature.kind == "image" else default
    if len(shape) != 4 or shape[0] != 1 or not declared.admits(shape):
        raise ProgramError(f"{program.package.shown}: its input is {declared}, not one image")
    _, channels, height, width = shape
    x = sample_inputs((channels, height, width), count=samples, seed=seed + 1)
    if program.inputs[0].kind == "image":
        x = (x * 50 + 128).round().clamp(0, 255)
    return list(x[:, None])


def _entries(program: Program, name: str) -> list[str]:
    """The input, and every value that arithmetic with constants alone makes of it before the network branches off."""
    takers: dict[str, list[Op]] = {}
    for op in program.function.block.operations:
        for arguments in op.inputs.values():
            for source in arguments:
                if isinstance(source, str):
                    takers.setdefault(source, []).append(op)
    constants = {op.outputs[0].name for op in program.function.block.operations if op.type == "const"}
    entries = [name]
    while len(takers.get(name, [])) == 1:
        op = takers[name][0]
        others = [source for arguments in op.inputs.values() for source in arguments if source != name]
        if op.type not in _PREPROCESSING or any(isinstance(s, str) and s not in constants for s in others):
            break
        name = op.outputs[0].name
        if op.type != "cast":
            entries.append(name)
    return entries
