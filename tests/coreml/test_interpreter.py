"""The interpreter's public face: inputs, outputs, what it refuses, and float16 as a device rounds it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from repro.coreml import images, registry
from repro.coreml.convert import convert
from repro.coreml.errors import PackageError, ProgramError, UnknownOpError
from repro.coreml.interpreter import Overflow, Program
from repro.coreml.quiet import muffled
from tests.coreml.programs import coremltools, floats, save_program
from tests.coreml.tamper import block, ops, tampered


def _call(package: Path, **inputs: Any) -> dict[str, np.ndarray]:
    return Program.load(package).run(inputs or {"x0": floats(1, 3, 8, 8)})


def test_the_public_face(package: Path) -> None:
    outputs = _call(package)
    assert {name: (array.shape, array.dtype) for name, array in outputs.items()} == {
        "last": ((1, 16, 8, 8), np.dtype(np.float32))
    }
    x = torch.from_numpy(floats(1, 3, 8, 8))
    x = F.gelu(F.conv2d(x, torch.from_numpy(floats(4, 3, 3, 3)), padding=1))
    want = F.conv2d(x, torch.from_numpy(floats(16, 4, 1, 1, seed=1)))
    np.testing.assert_allclose(outputs["last"], want.numpy(), atol=1e-5)


def test_a_program_runs_again_and_again(package: Path) -> None:
    program = Program.load(package)
    first, other = (program.run({"x0": floats(1, 3, 8, 8, seed=seed)})["last"] for seed in (0, 1))
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(program.run({"x0": floats(1, 3, 8, 8)})["last"], first)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int64])
def test_an_input_of_another_number_type_is_taken(package: Path, kind: type) -> None:
    x = np.round(floats(1, 3, 8, 8) * 4).astype(kind)
    np.testing.assert_array_equal(_call(package, x0=x)["last"], _call(package, x0=x.astype(np.float32))["last"])
    np.testing.assert_array_equal(_call(package, x0=torch.from_numpy(x))["last"], _call(package, x0=x)["last"])


def test_wrong_inputs_are_one_clear_line(package: Path) -> None:
    with pytest.raises(
        ProgramError, match=r"small.mlpackage: input 'x0' has shape \(1, 3, 9, 8\), not fp32\[1, 3, 8, 8\]"
    ):
        _call(package, x0=floats(1, 3, 9, 8))
    with pytest.raises(ProgramError, match="has no input 'image', only x0"):
        _call(package, image=floats(1, 3, 8, 8))
    with pytest.raises(ProgramError, match="input 'x0' is missing"):
        Program.load(package).run({})
    with pytest.raises(ProgramError, match="input 'x0' is no array of numbers"):
        _call(package, x0=[[1.0], [2.0, 3.0]])
    with pytest.raises(ProgramError, match="input 'x0' is no array of numbers"):
        _call(package, x0="an image")
    with pytest.raises(ProgramError, match="computes no value 'nowhere'"):
        Program.load(package).execute({"x0": floats(1, 3, 8, 8)}, keep=["nowhere"])


def test_an_unknown_op_is_named(package: Path, tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        next(ops(spec, "gelu")).type = "swirl"

    with pytest.raises(UnknownOpError, match=r"swirl 'middle' is of a type that the interpreter does not know: swirl"):
        Program.load(tampered(package, tmp_path / "bad.mlpackage", change))


def test_an_unknown_parameter_is_named(package: Path, tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        op = next(ops(spec, "gelu"))
        op.inputs["swirl"].CopyFrom(op.inputs["mode"])

    with pytest.raises(
        UnknownOpError, match=r"gelu 'middle' has a parameter that the interpreter does not know: swirl"
    ):
        Program.load(tampered(package, tmp_path / "bad.mlpackage", change))


def test_a_missing_parameter_is_named(package: Path, tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        del next(ops(spec, "conv")).inputs["weight"]

    with pytest.raises(PackageError, match=r"conv 'first' lacks weight"):
        Program.load(tampered(package, tmp_path / "bad.mlpackage", change))


def test_every_declared_shape_and_type_is_checked(package: Path, tmp_path: Path) -> None:
    def shape(spec: Any) -> None:
        next(ops(spec, "gelu")).outputs[0].type.tensorType.dimensions[1].constant.size = 5

    with pytest.raises(
        ProgramError, match=r"gelu 'middle' gave shape \(1, 4, 8, 8\), the program declares fp32\[1, 5, 8, 8\]"
    ):
        _call(tampered(package, tmp_path / "shape.mlpackage", shape))

    def kind(spec: Any) -> None:
        next(ops(spec, "gelu")).outputs[0].type.tensorType.dataType = 23

    with pytest.raises(ProgramError, match=r"gelu 'middle' gave torch.float32, the program declares int32"):
        _call(tampered(package, tmp_path / "kind.mlpackage", kind))

    def count(spec: Any) -> None:
        extra = next(ops(spec, "gelu")).outputs.add()
        extra.CopyFrom(next(ops(spec, "gelu")).outputs[0])
        extra.name = "extra"

    with pytest.raises(ProgramError, match=r"gelu 'middle' gave 1 results, the program declares 2"):
        _call(tampered(package, tmp_path / "count.mlpackage", count))


def test_arguments_that_do_not_fit_are_one_clear_line(package: Path, tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        block(spec).operations[-1].inputs["x"].arguments[0].name = "x0"

    with pytest.raises(ProgramError, match=r"conv 'last' cannot be executed: .*16.*4") as caught:
        _call(tampered(package, tmp_path / "bad.mlpackage", change))
    assert "\n" not in str(caught.value)


def test_intermediates_go_at_their_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty results of 4 MB one after the other: no more than three are ever alive together."""

    def build(mb, x):
        for i in range(20):
            x = mb.add(x=x, y=np.float32(i))
        return x

    program = Program.load(save_program(build, (floats(1, 1, 1024, 1024),), tmp_path / "long.mlpackage"))
    alive: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def add(x: Tensor, y: Tensor) -> Tensor:
        result = torch.add(x, y)
        alive.append(weakref.ref(result))
        gc.collect(0)
        counts.append(sum(ref() is not None for ref in alive))
        return result

    for step in program._code.steps:
        step.function = add
    program.run({"x0": floats(1, 1, 1024, 1024)})
    assert len(counts) == 20
    assert max(counts) <= 3


