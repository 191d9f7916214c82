"""The ML program of a package as plain data: functions, blocks, ops, types and constants.

No torch here: the cost estimate and the placement report read programs too, and need none of it. Names follow MIL,
Core ML's model intermediate language (coremltools, ``mlmodel/format/MIL.proto``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from repro.coreml.errors import PackageError

Array = npt.NDArray[Any]
#: Reads ``count`` elements of a type from a weight file of the package: (file name, offset, type, count).
BlobReader = Callable[[str, int, "DType", int], Array]


@dataclass(frozen=True, kw_only=True)
class DType:
    """One MIL element type."""

    name: str
    """MIL's own name, as ``cast`` spells it: fp16, int32, uint4, bool, string."""
    code: int
    """Its number in MIL.proto."""
    bits: int
    """Bits of one stored element; those below 8 are packed, lowest bits first."""
    numpy: np.dtype[Any] | None
    """What an unpacked element is held in; None for strings."""
    blob: int | None = None
    """Its number in a weight file's header, where the file can hold it."""

    @property
    def is_float(self) -> bool:
        """Whether this is a floating-point type."""
        return self.numpy is not None and self.numpy.kind == "f"

    def __str__(self) -> str:
        return self.name


def _dtype(name: str, code: int, bits: int, held: Any, blob: int | None = None) -> DType:
    return DType(name=name, code=code, bits=bits, numpy=None if held is None else np.dtype(held), blob=blob)


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        _dtype("bool", 1, 8, np.bool_),
        _dtype("string", 2, 8, None),
        _dtype("fp16", 10, 16, np.float16, 1),
        _dtype("fp32", 11, 32, np.float32, 2),
        _dtype("fp64", 12, 64, np.float64),
        _dtype("int8", 21, 8, np.int8, 4),
        _dtype("int16", 22, 16, np.int16, 6),
        _dtype("int32", 23, 32, np.int32, 14),
        _dtype("int64", 24, 64, np.int64),
        _dtype("int4", 25, 4, np.int8, 8),
        _dtype("uint8", 31, 8, np.uint8, 3),
        _dtype("uint16", 32, 16, np.uint16, 7),
        _dtype("uint32", 33, 32, np.uint32, 15),
        _dtype("uint64", 34, 64, np.uint64),
        _dtype("uint4", 35, 4, np.uint8, 11),
        _dtype("uint2", 36, 2, np.uint8, 10),
        _dtype("uint1", 37, 1, np.uint8, 9),
        _dtype("uint6", 38, 6, np.uint8, 13),
        _dtype("uint3", 39, 3, np.uint8, 12),
    )
}
_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


@dataclass(frozen=True, kw_only=True)
class ValueType:
    """The declared type of a value: a tensor (scalars have rank 0), or a list, dict or state around others."""

    kind: str
    """tensor, list, tuple, dict or state."""
    dtype: DType | None = None
    """Element type of a tensor or state, of a list's or a dict's elements."""
    shape: tuple[int | None, ...] | None = ()
    """None for a size only known at run time; None altogether where even the rank is."""

    @property
    def elements(self) -> int | None:
        """Number of elements, where the declared shape says it."""
        if self.shape is None or any(size is None for size in self.shape):
            return None
        return math.prod(size for size in self.shape if size is not None)

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of this shape fits the declared one."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want is None or want == size for want, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        shape = "..." if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.kind if self.kind != 'tensor' else ''}{self.dtype}[{shape}]"


@dataclass(frozen=True, kw_only=True)
class Value:
    """A named result: of an op, of a function's input or of a block's input."""

    name: str
    type: ValueType


