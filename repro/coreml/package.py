"""Read a saved ``.mlpackage`` on any system.

A package is a folder: ``Manifest.json`` names the model specification (a protobuf message) and the weights folder;
constants of any size lie in ``weights/weight.bin``, each behind a 64-byte header. Neither macOS nor an import of
coremltools is needed, and weights are mapped, not read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import struct
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from repro.coreml import _proto
from repro.coreml.errors import PackageError
from repro.coreml.mil import Array, DType, Function, parse_function, unpack

#: The newest specification this program knows (iOS 26), and the deployment target that each one came with.
TARGETS = {6: "iOS15", 7: "iOS16", 8: "iOS17", 9: "iOS18", 10: "iOS26"}
MAX_SPECIFICATION = max(TARGETS)
#: User-defined metadata that changes from one conversion to the next without meaning anything.
VOLATILE_METADATA = frozenset({"com.github.apple.coremltools.conversion_date"})

_BLOB_MAGIC = 0xDEADBEEF
_BLOB_HEADER = struct.Struct("<IIQQ")
_COLOURS = {10: "grayscale", 20: "rgb", 30: "bgr", 40: "grayscale_float16"}
_ARRAYS = {65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8", 65552: "float16"}
_ZIP_LIMIT = 16 << 30


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input or output of the model, as the package describes it."""

    name: str
    kind: str
    """tensor, image, string, int64, dictionary or another feature type by its own name."""
    dtype: str | None = None
    """numpy's name of a tensor's element type."""
    shape: tuple[int, ...] | None = None
    """Of a tensor, its default shape; of an image, (height, width)."""
    colour: str | None = None
    """Of an image: rgb, bgr, grayscale or grayscale_float16."""
    flexible: bool = False
    """Whether other shapes than the default are allowed."""


