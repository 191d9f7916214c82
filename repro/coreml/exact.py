"""Whether a float16 program is a float32 one with its constants rounded: the same ops, the same arguments.

A tolerance on float16 outputs hides real faults, since rounding alone moves them by up to some percent. The
conversion to float16 is a rounding of constants and a cast at either end, so that the two programs can be walked side
by side from their outputs, and every op and every constant compared exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from repro.coreml.mil import Array, Binding, Block, Constant, Function, Op

#: Below this many elements coremltools keeps a constant from vanishing: what would be 0 becomes the smallest number.
_KEPT_FROM_ZERO = 400
_SMALLEST = np.float16(6e-8)
#: Values of string parameters that name a type, and differ with the precision alone.
_TYPE_NAMES = frozenset({"fp16", "fp32", "int16", "uint16", "int32"})


@dataclass(kw_only=True)
class Match:
    """What a comparison found."""

    difference: str | None = None
    """The first difference met, walking back from the outputs; None if there is none."""
    rounded: dict[str, Array] = field(default_factory=dict)
    """The float32 program's constants as the float16 one must hold them, by their name in the float32 program."""
    operations: int = 0
    """Pairs of ops compared, casts and constants aside."""
    constants: int = 0
    """Pairs of float constants compared."""


def round_constant(array: Array) -> Array:
    """A float32 constant rounded to float16 as coremltools does, still as float32."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if array.size < _KEPT_FROM_ZERO:
        lost = (np.abs(half) <= _SMALLEST) & (np.abs(array) > np.float32(1e-45))
        half = np.where(lost, np.copysign(_SMALLEST, array).astype(np.float16), half)
    return half.astype(np.float32)


def match(
    half: Function,
    full: Function,
    *,
    entries: tuple[str, str] | None = None,
    outputs: tuple[str, str] | None = None,
) -> Match:
    """Compare a float16 function with a float32 one.

    Parameters
    ----------
    half, full
        The two functions.
    entries
        A value of each at which the network begins; what computes it (a normalisation) is not compared. By default
        the functions' inputs, by name.
    outputs
        A value of each at which it ends; by default all of the functions' outputs.
    """
    found = Match()
    walk = _Walk(half, full, found, entries)
    pairs: list[tuple[Binding, Binding]]
    if outputs is not None:
        pairs = [outputs]
    elif len(half.block.outputs) != len(full.block.outputs):
        found.difference = f"{len(half.block.outputs)} outputs, not {len(full.block.outputs)}"
        return found
    else:
        pairs = list(zip(half.block.outputs, full.block.outputs, strict=True))
    while pairs and found.difference is None:
        pairs.extend(walk.step(*pairs.pop()))
    return found


class _Walk:
    def __init__(self, half: Function, full: Function, found: Match, entries: tuple[str, str] | None) -> None:
        self._made = _makers(half.block), _makers(full.block)
        self._inputs = {value.name for value in half.inputs}, {value.name for value in full.inputs}
        self._entries = entries
        self._seen: set[tuple[str, str]] = set()
        self._ops: set[tuple[int, int]] = set()
        self._found = found

    def step(self, left: Binding, right: Binding) -> list[tuple[Binding, Binding]]:
        """Compare two values; returns the values they are computed from, still to be compared."""
        left, right = self._behind_casts(left, 0), self._behind_casts(right, 1)
        if isinstance(left, str) and isinstance(right, str):
            if (left, right) in self._seen:
                return []
            self._seen.add((left, right))
            if self._entries == (left, right):
                return []
        one, other = self._constant(left, 0), self._constant(right, 1)
        if one is not None and other is not None:
            self._compare_constants(one, other, left, right)
            return []
        if not isinstance(left, str) or not isinstance(right, str) or one is not None or other is not None:
            return self._differ(f"a constant stands against a computed value ({_say(left)}, {_say(right)})")
        if left in self._inputs[0] or right in self._inputs[1]:
            if left == right and self._entries is None:
                return []
            return self._differ(f"'{left}' stands against '{right}', and one of them is an input")
        (op, i), (twin, j) = self._made[0][left], self._made[1][right]
        if (id(op), id(twin)) in self._ops and i == j:
            return []
        self._ops.add((id(op), id(twin)))
        if op.type != twin.type or i != j or op.inputs.keys() != twin.inputs.keys():
            return self._differ(
                f"{op} stands against {twin}" + ("" if op.type != twin.type else ", with other parameters")
            )
        self._found.operations += 1
        pairs: list[tuple[Binding, Binding]] = []
        for parameter in sorted(op.inputs):
            arguments, twins = op.inputs[parameter], twin.inputs[parameter]
            if len(arguments) != len(twins):
                return self._differ(f"{op} has {len(arguments)} arguments for '{parameter}', {twin} {len(twins)}")
            pairs.extend(zip(arguments, twins, strict=True))
        for block, mirror in zip(op.blocks, twin.blocks, strict=True):
            self._made[0].update(_makers(block))
            self._made[1].update(_makers(mirror))
            self._seen.update(
                (value.name, reflected.name) for value, reflected in zip(block.inputs, mirror.inputs, strict=True)
            )
            pairs.extend(zip(block.outputs, mirror.outputs, strict=True))
        return pairs

    def _behind_casts(self, source: Binding, side: int) -> Binding:
        """What a value is before it is cast from one float type, or from one integer type, to another."""
        while isinstance(source, str) and source in self._made[side]:
            if self._entries is not None and source == self._entries[side]:
                return source
            op, _ = self._made[side][source]
            if op.type != "cast":
                return source
            inner = op.inputs["x"][0]
            before, after = self._is_float(inner, side), op.outputs[0].type.dtype
            if before is None or after is None or before != after.is_float:
                return source
            source = inner
        return source

    def _is_float(self, source: Binding, side: int) -> bool | None:
        if isinstance(source, Constant):
            return source.type.dtype.is_float if source.type.dtype else None
        if source in self._inputs[side]:
            return True  # ML programs made from images and float tensors; an integer input is never cast to a float
        if source not in self._made[side]:
            return None
        op, i = self._made[side][source]
        dtype = op.outputs[i].type.dtype
        return None if dtype is None or dtype.name == "bool" else dtype.is_float

    def _constant(self, source: Binding, side: int) -> Constant | None:
        if isinstance(source, Constant):
            return source
        made = self._made[side].get(source)
        return made[0].value if made is not None and made[0].type == "const" else None

    def _compare_constants(self, one: Constant, other: Constant, left: Binding, right: Binding) -> None:
        dtype, twin = one.type.dtype, other.type.dtype
        if one.type.kind != "tensor" or dtype is None or twin is None or dtype.numpy is None or twin.numpy is None:
            values = one.python(), other.python()
            if values[0] != values[1] and not set(map(str, values)) <= _TYPE_NAMES:
                self._differ(f"{_say(left)} is {values[0]!r}, {_say(right)} is {values[1]!r}")
            return
        value, want = one.numpy(), other.numpy()
        if value.shape != want.shape or dtype.is_float != twin.is_float:
            self._differ(f"{_say(left)} is {one.type}, {_say(right)} is {other.type}")
            return
        if dtype.is_float:
            self._found.constants += 1
            want = round_constant(want) if dtype.name == "fp16" else want
            if isinstance(right, str) and dtype.name == "fp16":
                held = self._found.rounded.setdefault(right, want)
                want = held
        same = np.asarray(value, dtype=np.float64) == np.asarray(want, dtype=np.float64)
        if not same.all():
            place = np.unravel_index(int(np.argmin(same)), same.shape)
            self._differ(
                f"constant {_say(left)} is not {_say(right)} rounded: {int((~same).sum())} of {same.size} elements, "
                f"{value[place]!s} and {want[place]!s} at {[int(i) for i in place]}"
            )

    def _differ(self, message: str) -> list[tuple[Binding, Binding]]:
        if self._found.difference is None:
            self._found.difference = message
        return []


def _makers(block: Block) -> dict[str, tuple[Op, int]]:
    """Which op makes each value of a block, and as which of its results."""
    return {value.name: (op, i) for op in block.operations for i, value in enumerate(op.outputs)}


def _say(source: Binding) -> str:
    return f"'{source}'" if isinstance(source, str) else "a constant written in place"
