"""The gates: what is faithful passes, and a planted fault never does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repro.coreml.check import TOLERANCE, CheckResult, check_conversion, check_package
from repro.coreml.convert import INPUT, convert
from repro.coreml.errors import ProgramError
from repro.coreml.exact import match, round_constant
from repro.coreml.interpreter import Program
from repro.coreml.package import Package
from repro.coreml.quiet import muffled
from repro.coreml.weights import randomise
from tests.coreml.nets import SIZE, Net
from tests.coreml.programs import coremltools, floats, save_program
from tests.coreml.tamper import WEIGHTS, argument, block, ops, tampered

NORMALISATION: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Made:
    """One network at both precisions."""

    net: nn.Module
    folder: Path
    float32: CheckResult
    float16: CheckResult

    def path(self, precision: str) -> Path:
        return self.folder / f"{precision}.mlpackage"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    net = randomise(Net(), input_size=SIZE)
    folder = tmp_path_factory.mktemp("made")
    return Made(net, folder, *check_conversion(net, input_size=SIZE, folder=folder))


def test_a_faithful_conversion_passes(made: Made) -> None:
    full, half = made.float32, made.float16
    assert (full.verdict, full.precision, full.exact, full.rounded) == ("passed", "float32", None, None)
    assert full.float32.error < 1e-5
    assert (half.verdict, half.precision, half.exact, half.difference) == ("passed", "float16", True, None)
    assert half.float32 == full.float32
    assert half.constants is not None
    assert half.rounded is not None
    assert 1e-5 < half.constants.error < 0.05
    assert 1e-5 < half.rounded.error < 0.05
    assert half.overflows == ()


def _tanh(spec: Any) -> None:
    for op in ops(spec, "gelu"):
        argument(spec, op, "mode").strings.values[:] = ["TANH_APPROXIMATION"]


def _drop_bias(kind: str, index: int) -> Callable[[Any], None]:
    def change(spec: Any) -> None:
        del list(ops(spec, kind))[index].inputs["bias"]

    return change


def _axis(spec: Any) -> None:
    argument(spec, next(ops(spec, "softmax")), "axis").ints.values[:] = [-2]


def _channel_order(spec: Any) -> None:
    arguments = next(ops(spec, "concat")).inputs["values"].arguments
    first, second = arguments[0].name, arguments[1].name
    arguments[0].name, arguments[1].name = second, first


def _maximum(spec: Any) -> None:
    next(ops(spec, "reduce_mean")).type = "reduce_max"


FAULTS: dict[str, Callable[[Any], None]] = {
    "tanh for erf in GELU": _tanh,
    "a convolution's bias dropped": _drop_bias("conv", 1),
    "another convolution's bias dropped": _drop_bias("conv", -1),
    "the head's bias dropped": _drop_bias("linear", 0),
    "softmax along the wrong axis": _axis,
    "a concatenation in the wrong order": _channel_order,
    "maximum for mean": _maximum,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_planted_fault_is_caught(made: Made, tmp_path: Path, fault: str, precision: str) -> None:
    path = tampered(made.path(precision), tmp_path / "bad.mlpackage", FAULTS[fault])
    result = check_package(path, made.net, float32=made.path("float32"))
    assert result.verdict == "failed"
    if precision == "float32":
        assert result.float32.error > TOLERANCE
        assert "off PyTorch" in result.failures[0]
    else:
        assert result.exact is False
        assert result.difference
        assert result.float32.error < TOLERANCE


def _swap_blob(path: Path, other: Path, kind: str, index: int, parameter: str = "weight") -> None:
    """Give one layer the weights that it has in another package of the same network."""
    files = []
    for package in (path, other):
        opened = Package.open(package)
        op = [op for op in opened.function().block.operations if op.type == kind][index]
        const = next(o for o in opened.function().block.operations if o.outputs[0].name == op.inputs[parameter][0])
        assert const.value is not None
        assert const.value.blob is not None
        files.append((const.value.blob[1], const.value.numpy().tobytes()))
    content = bytearray((path / WEIGHTS).read_bytes())
    start = int.from_bytes(content[files[0][0] + 16 : files[0][0] + 24], "little")
    assert files[0][1] != files[1][1]
    content[start : start + len(files[1][1])] = files[1][1]
    (path / WEIGHTS).write_bytes(content)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(("kind", "index"), [("conv", 0), ("conv", 2), ("linear", 0)])
def test_a_stale_weight_is_caught(made: Made, tmp_path: Path, kind: str, index: int, precision: Any) -> None:
    stale = convert(
        randomise(Net(), input_size=SIZE, seed=1), tmp_path / "stale.mlpackage", input_size=SIZE, precision=precision
    )
    path = shutil.copytree(made.path(precision), tmp_path / "bad.mlpackage")
    _swap_blob(path, stale, kind, index)
    result = check_package(path, made.net, float32=made.path("float32"))
    assert result.verdict == "failed"
    if precision == "float16":
        assert result.exact is False
        assert "is not" in (result.difference or "")
    else:
        assert result.float32.error > TOLERANCE


def test_one_element_of_one_weight_is_caught_at_float16(made: Made, tmp_path: Path) -> None:
    """Far below what any tolerance on float16 outputs would see."""
    path = shutil.copytree(made.path("float16"), tmp_path / "bad.mlpackage")
    content = bytearray((path / WEIGHTS).read_bytes())
    content[-2] ^= 1
    (path / WEIGHTS).write_bytes(content)
    result = check_package(path, made.net, float32=made.path("float32"))
    assert result.exact is False
    assert "1 of" in (result.difference or "")
    assert result.constants is not None
    assert made.float16.constants is not None
    assert result.constants.error == pytest.approx(made.float16.constants.error, rel=0.2)


def test_another_network_is_caught(made: Made) -> None:
    other = randomise(Net(), input_size=SIZE, seed=2)
    assert check_package(made.path("float32"), other).verdict == "failed"
    result = check_package(made.path("float16"), other)
    assert (result.verdict, result.exact) == ("failed", False)
    assert result.float32.error < TOLERANCE  # the twin is of the other network, and faithful to it


def test_a_float16_package_alone_is_held_against_a_twin_made_for_it(made: Made) -> None:
    result = check_package(made.path("float16"), made.net)
    assert (result.verdict, result.exact) == ("passed", True)


@pytest.fixture(scope="module")
def pictures(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckResult, CheckResult]:
    folder = tmp_path_factory.mktemp("pictures")
    return check_conversion(made.net, input_size=SIZE, folder=folder, input_kind="image", **NORMALISATION)


def test_image_packages_and_the_normalisation_in_them(pictures: tuple[CheckResult, CheckResult]) -> None:
    for result in pictures:
        assert result.verdict == "passed"
        np.testing.assert_allclose(result.mean, NORMALISATION["mean"], atol=1e-3)
        np.testing.assert_allclose(result.std, NORMALISATION["std"], rtol=1e-3)


def test_the_wrong_normalisation_is_caught(made: Made, pictures: tuple[CheckResult, CheckResult]) -> None:
    for result in pictures:
        wrong = check_package(result.package, made.net, mean=(0.5, 0.5, 0.5), std=NORMALISATION["std"])
        assert wrong.failures == ("the package's mean is 0.4850, 0.4560, 0.4060, not 0.5000, 0.5000, 0.5000",) or (
            result.precision == "float16" and len(wrong.failures) == 1
        )
    missing = check_package(made.path("float32"), made.net, **NORMALISATION)
    assert [failure.split(",")[0] for failure in missing.failures] == [
        "the package's mean is none",
        "the package's std is none",
    ]


def _foreign(made: Made, path: Path, precision: str, **input_options: Any) -> Path:
    """A package as someone else makes it: names of their own, one scale and a bias for each channel."""
    ct = coremltools()
    with muffled(), torch.no_grad():
        ct.convert(
            torch.jit.trace(nn.Sequential(made.net, nn.Softmax(-1)), torch.rand(1, *SIZE)),
            convert_to="mlprogram",
            inputs=[ct.ImageType(name="picture", shape=(1, *SIZE), **input_options)],
            compute_precision=getattr(ct.precision, precision.upper()),
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        ).save(str(path))
    return path


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_package_that_someone_else_made(made: Made, tmp_path: Path, precision: str) -> None:
    path = _foreign(made, tmp_path / "theirs.mlpackage", precision, scale=1 / (255 * 0.226), bias=[-2.1, -2.0, -1.8])
    result = check_package(path, made.net)
    assert result.verdict == "passed"
    np.testing.assert_allclose(result.std, [0.226] * 3, rtol=1e-3)
    np.testing.assert_allclose(result.mean, np.array([2.1, 2.0, 1.8]) * 0.226, rtol=2e-3)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["tensor", "image"])
def test_a_classifier_is_checked_by_its_probabilities(made: Made, tmp_path: Path, precision: Any, kind: Any) -> None:
    options: dict[str, Any] = NORMALISATION if kind == "image" else {}
    labels = [f"class {i}" for i in range(10)]
    path = tmp_path / "net.mlpackage"
    convert(made.net, path, input_size=SIZE, precision=precision, input_kind=kind, class_labels=labels, **options)
    assert check_package(path, made.net, **options).verdict == "passed"

    def change(spec: Any) -> None:
        del next(ops(spec, "linear")).inputs["bias"]

    wrong = tampered(path, tmp_path / "bad.mlpackage", change)
    assert check_package(wrong, made.net, **options).verdict == "failed"


def test_a_package_of_flexible_shapes_is_checked_at_its_own(made: Made, tmp_path: Path) -> None:
    ct = coremltools()
    net = randomise(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), input_size=SIZE
    )
    with muffled(), torch.no_grad():
        side = ct.RangeDim(lower_bound=8, upper_bound=64, default=32)
        ct.convert(
            torch.jit.trace(net, torch.rand(1, *SIZE)),
            convert_to="mlprogram",
            inputs=[ct.TensorType(name="x", shape=(1, 3, side, side))],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS15,
            skip_model_load=True,
        ).save(str(tmp_path / "flexible.mlpackage"))
    assert check_package(tmp_path / "flexible.mlpackage", net).verdict == "passed"


def test_compressed_constants_are_reported_and_not_vouched_for(made: Made, tmp_path: Path) -> None:
    ct = coremltools()
    import coremltools.optimize.coreml as cto

    path = convert(made.net, tmp_path / "net.mlpackage", input_size=SIZE, target="iOS16")
    with muffled():
        model = ct.models.MLModel(str(path), skip_model_load=True)
        config = cto.OptimizationConfig(
            global_config=cto.OpPalettizerConfig(mode="uniform", nbits=8, weight_threshold=64)
        )
        cto.palettize_weights(model, config).save(str(tmp_path / "small.mlpackage"))
    result = check_package(tmp_path / "small.mlpackage", made.net)
    assert (result.verdict, result.exact) == ("unproven", None)
    assert result.difference == "the constants are compressed (constexpr_lut_to_dense)"
    assert result.constants is not None
    assert 1e-4 < result.constants.error < 0.5


class _Blows(nn.Module):
    """Linear attention without a norm: sums that float16 does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).square() * 100
        x = x @ x.transpose(-1, -2)
        return self.head(x.mean(-1) / 1e5)


