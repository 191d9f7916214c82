"""Reading packages: what is in them, and one clear line for each that is broken."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.coreml import _proto
from repro.coreml.errors import PackageError
from repro.coreml.interpreter import Program
from repro.coreml.mil import DTYPES, unpack
from repro.coreml.package import Package, content_hash
from repro.errors import ReproError
from tests.coreml.programs import coremltools
from tests.coreml.tamper import MODEL, WEIGHTS, block, ops, rewrite_manifest, tampered


def test_what_a_package_says(package: Path) -> None:
    opened = Package.open(package)
    assert (opened.specification, opened.target) == (6, "iOS15")
    assert [(item.name, item.kind, item.dtype, item.shape) for item in opened.inputs] == [
        ("x0", "tensor", "float32", (1, 3, 8, 8))
    ]
    assert opened.function_names == ("main",)
    assert opened.metadata["com.github.apple.coremltools.version"] == coremltools().__version__
    kinds = [op.type for op in opened.function().block.operations if op.type != "const"]
    assert kinds == ["conv", "gelu", "conv"]


def test_weights_are_mapped_and_the_file_is_never_written(package: Path) -> None:
    before = (package / WEIGHTS).read_bytes()
    consts = [op.value for op in Package.open(package).function().block.operations if op.value is not None]
    arrays = [const.numpy() for const in consts if const.blob is not None]
    assert [array.shape for array in arrays] == [(4, 3, 3, 3), (16, 4, 1, 1)]
    assert all(isinstance(array.base, np.memmap) or isinstance(array, np.memmap) for array in arrays)
    arrays[0][:] = 0
    assert (package / WEIGHTS).read_bytes() == before


def test_reading_needs_neither_torch_nor_coremltools(package: Path) -> None:
    code = (
        "import sys; from repro.coreml.package import Package;"
        f"p = Package.open({str(package)!r}); p.function(); p.content_hash();"
        "sys.exit(bool({'torch', 'coremltools'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_message_classes_are_those_of_coremltools(package: Path) -> None:
    coremltools()
    from coremltools.proto import Model_pb2

    assert isinstance(Package.open(package).spec, Model_pb2.Model)


def _zip(package: Path, path: Path, inside: str = "small.mlpackage/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(package.rglob("*")):
            if file.is_file():
                archive.write(file, inside + file.relative_to(package).as_posix())
    return path


@pytest.mark.parametrize("inside", ["small.mlpackage/", "", "deep/in/small.mlpackage/"])
def test_a_zip_of_a_package_is_a_package(package: Path, tmp_path: Path, inside: str) -> None:
    path = _zip(package, tmp_path / "small.zip", inside)
    opened = Package.open(path)
    unpacked = opened.path
    assert opened.content_hash() == content_hash(package)
    x = np.ones((1, 3, 8, 8), np.float32)
    want, got = (Program.load(place).run({"x0": x}) for place in (package, path))
    assert {name: array.tolist() for name, array in got.items()} == {
        name: array.tolist() for name, array in want.items()
    }
    del opened
    assert not unpacked.exists()


def test_the_hash_is_of_the_content(package: Path, tmp_path: Path) -> None:
    def other_day(spec: Any) -> None:
        spec.description.metadata.userDefined["com.github.apple.coremltools.conversion_date"] = "1999-12-31"

    redated = tampered(package, tmp_path / "redated.mlpackage", other_day)
    old = next(iter(item for item in (redated / "Manifest.json").read_text().split('"') if item.count("-") == 4))
    text = (redated / "Manifest.json").read_text()
    (redated / "Manifest.json").write_text(text.replace(old, "00000000-0000-0000-0000-000000000000"))
    assert content_hash(redated) == content_hash(package)

    def other_variant(spec: Any) -> None:
        spec.description.metadata.userDefined["variant"] = "another"

    assert content_hash(tampered(package, tmp_path / "b.mlpackage", other_variant)) != content_hash(package)
    other_weight = shutil.copytree(package, tmp_path / "c.mlpackage")
    content = bytearray((other_weight / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (other_weight / WEIGHTS).write_bytes(content)
    assert content_hash(other_weight) != content_hash(package)


def _copy(package: Path, tmp_path: Path) -> Path:
    return shutil.copytree(package, tmp_path / "bad.mlpackage")


def _no_manifest(package: Path) -> None:
    (package / "Manifest.json").unlink()


def _cut_manifest(package: Path) -> None:
    (package / "Manifest.json").write_text((package / "Manifest.json").read_text()[:80])


def _list_manifest(package: Path) -> None:
    (package / "Manifest.json").write_text("[1, 2]")


def _manifest_outside(package: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../elsewhere.mlmodel"

    rewrite_manifest(package, change)


def _model_linked_outside(package: Path) -> None:
    place = package / MODEL
    outside = package.parent / "outside.mlmodel"
    place.rename(outside)
    place.symlink_to(outside)


def _no_model(package: Path) -> None:
    (package / MODEL).unlink()


def _cut_model(package: Path) -> None:
    content = (package / MODEL).read_bytes()
    (package / MODEL).write_bytes(content[: len(content) // 2])


def _empty_model(package: Path) -> None:
    (package / MODEL).write_bytes(b"")


def _spec(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        spec = _proto.model_message()
        spec.ParseFromString((package / MODEL).read_bytes())
        change(spec)
        (package / MODEL).write_bytes(spec.SerializeToString())

    return damage


def _newer(spec: Any) -> None:
    spec.specificationVersion = 99


def _older(spec: Any) -> None:
    spec.specificationVersion = 4


def _neural_network(spec: Any) -> None:
    spec.neuralNetwork.SetInParent()


def _other_function(spec: Any) -> None:
    spec.mlProgram.functions["other"].CopyFrom(spec.mlProgram.functions["main"])
    del spec.mlProgram.functions["main"]


def _no_body(spec: Any) -> None:
    spec.mlProgram.functions["main"].opset = "CoreML3"


def _ops_cut(spec: Any) -> None:
    del block(spec).operations[-2:]


def _middle_cut(spec: Any) -> None:
    operations = block(spec).operations
    del operations[next(i for i, op in enumerate(operations) if op.type == "gelu")]


def _weights_elsewhere(spec: Any) -> None:
    for op in ops(spec, "const"):
        if op.attributes["val"].HasField("blobFileValue"):
            op.attributes["val"].blobFileValue.fileName = "@model_path/../../../../etc/passwd"


def _other_file(spec: Any) -> None:
    for op in ops(spec, "const"):
        if op.attributes["val"].HasField("blobFileValue"):
            op.attributes["val"].blobFileValue.fileName = "@model_path/weights/lost.bin"


def _other_place(spec: Any) -> None:
    for op in ops(spec, "const"):
        if op.attributes["val"].HasField("blobFileValue"):
            op.attributes["val"].blobFileValue.offset += 8


def _other_type(spec: Any) -> None:
    for op in ops(spec, "const"):
        if op.attributes["val"].HasField("blobFileValue"):
            op.attributes["val"].type.tensorType.dataType = 10


def _future_type(spec: Any) -> None:
    next(ops(spec, "gelu")).outputs[0].type.tensorType.dataType = 40


def _short_immediate(spec: Any) -> None:
    for op in ops(spec, "const"):
        held = op.attributes["val"].immediateValue.tensor
        if held.HasField("ints") and len(held.ints.values) > 1:
            del held.ints.values[-1]


def _no_weights(package: Path) -> None:
    (package / WEIGHTS).unlink()


def _cut_weights(package: Path) -> None:
    content = (package / WEIGHTS).read_bytes()
    (package / WEIGHTS).write_bytes(content[:-100])


def _cut_weights_early(package: Path) -> None:
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:100])


def _cut_weights_to_nothing(package: Path) -> None:
    (package / WEIGHTS).write_bytes(b"")


def _small_blob(package: Path) -> None:
    content = bytearray((package / WEIGHTS).read_bytes())
    struct.pack_into("<Q", content, 64 + 8, 12)
    (package / WEIGHTS).write_bytes(content)


DAMAGE = {
    "has no Manifest.json": _no_manifest,
    "Manifest.json is truncated": _cut_manifest,
    "Manifest.json is truncated, or is none": _list_manifest,
    "names a model outside the package: ../../elsewhere.mlmodel": _manifest_outside,
    "names a model outside the package: com.apple.CoreML/model.mlmodel": _model_linked_outside,
    "the model that Manifest.json names is missing": _no_model,
    "model.mlmodel is truncated": _cut_model,
    "the specification holds no model": _empty_model,
    "specification version 99 is newer than 10": _spec(_newer),
    "specification version 4 does not go with an ML program": _spec(_older),
    r"model of the old kind \(neuralNetwork\)": _spec(_neural_network),
    "has no function 'main', only other": _spec(_other_function),
    "has no body for its operator set 'CoreML3'": _spec(_no_body),
    "is never computed: the program is truncated": _spec(_ops_cut),
    "takes 'middle', which is never computed": _spec(_middle_cut),
    "takes its weights from outside itself": _spec(_weights_elsewhere),
    "has no weight file @model_path/weights/lost.bin": _spec(_other_file),
    "holds no constant at offset 72": _spec(_other_place),
    "holds another type than fp16": _spec(_other_type),
    "element type number 40": _spec(_future_type),
    "elements where its shape says": _spec(_short_immediate),
    "has no weight file @model_path/weights/weight.bin": _no_weights,
    "weight.bin is truncated: a constant ends": _cut_weights,
    "weight.bin is truncated: a constant": _cut_weights_early,
    "weight.bin is truncated: it has 0 bytes": _cut_weights_to_nothing,
    "elements of type fp32 take": _small_blob,
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_broken_package_is_one_clear_line(package: Path, tmp_path: Path, message: str) -> None:
    broken = _copy(package, tmp_path)
    DAMAGE[message](broken)
    with pytest.raises(PackageError, match=message) as caught:
        Program.load(broken)
    assert isinstance(caught.value, ReproError)
    assert caught.value.lines == [str(caught.value)]
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{broken}: ")


def _evil(name: str) -> Callable[[Path, Path], Path]:
    def make(package: Path, folder: Path) -> Path:
        path = _zip(package, folder / "bad.zip")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"evil")
        return path

    return make


def _link(package: Path, folder: Path) -> Path:
    path = _zip(package, folder / "bad.zip")
    with zipfile.ZipFile(path, "a") as archive:
        item = zipfile.ZipInfo("small.mlpackage/Data/link")
        item.external_attr = 0o120777 << 16
        archive.writestr(item, "/etc/passwd")
    return path


def _cut_zip(package: Path, folder: Path) -> Path:
    path = _zip(package, folder / "bad.zip")
    path.write_bytes(path.read_bytes()[:-40])
    return path


def _rotten_zip(package: Path, folder: Path) -> Path:
    path = _zip(package, folder / "bad.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    return path


def _hollow_zip(package: Path, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.zip", "w") as archive:
        archive.writestr("readme.txt", "no package here")
    return folder / "bad.zip"


def _double_zip(package: Path, folder: Path) -> Path:
    path = _zip(package, folder / "bad.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("another.mlpackage/Manifest.json", "{}")
    return path


ZIPS = {
    r"names a path outside itself: \.\./evil": _evil("../evil"),
    r"names a path outside itself: small.mlpackage/\.\./\.\./evil": _evil("small.mlpackage/../../evil"),
    "names a path outside itself: /tmp/evil": _evil("/tmp/evil"),
    r"names a path outside itself: C:": _evil("C:/evil"),
    "holds a link": _link,
    "not a zip, or a truncated one": _cut_zip,
    "the zip cannot be unpacked": _rotten_zip,
    "holds no .mlpackage": _hollow_zip,
    "holds 2 packages": _double_zip,
}


@pytest.mark.parametrize("message", ZIPS)
def test_a_bad_zip_is_one_clear_line_and_leaves_nothing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    path = ZIPS[message](package, tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(PackageError, match=message) as caught:
        Program.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_models_that_are_no_packages(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no such package"):
        Package.open(tmp_path / "nowhere.mlpackage")
    spec = _proto.model_message()
    spec.specificationVersion = 4
    spec.neuralNetworkClassifier.SetInParent()
    (tmp_path / "old.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match=r"old.mlmodel: is a model of the old kind \(neuralNetworkClassifier\)"):
        Package.open(tmp_path / "old.mlmodel")
    spec.pipeline.SetInParent()
    (tmp_path / "chain.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match=r"is a model of another kind \(pipeline\), not an ML program"):
        Package.open(tmp_path / "chain.mlmodel")
    spec.specificationVersion = 6
    spec.mlProgram.SetInParent()
    (tmp_path / "alone.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match=r"an ML program comes as an \.mlpackage folder"):
        Package.open(tmp_path / "alone.mlmodel")
    (tmp_path / "noise.mlmodel").write_bytes(b"\xff\xff\xff not a model")
    with pytest.raises(PackageError, match=r"noise\.mlmodel is truncated, or is no Core ML model"):
        Package.open(tmp_path / "noise.mlmodel")
    (tmp_path / "compiled.mlmodelc").mkdir()
    with pytest.raises(PackageError, match="is a compiled model"):
        Package.open(tmp_path / "compiled.mlmodelc")


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.blob is not None])
def test_every_type_of_a_weight_file_as_coremltools_writes_it(package: Path, tmp_path: Path, name: str) -> None:
    coremltools()
    from coremltools.libmilstoragepython import _BlobStorageWriter

    copy = _copy(package, tmp_path)
    dtype = DTYPES[name]
    assert dtype.numpy is not None
    values = np.random.default_rng(0).integers(-8 if name.startswith("int") else 0, 1 << min(dtype.bits - 1, 3), 13)
    values = (values * 0.37 if dtype.is_float else values).astype(dtype.numpy)
    writer = _BlobStorageWriter(str(copy / WEIGHTS))
    method = {"fp32": "write_float_data"}.get(name, f"write_{name}_data")
    offset = getattr(writer, method)(values.view(np.uint16) if name == "fp16" else values)
    del writer
    found = Package.open(copy).read_blob("@model_path/weights/weight.bin", offset, dtype, values.size)
    assert found.dtype == dtype.numpy
    np.testing.assert_array_equal(found, values)


def test_packed_elements_end_within_a_byte() -> None:
    stored = np.array([0b11100100, 0b00000011], np.uint8)
    np.testing.assert_array_equal(unpack(stored, DTYPES["uint2"], 5), [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(unpack(stored, DTYPES["int4"], 3), [4, -2, 3])
    with pytest.raises(PackageError, match="9 elements of type uint2 take 3 bytes, 2 are there"):
        unpack(stored, DTYPES["uint2"], 9)