class Constant:
    """A constant of the program, read from the package when it is asked for."""

    __slots__ = ("_message", "_read", "type")

    def __init__(self, message: Any, value_type: ValueType, read: BlobReader) -> None:
        self.type = value_type
        self._message = message
        self._read = read

    @property
    def blob(self) -> tuple[str, int] | None:
        """File name and offset of the header in the weight file; None for a value written in the program itself."""
        if self._message.WhichOneof("value") != "blobFileValue":
            return None
        return self._message.blobFileValue.fileName, self._message.blobFileValue.offset

    def python(self) -> Any:
        """The value as Python's own: numbers, strings, nested lists."""
        if self.type.kind != "tensor":
            return [Constant(item, _value_type(item.type), self._read).python() for item in self._items()]
        if self.type.dtype is DTYPES["string"]:
            strings = list(self._message.immediateValue.tensor.strings.values)
            return strings[0] if self.type.shape == () else strings
        return self.numpy().tolist()

    def numpy(self) -> Array:
        """The value as an array; one that lies in a weight file is memory-mapped, unless its elements are packed.

        Raises
        ------
        PackageError
            The weight file is truncated, or holds something else at that place.
        """
        dtype, count = self.type.dtype, self.type.elements
        if self.type.kind != "tensor" or dtype is None or dtype.numpy is None or count is None:
            raise PackageError(f"a constant of type {self.type} is no array")
        if self.blob is not None:
            name, offset = self.blob
            flat = self._read(name, offset, dtype, count)
        else:
            flat = _immediate(self._message.immediateValue.tensor, dtype, count)
        return flat.reshape(tuple(size for size in self.type.shape or () if size is not None))

    def _items(self) -> list[Any]:
        immediate = self._message.immediateValue
        kind = immediate.WhichOneof("value")
        if kind not in ("list", "tuple"):
            raise PackageError(f"a constant of type {self.type} is held as {kind or 'nothing'}")
        return list(getattr(immediate, kind).values)


Binding = str | Constant
"""An argument: the name of another value, or a constant written in place."""


@dataclass(kw_only=True, slots=True)
class Op:
    """One operation of a block."""

    type: str
    name: str
    inputs: dict[str, list[Binding]]
    """By parameter. Constants that older operators carry as attributes are among them."""
    outputs: list[Value]
    blocks: list[Block] = field(default_factory=list)

    @property
    def value(self) -> Constant | None:
        """What a ``const`` holds."""
        held = self.inputs.get("val")
        return held[0] if self.type == "const" and held and isinstance(held[0], Constant) else None

    def __str__(self) -> str:
        return f"{self.type} '{self.name}'"


@dataclass(kw_only=True, slots=True)
class Block:
    """Ops in an order in which every value is computed before it is used."""

    inputs: list[Value]
    outputs: list[str]
    operations: list[Op]

    def walk(self) -> Iterator[Op]:
        """Every op, those of nested blocks after the op that holds them."""
        for op in self.operations:
            yield op
            for block in op.blocks:
                yield from block.walk()


@dataclass(kw_only=True, slots=True)
class Function:
    """One entry of a program: its inputs, and the block of the newest operator set it was specialised for."""

    name: str
    opset: str
    inputs: list[Value]
    block: Block


def parse_function(name: str, message: Any, read: BlobReader) -> Function:
    """Turn a protobuf ``Function`` into plain data.

    Raises
    ------
    PackageError
        The function has no body for its operator set, or a value is of a type that this program does not know.
    """
    block = message.block_specializations.get(message.opset) if message.block_specializations else None
    if block is None:
        raise PackageError(f"function '{name}' has no body for its operator set '{message.opset}'")
    inputs = [Value(name=item.name, type=_value_type(item.type)) for item in message.inputs]
    return Function(name=name, opset=message.opset, inputs=inputs, block=_block(block, read))


def _block(message: Any, read: BlobReader) -> Block:
    return Block(
        inputs=[Value(name=item.name, type=_value_type(item.type)) for item in message.inputs],
        outputs=list(message.outputs),
        operations=[_op(op, read) for op in message.operations],
    )


