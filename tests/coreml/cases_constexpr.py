"""Compressed constants and control flow."""

from __future__ import annotations

import numpy as np

from repro.coreml.quiet import muffled
from tests.coreml.programs import Case, builder, coremltools, floats, integers


def _constant(op: str, note: str, target: str, want=None, **arguments: object) -> Case:
    """The constant added to nothing: an op that only has constants needs an input beside it to be a program."""

    def build(mb, x):
        made = getattr(mb, op)(**arguments)
        value = made[1] if isinstance(made, tuple | list) else made
        return mb.mul(x=value, y=x)

    def fold(x: np.ndarray) -> np.ndarray:
        return _materialised(op, target, arguments) * x

    return Case(op=op, note=note, target=target, inputs=(np.array([1.5], np.float32),), build=build, want=want or fold)


def _materialised(op: str, target: str, arguments: dict[str, object]) -> np.ndarray:
    """What coremltools itself makes of the compressed constant."""
    ct, mb = coremltools(), builder()
    found = []

    def program(x):
        made = getattr(mb, op)(**arguments)
        value = made[1] if isinstance(made, tuple | list) else made
        found.append(value.op.materialized_val_inference())
        return x

    with muffled():
        mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=getattr(ct.target, target))(program)
    return found[0][1] if isinstance(found[0], tuple) else found[0]


def _narrow(bits: int, *shape: int, signed: bool = False, seed: int = 0) -> np.ndarray:
    """Integers of a few bits, in the type that coremltools marks with their width."""
    coremltools()
    from coremltools.converters.mil.mil import types

    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    kind = getattr(types, f"{'int' if signed else 'uint'}{bits}")
    values = np.random.default_rng(seed).integers(low, high, shape)
    return values.astype(types.nptype_from_builtin(kind))


