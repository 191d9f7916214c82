"""COCO's and ADE20K's validation images with their annotations, as their publishers lay them out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.accuracy.errors import DatasetError
from repro.spec.manifest import DETECTION, SEGMENTATION

COCO_IMAGES, ADE20K_IMAGES = 5000, 2000
ADE20K_CLASSES = 150
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True)
class DenseImage:
    """One image: its name for messages and results, its file, and what it is compared with.

    Attributes
    ----------
    key
        COCO's image id, or ADE20K's file stem.
    labels
        ADE20K's file of classes.
    size
        Height and width that COCO's annotations state.
    """

    key: int | str
    path: Path
    labels: Path | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class DenseDataset:
    """Images of one task.

    Attributes
    ----------
    task
        ``detection`` or ``segmentation``.
    classes
        Names in the order of a model's outputs (COCO: categories by rising id), or only how many there are.
    categories
        COCO's category id of each class.
    annotations
        COCO's annotation file.
    fingerprint
        Digest of the annotations and of every image's name and size in bytes.
    """

    task: str
    root: Path
    images: tuple[DenseImage, ...]
    classes: int
    names: tuple[str, ...] = ()
    categories: tuple[int, ...] = ()
    annotations: Path | None = None
    fingerprint: str = field(default="")

    def __len__(self) -> int:
        return len(self.images)


def open_coco(root: Path, *, split: str = "val2017") -> DenseDataset:
    """COCO in a folder with ``annotations/instances_SPLIT.json`` and the images in ``SPLIT/``.

    Raises
    ------
    DatasetError
        For a folder or file that is not there, annotations that are no instances or of other images, missing images.
    """
    file, folder = root / "annotations" / f"instances_{split}.json", root / split
    for path, kind in ((file, "file"), (folder, "folder")):
        if not (path.is_file() if kind == "file" else path.is_dir()):
            raise DatasetError(f"{root}: not COCO as its publisher lays it out: no {kind} {path.relative_to(root)}")
    content = _json(file)
    images, categories = _list(content, "images", file), _list(content, "categories", file)
    _check_annotations(content, file, {item.get("id") for item in images}, {item.get("id") for item in categories})
    found, missing = [], []
    for item in sorted(images, key=lambda item: item["id"]):
        path = folder / str(item["file_name"])
        if path.is_file():
            size = (int(item["height"]), int(item["width"]))
            found.append(DenseImage(key=int(item["id"]), path=path, size=size))
        else:
            missing.append(str(item["file_name"]))
    if missing:
        what = "none of them is" if not found else f"{len(missing):,} are not, {missing[0]} first"
        hint = ": annotations of another data set?" if not found else ""
        raise DatasetError(f"{file} names {len(images):,} images; in {folder} {what}{hint}")
    order = sorted(categories, key=lambda item: item["id"])
    return DenseDataset(
        task=DETECTION,
        root=root,
        images=tuple(found),
        classes=len(order),
        names=tuple(str(item["name"]) for item in order),
        categories=tuple(int(item["id"]) for item in order),
        annotations=file,
        fingerprint=_fingerprint(found, file.read_bytes()),
    )


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not whole JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: not COCO annotations: a JSON {type(content).__name__}")
    return content


def _list(content: Mapping[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    needed = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}[key]
    items = content.get(key)
    if not isinstance(items, list) or not items:
        raise DatasetError(f"{file}: not COCO annotations: no {key}")
    for item in items:
        if not isinstance(item, dict) or any(name not in item for name in needed):
            raise DatasetError(f"{file}: not COCO annotations: one of its {key} lacks {', '.join(needed)}")
    if len({item["id"] for item in items}) < len(items):
        raise DatasetError(f"{file}: two of its {key} have the same id")
    return items


def _check_annotations(content: Mapping[str, Any], file: Path, images: set[Any], categories: set[Any]) -> None:
    items = content.get("annotations")
    if not isinstance(items, list) or not items:
        raise DatasetError(f"{file}: no annotations to compare with (the test images' are not published)")
    for item in items:
        if not isinstance(item, dict) or not {"image_id", "category_id", "bbox", "segmentation"} <= item.keys():
            raise DatasetError(f"{file}: its annotations are no instances: they lack a box, a mask or a category")
        if item["image_id"] not in images:
            raise DatasetError(f"{file}: an annotation is of image {item['image_id']}, which is not in the file")
        if item["category_id"] not in categories:
            raise DatasetError(f"{file}: an annotation is of category {item['category_id']}, which is not in the file")


def open_ade20k(root: Path, *, split: str = "validation", classes: int = ADE20K_CLASSES) -> DenseDataset:
    """ADE20K's scene parsing benchmark: ``images/SPLIT/*.jpg`` and ``annotations/SPLIT/*.png`` with the same names.

    ``root`` is ``ADEChallengeData2016`` or the folder that holds it.

    Raises
    ------
    DatasetError
        For a folder that is not there, or an image without its classes.
    """
    inner = root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else root
    images, labels = root / "images" / split, root / "annotations" / split
    for folder in (images, labels):
        if not folder.is_dir():
            raise DatasetError(f"{root}: not ADE20K as its publisher lays it out: no folder {folder.relative_to(root)}")
    found = []
    for path in sorted(item for item in images.iterdir() if item.suffix.lower() in _SUFFIXES):
        found.append(DenseImage(key=path.stem, path=path, labels=labels / f"{path.stem}.png"))
    if not found:
        raise DatasetError(f"{images}: no images")
    missing = [item.path.name for item in found if item.labels is None or not item.labels.is_file()]
    if missing:
        raise DatasetError(
            f"{labels}: {len(missing):,} of {len(found):,} images have no .png there, {missing[0]} first"
        )
    names = b"\n".join(f"{i.labels.name} {i.labels.stat().st_size}".encode() for i in found if i.labels is not None)
    return DenseDataset(
        task=SEGMENTATION, root=root, images=tuple(found), classes=classes, fingerprint=_fingerprint(found, names)
    )


def _fingerprint(images: list[DenseImage], more: bytes) -> str:
    digest = hashlib.sha256(more)
    for image in images:
        digest.update(f"\n{image.path.name} {image.path.stat().st_size}".encode())
    return digest.hexdigest()[:32]
