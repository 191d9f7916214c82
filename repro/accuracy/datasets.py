"""ImageNet's validation images, in the four forms in which people keep them.

===============  ====================================================================================================
``imagefolder``  a folder a class; the class's index is the folder's rank, in timm's natural order
``flat``         ``ILSVRC2012_val_00000001.JPEG`` and on in one folder, labels from the development kit (``labels``)
``tar``          tar or WebDataset shards: a ``.cls`` or ``.json`` member beside each image, or class folders inside
``parquet``      Hugging Face's form of ImageNet-1k: ``image`` (struct of bytes and path) and ``label``
===============  ====================================================================================================

All of them are read by index and hold no file open, so that any process can read any part in any order: in the order
of the index a shard or a row group is read from its start to its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np

from repro.accuracy.errors import DatasetError
from repro.accuracy.labels import flat_targets

LAYOUTS = ("imagefolder", "flat", "tar", "parquet")
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg")  # timm's (timm.data.readers.img_extensions)
_SPLITS = ("val", "validation")


class Sample(NamedTuple):
    """One image: its path relative to the data set, its class index, the bytes of its file."""

    name: str
    target: int
    data: bytes


def natural_key(text: str) -> list[str | int]:
    """Sort key in which ``class_10`` follows ``class_9``; the order in which timm numbers class folders."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text.lower())]


def _order(text: str) -> tuple[list[str | int], str]:
    return natural_key(text), text  # the text itself decides between "a1" and "A01"


