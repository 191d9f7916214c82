"""Packages whose constants coremltools has palettised, quantised or pruned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro.coreml.convert import INPUT, OUTPUT, convert
from repro.coreml.interpreter import Program
from repro.coreml.quiet import muffled
from repro.coreml.weights import randomise, sample_inputs
from tests.coreml.nets import SIZE, Net
from tests.coreml.programs import coremltools


def _palettise(cto: Any, model: Any, **options: Any) -> Any:
    config = cto.OpPalettizerConfig(mode="uniform", weight_threshold=64, **options)
    return cto.palettize_weights(model, cto.OptimizationConfig(global_config=config))


def _quantise(cto: Any, model: Any, **options: Any) -> Any:
    config = cto.OpLinearQuantizerConfig(weight_threshold=64, **options)
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))


def _prune(cto: Any, model: Any) -> Any:
    config = cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=64)
    return cto.prune_weights(model, cto.OptimizationConfig(global_config=config))


def _joint(second: Callable[..., Any], **options: Any) -> Callable[[Any, Any], Any]:
    """Prune, then compress what is left."""

    def compress(cto: Any, model: Any) -> Any:
        pruned = _prune(cto, model)
        if second is _palettise:
            config = cto.OpPalettizerConfig(mode="uniform", weight_threshold=64, **options)
            return cto.palettize_weights(pruned, cto.OptimizationConfig(global_config=config), joint_compression=True)
        config = cto.OpLinearQuantizerConfig(weight_threshold=64, **options)
        return cto.linear_quantize_weights(pruned, cto.OptimizationConfig(global_config=config), joint_compression=True)

    return compress


WAYS: dict[str, tuple[str, Callable[[Any, Any], Any], set[str]]] = {
    "6 bits": ("iOS16", lambda cto, model: _palettise(cto, model, nbits=6), {"constexpr_lut_to_dense"}),
    "2 bits": ("iOS17", lambda cto, model: _palettise(cto, model, nbits=2), {"constexpr_lut_to_dense"}),
    "3 bits by group": (
        "iOS18",
        lambda cto, model: _palettise(cto, model, nbits=3, granularity="per_grouped_channel", group_size=4),
        {"constexpr_lut_to_dense"},
    ),
    "4 bits with scales": (
        "iOS18",
        lambda cto, model: _palettise(cto, model, nbits=4, enable_per_channel_scale=True),
        {"constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"},
    ),
    "int8": ("iOS16", lambda cto, model: _quantise(cto, model), {"constexpr_affine_dequantize"}),
    "uint8": (
        "iOS17",
        lambda cto, model: _quantise(cto, model, mode="linear", dtype="uint8"),
        {"constexpr_affine_dequantize"},
    ),
    "int8, iOS18": ("iOS18", lambda cto, model: _quantise(cto, model), {"constexpr_blockwise_shift_scale"}),
    "int4 by block": (
        "iOS18",
        lambda cto, model: _quantise(cto, model, dtype="int4", granularity="per_block", block_size=8),
        {"constexpr_blockwise_shift_scale"},
    ),
    "uint4 with offsets": (
        "iOS18",
        lambda cto, model: _quantise(cto, model, mode="linear", dtype="uint4"),
        {"constexpr_blockwise_shift_scale"},
    ),
    "sparse": ("iOS16", _prune, {"constexpr_sparse_to_dense"}),
    "sparse, iOS18": ("iOS18", _prune, {"constexpr_sparse_to_dense"}),
    "sparse palette": (
        "iOS18",
        _joint(_palettise, nbits=4),
        {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"},
    ),
    "sparse int8": (
        "iOS18",
        _joint(_quantise, mode="linear_symmetric"),
        {"constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"},
    ),
}


@pytest.mark.parametrize(
    ("way", "precision"), [*((way, "float16") for way in WAYS), ("6 bits", "float32"), ("int4 by block", "float32")]
)
def test_compressed_is_what_coremltools_decompresses(tmp_path: Path, way: str, precision: Any) -> None:
    target, compress, kinds = WAYS[way]
    ct = coremltools()
    import coremltools.optimize.coreml as cto

    net = randomise(Net(), input_size=SIZE)
    plain = convert(net, tmp_path / "plain.mlpackage", input_size=SIZE, precision=precision, target=target)
    with muffled():
        model = compress(cto, ct.models.MLModel(str(plain), skip_model_load=True))
        model.save(str(tmp_path / "small.mlpackage"))
        cto.decompress_weights(model).save(str(tmp_path / "again.mlpackage"))
    small, again = (Program.load(tmp_path / f"{name}.mlpackage") for name in ("small", "again"))
    assert {kind for op in small.function.block.walk() if (kind := op.type).startswith("constexpr")} == kinds
    x = sample_inputs(SIZE, count=1, seed=0)
    found, want, exact = (program.run({INPUT: x})[OUTPUT] for program in (small, again, Program.load(plain)))
    np.testing.assert_allclose(found.astype(np.float32), want.astype(np.float32), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(found, exact)


def test_the_constants_are_decompressed_once(tmp_path: Path) -> None:
    ct = coremltools()
    import coremltools.optimize.coreml as cto

    plain = convert(randomise(Net(), input_size=SIZE), tmp_path / "plain.mlpackage", input_size=SIZE, target="iOS16")
    with muffled():
        _palettise(cto, ct.models.MLModel(str(plain), skip_model_load=True), nbits=4).save(
            str(tmp_path / "small.mlpackage")
        )
    program = Program.load(tmp_path / "small.mlpackage")
    assert "constexpr_lut_to_dense" in program.op_types
    assert not any(step.op.type.startswith("constexpr_") for step in program._code.steps)
    assert torch.equal(*(torch.from_numpy(program.run({INPUT: torch.ones(1, *SIZE)})[OUTPUT]) for _ in range(2)))