def test_an_overflow_is_reported_with_its_op(tmp_path: Path) -> None:
    net = randomise(_Blows(), input_size=SIZE)
    _, half = check_conversion(net, input_size=SIZE, folder=tmp_path)
    assert half.verdict == "passed"
    assert half.overflows[0].type == "matmul"
    assert half.rounded is not None
    assert half.rounded.error == float("inf")


def test_what_is_no_image_network_is_said(made: Made, tmp_path: Path) -> None:
    flat = save_program(lambda mb, x: mb.reduce_mean(x=x, axes=[1]), (floats(3, 4),), tmp_path / "flat.mlpackage")
    with pytest.raises(ProgramError, match=r"its input is fp32\[3, 4\], not one image"):
        check_package(flat, made.net)
    two = save_program(lambda mb, x, y: mb.add(x=x, y=y), (floats(3), floats(3)), tmp_path / "two.mlpackage")
    with pytest.raises(ProgramError, match=r"takes 2 inputs \(x0, x1\), one is wanted"):
        check_package(two, made.net)
    with pytest.raises(ProgramError, match=r"gives 10 scores, the module 7"):
        check_package(made.path("float32"), randomise(Net(classes=7), input_size=SIZE))
    with pytest.raises(ProgramError, match=r"the module does not take its input"):
        check_package(made.path("float32"), nn.Sequential(nn.Conv2d(4, 2, 1)))