def test_kept_values_are_as_computed(package: Path) -> None:
    x = floats(1, 3, 8, 8)
    kept = Program.load(package).execute({"x0": x}, keep=["x0", "middle", "last"]).kept
    assert set(kept) == {"x0", "middle", "last"}
    want = F.gelu(F.conv2d(torch.from_numpy(x), torch.from_numpy(floats(4, 3, 3, 3)), padding=1))
    np.testing.assert_allclose(kept["middle"].numpy(), want.numpy(), atol=1e-5)


# Float16.


def _half(build: Any, tmp_path: Path, *, target: str = "iOS16") -> Program:
    """A program whose arithmetic is float16 throughout, its input and output too."""
    ct = coremltools()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    @Builder.program(
        input_specs=[Builder.TensorSpec(shape=(2, 3), dtype=types.fp16)], opset_version=getattr(ct.target, target)
    )
    def program(x):
        return build(Builder, x)

    with muffled():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            pass_pipeline=ct.PassPipeline.EMPTY,
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
        )
        model.save(str(tmp_path / "half.mlpackage"))
    return Program.load(tmp_path / "half.mlpackage")


X = np.array([[0.1, 0.2, 0.3], [1.1, -2.3, 60.7]], np.float16)


def test_rounding_each_intermediate_is_numpy_in_float16(tmp_path: Path) -> None:
    program = _half(lambda mb, x: mb.mul(x=mb.add(x=x, y=np.float16(0.37), name="sum"), y=np.float16(3.3)), tmp_path)
    (output,) = program.run({"x": X}, round_float16=True).values()
    assert output.dtype == np.float16
    np.testing.assert_array_equal(output, (X + np.float16(0.37)) * np.float16(3.3))
    exact = (X.astype(np.float32) + np.float32(np.float16(0.37))) * np.float32(np.float16(3.3))
    name = program.function.block.outputs[0]
    np.testing.assert_allclose(program.execute({"x": X}, keep=[name]).kept[name], exact, rtol=1e-6)
    assert not np.array_equal(program.execute({"x": X}, round_float16=True, keep=[name]).kept[name], exact)


def test_the_first_overflow_is_where_it_happens(tmp_path: Path) -> None:
    def build(mb, x):
        x = mb.mul(x=x, y=np.float16(1000), name="large")
        x = mb.mul(x=x, y=np.float16(2), name="larger")
        return mb.add(x=x, y=np.float16(1), name="after")

    program = _half(build, tmp_path)
    run = program.execute({"x": X}, round_float16=True)
    assert run.overflows == (Overflow(op="larger", type="mul", largest=pytest.approx(121375, rel=1e-3), elements=1),)
    assert np.isinf(run.outputs["after"][1, 2])
    assert str(run.overflows[0]) == "mul 'larger' (1 elements, up to 1.21e+05)"
    assert program.execute({"x": X}).overflows == ()