def cases() -> list[Case]:
    """Made when asked for: their arguments need coremltools' types."""
    mask = (np.arange(24).reshape(4, 6) % 3 == 0).astype(np.uint8)
    packed = np.packbits(mask.ravel(), bitorder="little")
    bits = _narrow(1, 4, 6, seed=3)
    return [
        *(
            _constant(
                "constexpr_lut_to_dense",
                f"{n} bits",
                "iOS16",
                indices=np.packbits(
                    np.unpackbits(integers(15, high=1 << n).astype(np.uint8)[:, None], axis=1, bitorder="little")[
                        :, :n
                    ].ravel(),
                    bitorder="little",
                ),
                lut=floats(1 << n),
                shape=np.array([3, 5], np.uint32),
            )
            for n in (1, 2, 4, 6, 8)
        ),
        *(
            _constant(
                "constexpr_lut_to_dense",
                f"{n} bits in groups",
                "iOS18",
                indices=_narrow(n, 6, 4),
                lut=floats(2, 1, 1 << n, 1),
            )
            for n in (1, 2, 3, 4, 6, 8)
        ),
        *(
            _constant(
                "constexpr_lut_to_dense",
                f"vectors along {axis}",
                "iOS18",
                indices=_narrow(2, 4, 6),
                lut=floats(1, 2, 4, 3),
                vector_axis=axis,
            )
            for axis in (0, 1)
        ),
        _constant(
            "constexpr_affine_dequantize",
            "by channel",
            "iOS16",
            quantized_data=integers(3, 4, low=-100, high=100).astype(np.int8),
            zero_point=np.array([1, -2, 3, 4], np.int8),
            scale=floats(4, low=0.1),
            axis=1,
        ),
        _constant(
            "constexpr_affine_dequantize",
            "as a whole",
            "iOS16",
            quantized_data=integers(3, 4, high=200).astype(np.uint8),
            zero_point=np.uint8(128),
            scale=np.float32(0.3),
            axis=0,
        ),
        _constant(
            "constexpr_cast",
            "",
            "iOS16",
            source_val=floats(3, 4).astype(np.float16),
            output_dtype="fp32",
        ),
        _constant(
            "constexpr_sparse_to_dense",
            "",
            "iOS16",
            nonzero_data=floats(int(mask.sum())),
            mask=packed,
            shape=np.array([4, 6], np.uint32),
        ),
        _constant("constexpr_sparse_to_dense", "", "iOS18", nonzero_data=floats(int(bits.sum())), mask=bits),
        *(
            _constant(
                "constexpr_blockwise_shift_scale",
                note,
                "iOS18",
                data=data,
                scale=floats(2, 3, low=0.1),
                **({} if offset is None else {"offset": offset}),
            )
            for note, data, offset in (
                ("int4", _narrow(4, 4, 6, signed=True), None),
                ("int4 offset", _narrow(4, 4, 6, signed=True), _narrow(4, 2, 3, signed=True, seed=1)),
                ("uint4 offset", _narrow(4, 4, 6), _narrow(4, 2, 3, seed=1)),
                ("int8", integers(4, 6, low=-128, high=128).astype(np.int8), None),
            )
        ),
        _constant(
            "constexpr_lut_to_sparse",
            "",
            "iOS18",
            indices_mask=bits,
            indices_nonzero_data=_narrow(2, int(bits.sum()), seed=4),
            lut=floats(1, 1, 4, 1),
        ),
        _constant(
            "constexpr_lut_to_sparse",
            "vectors",
            "iOS18",
            indices_mask=bits,
            indices_nonzero_data=_narrow(2, int(bits.sum()), seed=4),
            lut=floats(1, 1, 4, 2),
            vector_axis=0,
        ),
        _constant(
            "constexpr_sparse_blockwise_shift_scale",
            "",
            "iOS18",
            data_mask=bits,
            nonzero_data=_narrow(4, int(bits.sum()), signed=True, seed=5),
            scale=floats(1, 6, low=0.1),
            offset=_narrow(4, 1, 6, signed=True, seed=6),
        ),
        Case(
            op="quantize",
            target="iOS17",
            inputs=(floats(3, 4, low=-40, high=40),),
            build=lambda mb, x: mb.cast(
                x=mb.quantize(
                    input=x,
                    scale=np.array([0.1, 0.3, 0.2, 0.5], np.float32),
                    zero_point=np.array([3, -4, 0, 7], np.int8),
                    axis=1,
                    output_dtype="int8",
                ),
                dtype="fp32",
            ),
        ),
        Case(
            op="quantize",
            note="no zero point",
            target="iOS17",
            inputs=(floats(3, 4, low=-3, high=40),),
            build=lambda mb, x: mb.cast(
                x=mb.quantize(input=x, scale=np.float32(0.1), output_dtype="uint8"), dtype="fp32"
            ),
        ),
        Case(
            op="dequantize",
            target="iOS17",
            inputs=(floats(3, 4, low=-100, high=100),),
            build=lambda mb, x: mb.dequantize(
                input=mb.cast(x=x, dtype="int8"),
                scale=np.array([0.1, 0.3, 0.2], np.float32),
                zero_point=np.array([3, -4, 0], np.int8),
                axis=0,
            ),
            want=lambda x: (np.trunc(x) - np.array([[3], [-4], [0]])) * np.array([[0.1], [0.3], [0.2]]),
        ),
        *(
            Case(
                op="cond",
                note=f"of {value}",
                inputs=(np.array([value], np.float32), floats(2, 3)),
                build=lambda mb, p, x: mb.cond(
                    pred=mb.squeeze(x=mb.greater(x=p, y=np.float32(0))),
                    _true_fn=lambda: mb.add(x=x, y=np.float32(1)),
                    _false_fn=lambda: mb.mul(x=x, y=np.float32(2)),
                ),
                want=lambda p, x: x + 1 if p[0] > 0 else x * 2,
            )
            for value in (1.0, -1.0)
        ),
        Case(
            op="while_loop",
            inputs=(floats(2, 3), np.array([3], np.int32)),
            build=lambda mb, x, n: mb.while_loop(
                _cond=lambda i, y: mb.less(x=i, y=mb.squeeze(x=n)),
                _body=lambda i, y: (mb.add(x=i, y=1), mb.mul(x=y, y=np.float32(2))),
                loop_vars=(0, x),
            )[1],
            want=lambda x, n: x * 8,
        ),
    ]