# The walk over two programs.


def test_rounding_keeps_small_constants_from_vanishing() -> None:
    values = np.array([1e-12, -1e-12, 0.0, 1.0, 1e-4, 1e6], np.float32)
    np.testing.assert_array_equal(
        round_constant(values), np.array([6e-8, -6e-8, 0, 1, 1e-4, np.inf], np.float16).astype(np.float32)
    )
    many = np.full(400, 1e-12, np.float32)
    np.testing.assert_array_equal(round_constant(many), 0)


def test_the_walk_covers_every_op_and_every_constant(made: Made) -> None:
    half, full = (Package.open(made.path(name)).function() for name in ("float16", "float32"))
    found = match(half, full)
    assert found.difference is None
    assert found.operations == sum(op.type not in ("const", "cast") for op in full.block.operations)
    floating = [op for op in full.block.operations if op.value and op.value.type.dtype and op.value.type.dtype.is_float]
    assert found.rounded.keys() <= {op.outputs[0].name for op in floating}
    assert len(found.rounded) == len(floating)


def _reroute(spec: Any) -> None:
    """An addition that takes the block's input twice."""
    op = next(ops(spec, "add"))
    op.inputs["y"].arguments[0].name = op.inputs["x"].arguments[0].name


def test_an_argument_taken_from_elsewhere_is_a_difference(made: Made, tmp_path: Path) -> None:
    half = Package.open(tampered(made.path("float16"), tmp_path / "b.mlpackage", _reroute)).function()
    assert match(half, Package.open(made.path("float32")).function()).difference is not None


def test_the_gates_do_not_depend_on_names(made: Made, tmp_path: Path) -> None:
    """A package whose every value is called something else is the same program."""

    def rename(spec: Any) -> None:
        renamed = {}
        for op in block(spec).operations:
            for output in op.outputs:
                if output.name not in block(spec).outputs:
                    renamed[output.name] = f"v{len(renamed)}"
                    output.name = renamed[output.name]
            for parameter in op.inputs.values():
                for binding in parameter.arguments:
                    if binding.WhichOneof("binding") == "name":
                        binding.name = renamed.get(binding.name, binding.name)

    path = tampered(made.path("float16"), tmp_path / "renamed.mlpackage", rename)
    assert check_package(path, made.net, float32=made.path("float32")).verdict == "passed"
    assert INPUT in {value.name for value in Program.load(path).function.inputs}