class ImageDataset(ABC):
    """Images with targets, read by index.

    Attributes
    ----------
    root
        The folder or file that was opened.
    names
        Each image's path relative to ``root``.
    targets
        Each image's class index, int16.
    classes
        The number of classes.
    """

    layout: ClassVar[str]

    def __init__(self, root: Path, names: Sequence[str], targets: Iterable[int], classes: int) -> None:
        self.root, self.names, self.classes = root, list(names), classes
        self.targets = np.asarray(list(targets), dtype=np.int64)
        if not self.names:
            raise DatasetError(f"{root}: no images")
        outside = (self.targets < 0) | (self.targets >= classes)
        if outside.any():
            first = int(outside.argmax())
            raise DatasetError(
                f"{root}: {self.names[first]} has class {self.targets[first]}, expected 0 to {classes - 1}"
            )
        self.targets = self.targets.astype(np.int16)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.names[index], int(self.targets[index]), self.read(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of one image's file. Raises OSError when they cannot be read."""

    @abstractmethod
    def _stamps(self) -> Iterable[Any]:
        """What tells this copy of the images from another, beside names and targets."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, targets and sizes: the same for the same images, and cheap to compute."""
        digest = hashlib.sha256(f"{self.layout} {self.classes} {len(self)}\n".encode())
        for name, target in zip(self.names, self.targets.tolist(), strict=True):
            digest.update(f"{name}\0{target}\n".encode("utf-8", "surrogateescape"))
        for stamp in self._stamps():
            digest.update(f"{stamp}\n".encode())
        return digest.hexdigest()


class _Files(ImageDataset):
    """Images that are files of their own."""

    def read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()

    def _stamps(self) -> Iterable[Any]:
        for name in self.names:
            try:
                yield (self.root / name).stat().st_size
            except OSError as error:
                raise DatasetError(f"{self.root / name}: {error.strerror}") from error


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder without hidden ones (``.DS_Store`` and its kind), in natural order."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: _order(e.name))
    except OSError as error:
        raise DatasetError(f"{folder}: {error.strerror}") from error


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


def _check_count(root: Path, found: list[str], classes: int) -> None:
    if len(found) != classes:
        raise DatasetError(f"{root}: {len(found)} class folders, expected {classes}{_missing(found, classes)}")


def _missing(found: list[str], classes: int) -> str:
    """Name the synset that is not there, where the folders are ImageNet's."""
    from repro.accuracy.labels import imagenet_synsets

    known = imagenet_synsets() if classes == 1000 else []
    absent = sorted(set(known) - set(found))
    return f" ({absent[0]} is missing)" if absent and set(found) < set(known) else ""


class ImageFolder(_Files):
    """A folder a class."""

    layout = "imagefolder"

    @classmethod
    def open(cls, root: Path, classes: int) -> ImageFolder:
        """List the images of a folder of class folders.

        Raises
        ------
        DatasetError
            For another number of class folders than ``classes``, a class folder that is empty, or one that holds
            anything but images: each would shift classes or leave images out without a word.
        """
        folders = [entry for entry in _visible(root) if entry.is_dir()]
        _check_count(root, [entry.name for entry in folders], classes)
        names, targets = [], []
        for target, folder in enumerate(folders):
            entries = _visible(Path(folder.path))
            if not entries:
                raise DatasetError(f"{folder.path}: class folder without images")
            for entry in entries:
                if entry.is_dir() or not _is_image(entry.name):
                    raise DatasetError(f"{folder.path}: {entry.name} is no image ({', '.join(IMAGE_EXTENSIONS)})")
                names.append(f"{folder.name}/{entry.name}")
                targets.append(target)
        return cls(root, names, targets, classes)


class FlatFolder(_Files):
    """The validation images in one folder, with labels from elsewhere."""

    layout = "flat"

    @classmethod
    def open(cls, root: Path, classes: int, labels: Path | None = None) -> FlatFolder:
        """List the images of a folder and give each its label (``repro.accuracy.labels``)."""
        names = [entry.name for entry in _visible(root) if entry.is_file() and _is_image(entry.name)]
        if not names:
            raise DatasetError(f"{root}: no images")
        return cls(root, names, flat_targets(names, root, labels, classes), classes)


class TarShards(ImageDataset):
    """Images inside tar files, found once and then read at their offsets."""

    layout = "tar"

    def __init__(
        self, root: Path, names: Sequence[str], targets: Iterable[int], classes: int, where: list[tuple[str, int, int]]
    ) -> None:
        super().__init__(root, names, targets, classes)
        self.where = where

    @classmethod
    def open(cls, root: Path, classes: int, labels: Path | None = None) -> TarShards:
        """Read the headers of every shard from its start to its end.

        Raises
        ------
        DatasetError
            For a shard that is compressed or cut short, an image without a label, or too few classes.
        """
        names: list[str] = []
        keys: list[int | str] = []
        where: list[tuple[str, int, int]] = []
        for shard in _split([root] if root.is_file() else _matching(root, ".tar")):
            prefix = "" if root.is_file() else f"{shard.relative_to(root).as_posix()}/"
            for name, offset, size, label in _members(shard):
                names.append(prefix + name)
                keys.append(label)
                where.append((str(shard), offset, size))
        if not names:
            raise DatasetError(f"{root}: no images in the shards")
        folder = root.parent if root.is_file() else root
        return cls(root, names, _tar_targets(root, folder, names, keys, labels, classes), classes, where)

    def read(self, index: int) -> bytes:
        """The bytes of one member."""
        shard, offset, size = self.where[index]
        with Path(shard).open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            raise OSError(f"{shard} is cut short")
        return data

    def _stamps(self) -> Iterable[Any]:
        return (size for _, _, size in self.where)


def _matching(root: Path, suffix: str) -> list[Path]:
    return [Path(e.path) for e in _visible(root) if e.is_file() and e.name.lower().endswith(suffix)]


def _split(files: list[Path]) -> list[Path]:
    """Of the shards of several splits, those of the validation split."""
    chosen = [f for f in files if re.search(r"(^|[-_.])val(id|idation)?([-_.]|$)", f.name.lower())]
    return chosen or files


def _members(shard: Path) -> Iterator[tuple[str, int, int, int | str]]:
    """Name, offset, size and label of each image in a shard; the label is a class index or a folder's name."""
    images: dict[PurePosixPath, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}  # by WebDataset's key: the path up to the first dot of the name
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, mode="r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isreg() or path.name.startswith("."):
                    continue
                if member.offset_data + member.size > size:
                    raise DatasetError(f"{shard}: cut short inside {member.name}")
                stem, _, extension = path.name.partition(".")
                key = str(path.parent / stem)
                if extension.lower() in ("cls", "json"):
                    content = tar.extractfile(member)
                    if (label := _label(extension.lower(), content.read() if content else b"")) is not None:
                        labels[key] = label
                elif _is_image(path.name):
                    if path in images:
                        raise DatasetError(f"{shard}: two images called {path}")
                    images[path] = (key, member.offset_data, member.size)
        with shard.open("rb") as stream:  # tarfile takes a file that ends too soon for one that has ended
            stream.seek(tar.offset)
            if stream.read(512) != bytes(512):
                raise DatasetError(f"{shard}: cut short: the end of the archive is missing")
    except tarfile.ReadError as error:
        raise DatasetError(f"{shard}: not a whole, uncompressed tar file ({error})") from error
    except OSError as error:
        raise DatasetError(f"{shard}: {error.strerror or error}") from error
    except ValueError as error:
        raise DatasetError(f"{shard}: a label that cannot be read: {error}") from error
    for path, (key, offset, length) in images.items():
        yield str(path), offset, length, labels.get(key, path.parent.name)


def _label(extension: str, content: bytes) -> int | None:
    if extension == "cls":
        return int(content.decode())
    fields = json.loads(content)
    value = fields.get("label", fields.get("cls")) if isinstance(fields, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tar_targets(
    root: Path, folder: Path, names: list[str], keys: list[int | str], labels: Path | None, classes: int
) -> Iterable[int]:
    indices = [key for key in keys if isinstance(key, int)]
    if len(indices) == len(keys):
        return indices
    folders = [key for key in keys if isinstance(key, str)]
    if indices:
        unlabelled = next(name for name, key in zip(names, keys, strict=True) if isinstance(key, str))
        raise DatasetError(f"{root}: {unlabelled} has no label (.cls, .json), others have")
    if not any(folders):
        return flat_targets([PurePosixPath(name).name for name in names], folder, labels, classes)
    ranked = sorted(set(folders), key=_order)
    _check_count(root, ranked, classes)
    index = {name: rank for rank, name in enumerate(ranked)}
    return [index[name] for name in folders]


class Parquet(ImageDataset):
    """Hugging Face's parquet files: a struct of bytes and path, and a label."""

    layout = "parquet"

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        targets: Iterable[int],
        classes: int,
        groups: list[tuple[str, int, int]],
        sizes: list[int],
    ) -> None:
        super().__init__(root, names, targets, classes)
        self.groups, self.sizes = groups, sizes  # (file, row group, rows) in order; bytes of each file
        self._starts = [0, *accumulate(rows for _, _, rows in groups)]
        self._held: tuple[int, Any] | None = None

    @classmethod
    def open(cls, root: Path, classes: int) -> Parquet:
        """Read labels and names, not images.

        Raises
        ------
        DatasetError
            When pyarrow is not installed, or a file has other columns.
        """
        pq = _pyarrow(root)
        names: list[str] = []
        targets: list[int] = []
        groups: list[tuple[str, int, int]] = []
        sizes: list[int] = []
        for file in _split([root] if root.is_file() else _matching(root, ".parquet")):
            try:
                with pq.ParquetFile(file) as parquet:
                    columns = parquet.schema_arrow.names
                    if not {"image", "label"} <= set(columns):
                        raise DatasetError(f"{file}: columns {', '.join(columns)}; expected image and label")
                    table = parquet.read(columns=["image.path", "label"])
                    counts = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
            except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
                raise DatasetError(f"{file}: not a readable parquet file ({_line(error)})") from error
            paths = [image.get("path") if image else None for image in table.column("image").to_pylist()]
            if any(path is None for path in paths) or len(set(paths)) < len(paths):
                paths = [f"{row:08d}" for row in range(len(paths))]
            prefix = "" if root.is_file() else f"{file.relative_to(root).as_posix()}/"
            names += [prefix + str(path) for path in paths]
            targets += table.column("label").to_pylist()
            groups += [(str(file), group, rows) for group, rows in enumerate(counts)]
            sizes.append(file.stat().st_size)
        if not names:
            raise DatasetError(f"{root}: no images")
        return cls(root, names, targets, classes, groups, sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def read(self, index: int) -> bytes:
        """The bytes of one row; its row group stays in memory until another one is asked for."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        if self._held is None or self._held[0] != group:
            self._held = None  # let the old one go before the next one comes
            file, number, _ = self.groups[group]
            with _pyarrow(self.root).ParquetFile(file) as parquet:
                self._held = (group, parquet.read_row_group(number, columns=["image.bytes"]).column("image"))
        image = self._held[1][index - self._starts[group]].as_py()
        if not image or image.get("bytes") is None:
            raise OSError("the row holds no bytes")
        return bytes(image["bytes"])

    def _stamps(self) -> Iterable[Any]:
        return self.sizes


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _pyarrow(root: Path) -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise DatasetError(f"{root}: reading parquet needs pyarrow, which is not installed") from error
    return pyarrow.parquet


def _detect(path: Path) -> tuple[Path, str]:
    """The folder or file that holds the images, and its layout."""
    if path.is_file():
        for layout in ("tar", "parquet"):
            if path.name.lower().endswith(f".{layout}"):
                return path, layout
        raise DatasetError(f"{path}: neither a folder nor a .tar or .parquet file")
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder")
    for below in (*_SPLITS, "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val"):
        if (path / below).is_dir():
            return _detect(path / below)
    entries = _visible(path)
    files = [entry.name.lower() for entry in entries if entry.is_file()]
    for layout in ("tar", "parquet"):
        if any(name.endswith(f".{layout}") for name in files):
            return path, layout
    if any(map(_is_image, files)):
        if any(entry.is_dir() for entry in entries) and not any(re.search(r"_val_\d{8}\.", name) for name in files):
            raise DatasetError(f"{path}: images beside folders: state the layout, one of {', '.join(LAYOUTS)}")
        return path, "flat"
    if (path / "data").is_dir() and _matching(path / "data", ".parquet"):
        return path / "data", "parquet"
    if any(entry.is_dir() for entry in entries):
        return path, "imagefolder"
    if not entries:
        raise DatasetError(f"{path}: the folder is empty")
    raise DatasetError(f"{path}: no images, class folders, .tar or .parquet files")


def open_dataset(
    path: str | os.PathLike[str], *, layout: str | None = None, labels: Path | None = None, classes: int = 1000
) -> ImageDataset:
    """Open a data set for evaluation.

    Parameters
    ----------
    path
        A folder (the split itself, or one that has it as ``val`` or ``validation``), or one tar or parquet file.
    layout
        One of ``LAYOUTS``; found out when None.
    labels
        Where the labels of flat images are, when not near them.
    classes
        How many classes there must be.

    Raises
    ------
    DatasetError
        In one line, for anything that would make the accuracy wrong: another number of classes, empty or foreign
        class folders, labels that do not fit.
    """
    if layout is not None and layout not in LAYOUTS:
        raise DatasetError(f"unknown layout {layout!r}: {', '.join(LAYOUTS)}")
    if not 1 <= classes <= np.iinfo(np.int16).max:
        raise DatasetError(f"{classes} classes: expected 1 to {np.iinfo(np.int16).max}")
    root = Path(path)
    if layout is None:
        root, layout = _detect(root)
    elif not root.exists():
        raise DatasetError(f"{root}: no such file or folder")
    elif root.is_file() and layout in ("imagefolder", "flat"):
        raise DatasetError(f"{root}: a file, expected a folder")
    if layout == "imagefolder":
        return ImageFolder.open(root, classes)
    if layout == "flat":
        return FlatFolder.open(root, classes, labels)
    return TarShards.open(root, classes, labels) if layout == "tar" else Parquet.open(root, classes)