class Package:
    """One saved ML program: description, metadata, functions and memory-mapped weights.

    Parameters
    ----------
    path
        The package's folder. Use :meth:`open` for a folder or a zip of one.
    shown
        The path to name in messages.

    Raises
    ------
    PackageError
        The package is missing, truncated, of an older kind or of a newer specification than this program knows.
    """

    def __init__(self, path: Path, *, shown: str | None = None) -> None:
        self.path = path
        self.shown = shown or str(path)
        with self._blame():
            self.specification_path = _model_in(path)
            self.spec = _parse(self.specification_path)
            _accept(self.spec)
        self._maps: dict[str, Array] = {}
        self._keep: Any = None

    @classmethod
    def open(cls, path: str | Path) -> Package:
        """Open a package folder, or a zip of one; the zip is unpacked to a folder that lives as long as the package.

        Raises
        ------
        PackageError
            As the class; also a zip that holds no package, or names a path outside itself.
        """
        path = Path(path)
        if path.is_dir():
            return cls(path)
        if not path.exists():
            raise PackageError(f"{path}: no such package")
        if zipfile.is_zipfile(path):
            folder = Path(tempfile.mkdtemp(prefix="repro-mlpackage-"))
            try:
                package = cls(_unpack(path, folder), shown=str(path))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            package._keep = weakref.finalize(package, shutil.rmtree, str(folder), ignore_errors=True)
            return package
        if path.suffix == ".zip":
            raise PackageError(f"{path}: not a zip, or a truncated one")
        try:
            _accept(_parse(path))
        except PackageError as error:
            raise PackageError(f"{path}: {error}") from None
        raise PackageError(f"{path}: an ML program comes as an .mlpackage folder, this is a file of its own")

    @property
    def specification(self) -> int:
        """Version of the specification the package needs (6 is iOS 15)."""
        return int(self.spec.specificationVersion)

    @property
    def target(self) -> str:
        """The oldest deployment target that can run it: iOS15 to iOS26."""
        return TARGETS[self.specification]

    @cached_property
    def inputs(self) -> tuple[Feature, ...]:
        """The inputs of the function that runs by default, in order."""
        return self.features(self.default_function)[0]

    @cached_property
    def outputs(self) -> tuple[Feature, ...]:
        """The outputs of the function that runs by default, in order."""
        return self.features(self.default_function)[1]

    def features(self, function: str) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
        """The inputs and the outputs of one function, as the package describes them."""
        description = self._description(function)
        inputs, outputs = description.input, description.output
        return tuple(_feature(item) for item in inputs), tuple(_feature(item) for item in outputs)

    @property
    def metadata(self) -> dict[str, str]:
        """User-defined metadata: what :func:`repro.coreml.convert.convert` wrote, and coremltools' own keys."""
        return dict(self.spec.description.metadata.userDefined)

    @property
    def probabilities_feature(self) -> str | None:
        """Name of a classifier's output that maps labels to probabilities."""
        return self._description(self.default_function).predictedProbabilitiesName or None

    @property
    def function_names(self) -> tuple[str, ...]:
        """The program's functions, sorted."""
        return tuple(sorted(self.spec.mlProgram.functions))

    @property
    def default_function(self) -> str:
        """The function that runs when none is named."""
        return self.spec.description.defaultFunctionName or "main"

    def function(self, name: str | None = None) -> Function:
        """Parse one function of the program, by default the one Core ML runs.

        Raises
        ------
        PackageError
            There is no such function, or it holds something that this program does not know.
        """
        name = name or self.default_function
        with self._blame():
            if name not in self.spec.mlProgram.functions:
                raise PackageError(f"has no function '{name}', only {', '.join(self.function_names) or 'none at all'}")
            return parse_function(name, self.spec.mlProgram.functions[name], self.read_blob)

    def read_blob(self, name: str, offset: int, dtype: DType, count: int) -> Array:
        """``count`` elements of a weight file, as a flat array; a private map of the file where they are whole bytes.

        Parameters
        ----------
        name
            The file as the program names it, beginning with ``@model_path``.
        offset
            Of the 64-byte header, in bytes.
        dtype, count
            What the program declares to lie there.

        Raises
        ------
        PackageError
            The file is missing or truncated, or its header says something else.
        """
        with self._blame():
            file = self._weights(name)
            if offset + 64 > len(file):
                raise PackageError(f"{name} is truncated: a constant's header is at {offset} of {len(file)} bytes")
            magic, kind, size, start = _BLOB_HEADER.unpack(file[offset : offset + _BLOB_HEADER.size].tobytes())
            if magic != _BLOB_MAGIC:
                raise PackageError(f"{name} holds no constant at offset {offset}")
            if dtype.blob != kind:
                raise PackageError(f"{name} holds another type than {dtype} at offset {offset} (type number {kind})")
            if start + size > len(file):
                raise PackageError(f"{name} is truncated: a constant ends at {start + size} of {len(file)} bytes")
            return unpack(file[start : start + size], dtype, count)

    def content_hash(self) -> str:
        """SHA-256 over the specification (without :data:`VOLATILE_METADATA`) and the weight files, in hex.

        Two conversions of the same weights by the same versions have the same hash: the manifest, whose identifiers
        are drawn anew each time, and the date of conversion do not count.
        """
        spec = _proto.model_message()
        spec.CopyFrom(self.spec)
        for key in VOLATILE_METADATA & set(spec.description.metadata.userDefined):
            del spec.description.metadata.userDefined[key]
        digest = hashlib.sha256(spec.SerializeToString(deterministic=True))
        for file in sorted(self.weight_files()):
            digest.update(file.relative_to(self.specification_path.parent).as_posix().encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def weight_files(self) -> list[Path]:
        """Every file beside the specification: the weights."""
        return [file for file in self.specification_path.parent.rglob("*") if file.is_file() and file.suffix == ".bin"]

    def _description(self, name: str) -> Any:
        """Of one function, in a package of several; else there is one description for all."""
        description = self.spec.description
        return next((function for function in description.functions if function.name == name), description)

    def _weights(self, name: str) -> Array:
        if name not in self._maps:
            place = PurePosixPath(name.replace("@model_path/", "", 1))
            path = self.specification_path.parent / place
            if place.is_absolute() or ".." in place.parts or not path.resolve().is_relative_to(self.path.resolve()):
                raise PackageError(f"takes its weights from outside itself: {name}")
            if not path.is_file():
                raise PackageError(f"has no weight file {name}")
            if path.stat().st_size < 64:
                raise PackageError(f"{name} is truncated: it has {path.stat().st_size} bytes")
            # Copy on write: torch takes only arrays that it may write to, and the file must stay as it is.
            self._maps[name] = np.memmap(path, dtype=np.uint8, mode="c")
        return self._maps[name]

    @contextmanager
    def _blame(self) -> Iterator[None]:
        try:
            yield
        except PackageError as error:
            message = str(error)
            raise PackageError(message if message.startswith(self.shown) else f"{self.shown}: {message}") from None


def content_hash(path: str | Path) -> str:
    """:meth:`Package.content_hash` of the package at ``path``."""
    return Package.open(path).content_hash()


def _model_in(folder: Path) -> Path:
    """The model specification that a package's manifest names."""
    manifest = folder / "Manifest.json"
    if folder.suffix == ".mlmodelc" or (folder / "coremldata.bin").exists():
        raise PackageError("is a compiled model; give the .mlpackage it was compiled from")
    if not manifest.is_file():
        raise PackageError("has no Manifest.json: not an .mlpackage, or a truncated one")
    try:
        content = json.loads(manifest.read_bytes())
        items = {key: str(item["path"]) for key, item in content["itemInfoEntries"].items()}
        place = PurePosixPath(items[content["rootModelIdentifier"]])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PackageError("Manifest.json is truncated, or is none of an .mlpackage") from None
    path = folder / "Data" / place
    if place.is_absolute() or ".." in place.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise PackageError(f"Manifest.json names a model outside the package: {place}")
    if not path.is_file():
        raise PackageError(f"the model that Manifest.json names is missing: Data/{place}")
    return path


def _parse(path: Path) -> Any:
    spec = _proto.model_message()
    try:
        spec.ParseFromString(path.read_bytes())
    except _proto.decode_error():
        raise PackageError(f"{path.name} is truncated, or is no Core ML model") from None
    return spec


def _accept(spec: Any) -> None:
    version, kind = spec.specificationVersion, spec.WhichOneof("Type")
    if version > MAX_SPECIFICATION:
        raise PackageError(
            f"specification version {version} is newer than {MAX_SPECIFICATION} ({TARGETS[MAX_SPECIFICATION]}), "
            "the newest that this program knows"
        )
    if kind is None:
        raise PackageError("the specification holds no model: it is truncated, or of a kind this program does not know")
    if kind.startswith("neuralNetwork"):
        raise PackageError(f"is a model of the old kind ({kind}), not an ML program: convert it again as an mlprogram")
    if kind != "mlProgram":
        raise PackageError(f"is a model of another kind ({kind}), not an ML program")
    if version not in TARGETS:
        raise PackageError(f"specification version {version} does not go with an ML program")


def _feature(message: Any) -> Feature:
    kind = message.type.WhichOneof("Type")
    if kind == "multiArrayType":
        array = message.type.multiArrayType
        return Feature(
            name=message.name,
            kind="tensor",
            dtype=_ARRAYS.get(array.dataType),
            shape=tuple(array.shape),
            flexible=array.WhichOneof("ShapeFlexibility") is not None,
        )
    if kind == "imageType":
        image = message.type.imageType
        return Feature(
            name=message.name,
            kind="image",
            shape=(image.height, image.width),
            colour=_COLOURS.get(image.colorSpace),
            flexible=image.WhichOneof("SizeFlexibility") is not None,
        )
    return Feature(name=message.name, kind=str(kind).removesuffix("Type"))


def _unpack(path: Path, folder: Path) -> Path:
    """Unpack a zipped package, each member checked before anything is written."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if not item.filename.startswith("__MACOSX/")]
            for item in members:
                place = PurePosixPath(item.filename.replace("\\", "/"))
                if place.is_absolute() or ".." in place.parts or ":" in place.parts[0]:
                    raise PackageError(f"{path}: the zip names a path outside itself: {item.filename}")
                if stat.S_ISLNK(item.external_attr >> 16):
                    raise PackageError(f"{path}: the zip holds a link: {item.filename}")
            if sum(item.file_size for item in members) > _ZIP_LIMIT:
                raise PackageError(f"{path}: the zip unpacks to more than {_ZIP_LIMIT >> 30} GiB")
            archive.extractall(folder, members)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:  # RuntimeError: encrypted, unknown method
        raise PackageError(f"{path}: the zip cannot be unpacked: {error}") from None
    manifests = sorted(folder.rglob("Manifest.json"), key=lambda found: len(found.parts))
    if not manifests:
        raise PackageError(f"{path}: the zip holds no .mlpackage (no Manifest.json)")
    packages = [found.parent for found in manifests if len(found.parts) == len(manifests[0].parts)]
    if len(packages) > 1:
        raise PackageError(f"{path}: the zip holds {len(packages)} packages, one is wanted")
    return packages[0]
