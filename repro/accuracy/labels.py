"""The targets of a flat folder of ImageNet's validation images.

The images carry a number and no class. Who holds such a folder has one of these beside it:

* the development kit, unpacked or as ``ILSVRC2012_devkit_t12.tar.gz``: ``ILSVRC2012_validation_ground_truth.txt``
  gives the kit's own class number for each image and ``meta.mat`` turns it into a WordNet id;
* Kaggle's ``LOC_val_solution.csv``: image name and WordNet id;
* ``imagenet_2012_validation_synset_labels.txt``: one WordNet id a line, in the order of the images.

A class's index is its rank among the sorted WordNet ids; this is what class folders give, and what models are
trained with. The kit's numbers are *not* in that order.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from repro.accuracy.errors import DatasetError
from repro.accuracy.matlab import MatlabError, read_synset_ids

GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
ARCHIVE, KAGGLE = "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
_FOLDERS = ("", "data", "devkit", "devkit/data", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data")
_NUMBER = re.compile(r"_val_(\d{8})$")


def imagenet_synsets() -> list[str]:
    """The 1,000 WordNet ids in class order, from the list inside timm, which is found without importing it."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError("timm is not installed: its list of ImageNet's synsets is needed")
    file = Path(spec.submodule_search_locations[0]) / "data" / "_info" / "imagenet_synsets.txt"
    return file.read_text(encoding="utf-8").split()


def flat_targets(names: Sequence[str], folder: Path, labels: Path | None, classes: int) -> list[int]:
    """Find the label file for a flat folder and give the target of each image.

    Parameters
    ----------
    names
        The images' file names.
    folder
        Where to look, with the folders above it and their usual subfolders, when ``labels`` is None.
    labels
        The kit's folder or archive, or one of the label files.

    Raises
    ------
    DatasetError
        When there is no label file, or it does not fit the images.
    """
    if labels is not None and not labels.exists():
        raise DatasetError(f"{labels}: no such file or folder")
    places = [folder, *folder.parents[:3]] if labels is None else [labels if labels.is_dir() else labels.parent]
    wanted = (GROUND_TRUTH, KAGGLE, SYNSETS, ARCHIVE) if labels is None or labels.is_dir() else (labels.name,)
    for place in places:
        for below in _FOLDERS:
            for name in wanted:
                if (file := place / below / name).is_file():
                    return _read(file, names, classes)
    raise DatasetError(
        f"{labels or folder}: flat validation images, but no labels near them: looked for {', '.join(wanted)} "
        "(the development kit's data folder needs meta.mat too)"
    )


def _read(file: Path, names: Sequence[str], classes: int) -> list[int]:
    if file.name.endswith(".csv"):
        return _kaggle(file, names, classes)
    if file.name.endswith((".tar.gz", ".tgz", ".tar")):
        truth, meta = _members(file)
        return _devkit(file, truth, meta, names, classes)
    text = _text(file.read_bytes(), file)
    if re.match(r"\s*n\d{8}\b", text):
        wnids = text.split()
        return _indices(file, [wnids[i] for i in _lines(file, names, len(wnids))], classes)
    if not (meta_file := file.with_name(META)).is_file():
        raise DatasetError(f"{file}: {META} is not beside it; without it the kit's class numbers mean nothing")
    return _devkit(file, text, meta_file.read_bytes(), names, classes)


def _text(data: bytes, file: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not a text file") from error


def _members(archive: Path) -> tuple[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if (name := PurePosixPath(member.name).name) in (GROUND_TRUTH, META) and (
                    part := tar.extractfile(member)
                ):
                    found[name] = part.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{archive}: cannot be read: {error}") from error
    if len(found) != 2:
        raise DatasetError(f"{archive}: holds no {GROUND_TRUTH} with {META}")
    return _text(found[GROUND_TRUTH], archive), found[META]


def _devkit(file: Path, truth: str, meta: bytes, names: Sequence[str], classes: int) -> list[int]:
    try:
        wnid = read_synset_ids(meta)
    except MatlabError as error:
        raise DatasetError(f"{file.with_name(META)}: {error}") from error
    if len(wnid) != classes:
        raise DatasetError(f"{file.with_name(META)}: {len(wnid)} classes, expected {classes}")
    index = {number: rank for rank, number in enumerate(sorted(wnid, key=wnid.__getitem__))}
    ids = truth.split()
    try:
        return [index[int(ids[i])] for i in _lines(file, names, len(ids))]
    except (ValueError, KeyError) as error:
        raise DatasetError(f"{file}: {error.args[0]!r} is no class number of {META}") from error


def _lines(file: Path, names: Sequence[str], count: int) -> list[int]:
    """Which line of a label file is whose: by the number in the name, or by the order of the names."""
    if count != len(names):
        raise DatasetError(f"{file}: {count} labels for {len(names)} images")
    numbers = [_NUMBER.search(PurePosixPath(name).stem) for name in names]
    if not all(numbers):
        order = sorted(range(len(names)), key=names.__getitem__)
        return [line for _, line in sorted((image, line) for line, image in enumerate(order))]
    lines = [int(number[1]) - 1 for number in numbers if number]
    if sorted(lines) != list(range(count)):
        raise DatasetError(f"{file}: the images are not numbered 1 to {count}")
    return lines


def _kaggle(file: Path, names: Sequence[str], classes: int) -> list[int]:
    with file.open(newline="", encoding="utf-8") as stream:
        wnid = {row[0]: row[1].split()[0] for row in csv.reader(stream) if len(row) == 2 and row[1].strip()}
    stems = [PurePosixPath(name).stem for name in names]
    if missing := [stem for stem in stems if stem not in wnid]:
        raise DatasetError(f"{file}: no label for {missing[0]}")
    return _indices(file, [wnid[stem] for stem in stems], classes)


def _indices(file: Path, wnids: list[str], classes: int) -> list[int]:
    present = sorted(set(wnids))
    known = present if len(present) == classes else imagenet_synsets()
    index = {wnid: rank for rank, wnid in enumerate(known)}
    if len(known) != classes or not set(present) <= index.keys():
        raise DatasetError(f"{file}: {len(present)} classes, expected {classes}")
    return [index[wnid] for wnid in wnids]