def _op(message: Any, read: BlobReader) -> Op:
    inputs: dict[str, list[Binding]] = {}
    for parameter, argument in message.inputs.items():
        inputs[parameter] = [
            binding.name
            if binding.WhichOneof("binding") == "name"
            else Constant(binding.value, _value_type(binding.value.type), read)
            for binding in argument.arguments
        ]
    outputs = [Value(name=item.name, type=_value_type(item.type)) for item in message.outputs]
    name = outputs[0].name if outputs else ""
    for attribute, value in message.attributes.items():
        if attribute == "name":
            name = value.immediateValue.tensor.strings.values[0]
        else:
            inputs[attribute] = [Constant(value, _value_type(value.type), read)]
    return Op(
        type=message.type,
        name=name,
        inputs=inputs,
        outputs=outputs,
        blocks=[_block(block, read) for block in message.blocks],
    )


def _value_type(message: Any) -> ValueType:
    kind = message.WhichOneof("type")
    if kind == "tensorType":
        return _tensor_type(message.tensorType)
    if kind == "stateType":
        wrapped = _value_type(message.stateType.wrappedType)
        return ValueType(kind="state", dtype=wrapped.dtype, shape=wrapped.shape)
    if kind == "listType":
        return ValueType(kind="list", dtype=_value_type(message.listType.type).dtype, shape=None)
    if kind == "dictionaryType":
        return ValueType(kind="dict", dtype=_value_type(message.dictionaryType.valueType).dtype, shape=None)
    if kind == "tupleType":
        return ValueType(kind="tuple", shape=None)
    raise PackageError(f"a value has no type that this program knows ({kind})")


def _tensor_type(message: Any) -> ValueType:
    dtype = _BY_CODE.get(message.dataType)
    if dtype is None:
        raise PackageError(f"a value has element type number {message.dataType}, which this program does not know")
    shape: list[int | None] = []
    for dimension in message.dimensions:
        if dimension.WhichOneof("dimension") == "constant":
            shape.append(dimension.constant.size)
        elif dimension.unknown.variadic:
            return ValueType(kind="tensor", dtype=dtype, shape=None)
        else:
            shape.append(None)
    return ValueType(kind="tensor", dtype=dtype, shape=tuple(shape))


#: Field of a TensorValue that holds a type's elements; every other type is stored as bytes.
_FIELDS = {
    "bool": "bools",
    "fp32": "floats",
    "fp64": "doubles",
    "int16": "ints",
    "uint16": "ints",
    "int32": "ints",
    "int64": "longInts",
    "uint64": "longInts",
}


def _immediate(message: Any, dtype: DType, count: int) -> Array:
    kept = message.WhichOneof("value")
    if count == 0 or kept is None:
        values = np.zeros(0, dtype=dtype.numpy)
    elif kept == "bytes":
        values = unpack(np.frombuffer(message.bytes.values, dtype=np.uint8), dtype, count)
    elif kept == _FIELDS.get(dtype.name):
        values = np.array(getattr(message, kept).values, dtype=dtype.numpy)
    else:
        raise PackageError(f"a constant of type {dtype} is held as {kept}")
    if len(values) != count:
        raise PackageError(f"a constant of type {dtype} has {len(values)} elements where its shape says {count}")
    return values


def unpack(stored: Array, dtype: DType, count: int) -> Array:
    """Elements from stored bytes: a view where they are whole bytes, unpacked (lowest bits first) below that.

    Raises
    ------
    PackageError
        There are fewer bytes than ``count`` elements take.
    """
    needed = (count * dtype.bits + 7) // 8
    if len(stored) < needed:
        raise PackageError(f"{count} elements of type {dtype} take {needed} bytes, {len(stored)} are there")
    stored = stored[:needed]
    if dtype.bits >= 8:
        return stored.view(dtype.numpy)
    bits = np.unpackbits(stored, bitorder="little")[: count * dtype.bits].reshape(count, dtype.bits)
    values = np.packbits(bits, axis=1, bitorder="little").reshape(count)
    if dtype.name.startswith("int"):
        sign = 1 << (dtype.bits - 1)
        return ((values.astype(np.int16) ^ sign) - sign).astype(np.int8)
    return values