def test_an_infinity_that_is_meant_is_no_overflow(tmp_path: Path) -> None:
    mask = np.array([0, -np.inf, 0], np.float16)
    program = _half(lambda mb, x: mb.softmax(x=mb.add(x=x, y=mask)), tmp_path)
    run = program.execute({"x": X}, round_float16=True)
    assert run.overflows == ()
    np.testing.assert_array_equal(next(iter(run.outputs.values()))[:, 1], 0)


def test_rounding_leaves_a_float32_program_alone(package: Path) -> None:
    x = floats(1, 3, 8, 8)
    program = Program.load(package)
    np.testing.assert_array_equal(program.run({"x0": x})["last"], program.run({"x0": x}, round_float16=True)["last"])


# Images, classifiers, other shapes.


class _Channels(nn.Module):
    """The mean of each channel: what an image input means can be read from it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class _Patch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


def _picture(width: int = 16, height: int = 8) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")


@pytest.fixture(scope="module")
def image_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(
        _Channels(),
        tmp_path_factory.mktemp("image") / "image.mlpackage",
        input_size=(3, 8, 16),
        precision="float32",
        input_kind="image",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )


def test_an_image_in_every_shape_it_may_come(image_package: Path) -> None:
    program = Program.load(image_package)
    assert (program.inputs[0].kind, program.inputs[0].colour, program.inputs[0].shape) == ("image", "rgb", (8, 16))
    picture = _picture()
    pixels = np.asarray(picture)
    want = ((pixels / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.4)).mean((0, 1))[None]
    planes = pixels.transpose(2, 0, 1)
    for given in (picture, pixels, planes, planes[None], planes.astype(np.float32), picture.convert("RGBA")):
        np.testing.assert_allclose(program.run({"image": given})["logits"], want, atol=1e-4)


def test_an_image_that_does_not_fit_is_one_clear_line(image_package: Path) -> None:
    program = Program.load(image_package)
    message = r"input 'image' takes an image of 8 x 16 pixels and 3 channels, not an array of shape \(16, 16, 3\)"
    with pytest.raises(ProgramError, match=message):
        program.run({"image": _picture(16, 16)})
    with pytest.raises(ProgramError, match=r"not an array of shape \(8, 16\)"):
        program.run({"image": np.zeros((8, 16), np.uint8)})
    with pytest.raises(ProgramError, match="takes an image of numbers, not of <U1"):
        program.run({"image": np.full((1, 3, 8, 16), "x")})


@pytest.mark.parametrize("layout", ["BGR", "GRAYSCALE"])
def test_other_colours(tmp_path: Path, layout: str) -> None:
    ct = coremltools()
    channels = 1 if layout == "GRAYSCALE" else 3
    with muffled(), torch.no_grad():
        example = torch.rand(1, channels, 8, 16)
        model = ct.convert(
            torch.jit.trace(_Channels(), example),
            convert_to="mlprogram",
            inputs=[
                ct.ImageType(
                    name="image", shape=(1, channels, 8, 16), color_layout=getattr(ct.colorlayout, layout), scale=2
                )
            ],
            outputs=[ct.TensorType(name="means")],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS15,
            skip_model_load=True,
        )
        model.save(str(tmp_path / "image.mlpackage"))
    program = Program.load(tmp_path / "image.mlpackage")
    picture = _picture()
    gray = np.asarray(picture.convert("L"))[..., None]
    pixels = gray if layout == "GRAYSCALE" else np.asarray(picture)[..., ::-1]
    want = 2 * pixels.mean((0, 1), dtype=np.float64)[None]
    np.testing.assert_allclose(program.run({"image": picture})["means"], want, rtol=1e-5)
    np.testing.assert_allclose(
        program.run({"image": np.asarray(picture) if channels == 3 else gray})["means"], want, rtol=1e-5
    )


def test_fitting_an_image_keeps_its_aspect_and_its_centre() -> None:
    wide = Image.fromarray(np.repeat(np.linspace(0, 255, 300, dtype=np.uint8)[None], 100, 0)).convert("RGB")
    fitted = images.fit(wide, height=50, width=50)
    assert fitted.size == (50, 50)
    columns = np.asarray(fitted)[25, :, 0]
    assert abs(int(columns[0]) - 85) < 4
    assert abs(int(columns[-1]) - 170) < 4
    closer = np.asarray(images.fit(wide, height=50, width=50, crop=0.5))[25, :, 0]
    assert int(closer[-1]) - int(closer[0]) == pytest.approx(85 / 2, abs=4)


def test_loading_an_image(tmp_path: Path) -> None:
    _picture().save(tmp_path / "a.png")
    assert images.load(tmp_path / "a.png").size == (16, 8)
    (tmp_path / "b.png").write_text("no image")
    for name in ("b.png", "c.png"):
        with pytest.raises(ProgramError, match=f"{name}: cannot be read as an image"):
            images.load(tmp_path / name)


LABELS = ["tench", "goldfish", "great white shark", "tiger shark"]


@pytest.fixture(scope="module", params=["float32", "float16"])
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    module = _Patch().eval()
    path = tmp_path_factory.mktemp("classifier") / "labels.mlpackage"
    return module, convert(module, path, input_size=8, precision=request.param, class_labels=LABELS)


def test_a_classifier(classifier: tuple[nn.Module, Path]) -> None:
    module, path = classifier
    program = Program.load(path)
    assert program.class_labels == LABELS
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = module(x).softmax(-1)[0]
    outputs = program.run({"image": x})
    assert str(outputs["classLabel"]) == LABELS[int(want.argmax())]
    np.testing.assert_allclose(outputs["classLabel_probs"].ravel(), want.numpy(), atol=2e-3)
    top = program.top(outputs, k=2)
    assert [label for label, _ in top] == [LABELS[i] for i in want.argsort(descending=True)[:2]]
    assert top[0][1] == pytest.approx(float(want.max()), abs=2e-3)


def test_the_best_classes_of_plain_logits(package: Path, tmp_path: Path) -> None:
    module = _Patch().eval()
    program = Program.load(convert(module, tmp_path / "plain.mlpackage", input_size=8, precision="float32"))
    x = torch.randn(1, 3, 8, 8)
    outputs = program.run({"image": x})
    with torch.no_grad():
        want = module(x).softmax(-1)[0]
    assert program.class_labels is None
    assert [index for index, _ in program.top(outputs, 4)] == want.argsort(descending=True).tolist()
    assert sum(share for _, share in program.top(outputs, 4)) == pytest.approx(1)
    maps = _call(package)
    with pytest.raises(ProgramError, match="gives no single row of class scores"):
        Program.load(package).top(maps)


def test_a_program_of_flexible_shapes(tmp_path: Path) -> None:
    ct = coremltools()
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), _Channels()).eval()
    with muffled(), torch.no_grad():
        side = ct.RangeDim(lower_bound=8, upper_bound=32, default=8)
        ct.convert(
            torch.jit.trace(module, torch.rand(1, 3, 8, 8)),
            convert_to="mlprogram",
            inputs=[ct.TensorType(name="image", shape=(1, 3, side, side))],
            outputs=[ct.TensorType(name="means")],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS15,
            skip_model_load=True,
        ).save(str(tmp_path / "flexible.mlpackage"))
    program = Program.load(tmp_path / "flexible.mlpackage")
    assert program.inputs[0].flexible
    for size in (8, 13):
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            np.testing.assert_allclose(program.run({"image": x})["means"], module(x).numpy(), atol=1e-5)


def test_one_function_of_several(tmp_path: Path) -> None:
    coremltools()
    from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

    nets, paths = [_Patch().eval(), _Channels().eval()], []
    for i, net in enumerate(nets):
        paths.append(convert(net, tmp_path / f"{i}.mlpackage", input_size=8, precision="float32", target="iOS18"))
    descriptor = MultiFunctionDescriptor()
    for path, name in zip(paths, ("patch", "channels"), strict=True):
        descriptor.add_function(str(path), "main", name)
    descriptor.default_function_name = "channels"
    with muffled():
        save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    x = torch.randn(1, 3, 8, 8)
    for name, net in ((None, nets[1]), ("channels", nets[1]), ("patch", nets[0])):
        program = Program.load(tmp_path / "both.mlpackage", name)
        with torch.no_grad():
            np.testing.assert_allclose(program.run({"image": x})["logits"], net(x).numpy(), atol=1e-5)
    with pytest.raises(PackageError, match="has no function 'third', only channels, patch"):
        Program.load(tmp_path / "both.mlpackage", "third")


def test_two_operators_for_one_type_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two operators are registered for conv"):
        registry.op("conv")(lambda x: x)
