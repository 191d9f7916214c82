"""What runs on each processor: one model, and one image's result after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.accuracy.dense.datasets import DenseDataset, DenseImage
from repro.accuracy.dense.metrics import areas
from repro.accuracy.errors import DatasetError
from repro.spec.manifest import DETECTION
from repro.spec.tables import Variant

_FAULTS = 4  # of weights that do not fit: how many are told
_OF_PYRAMID = "neck.lateral_convs.0.conv.weight"


@dataclass(frozen=True, kw_only=True)
class DenseEntry:
    """One detector or segmenter to evaluate.

    Attributes
    ----------
    name
        What the results are called by.
    backbone
        A name of ``repro.models.dense.backbones``; or ``MODULE:FUNCTION``, which is given the number of classes and
        returns a whole ``MaskRCNN`` or ``SemanticFPN`` of its own.
    pipeline
        Name of its test pipeline: ``coco``, ``ade20k``, ``ade20k_padded`` or ``ade20k_aligned``.
    sha256
        Of the weight file.
    """

    name: str
    task: str
    backbone: str
    path: Path
    pipeline: str
    sha256: str
    wrapper: str | None = None


def build(entry: DenseEntry, classes: int) -> Any:
    """The model with its weights, in eval mode.

    Raises
    ------
    ModelError
        For a backbone that does not exist, or weights that do not fit in every key and shape.
    """
    from repro.models.catalogue import build as build_variant
    from repro.models.dense.backbones import backbone
    from repro.models.dense.mask_rcnn import MaskRCNN
    from repro.models.dense.semantic_fpn import SemanticFPN

    if ":" in entry.backbone:
        variant = Variant(id=entry.name, builder="python", model=entry.backbone, arguments={"classes": classes})
        return _loaded(build_variant(variant), entry)
    head = MaskRCNN if entry.task == DETECTION else SemanticFPN
    return _loaded(head(backbone(entry.backbone, entry.task), classes=classes), entry)


def _loaded(model: Any, entry: DenseEntry) -> Any:
    from repro.models.loading import CheckpointError, load_weights

    try:
        return load_weights(model, entry.path, entry.wrapper)
    except CheckpointError as error:
        # a detector has hundreds of keys: all of them, where another model's file was given, are no message
        faults = str(error).split("; ")
        more = [f"{len(faults) - _FAULTS:,} more"] if len(faults) > _FAULTS else []
        if f"missing key {_OF_PYRAMID}" in str(error):
            more.append("it has no feature pyramid: a classifier's checkpoint?")
        raise CheckpointError("; ".join(faults[:_FAULTS] + more)) from error


class Worker:
    """A model that is loaded once and run on shards of images."""

    def __init__(self, entry: DenseEntry, dataset: DenseDataset, device: str = "cpu") -> None:
        import torch

        from repro.models.dense.images import PIPELINES

        torch.set_num_threads(1)
        self.entry, self.dataset, self.device = entry, dataset, device
        self.pipeline = PIPELINES[entry.pipeline]
        self.model = build(entry, dataset.classes).to(device)

    def run(self, places: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The results of the images at ``places``.

        Raises
        ------
        UsageError, ModelError, DatasetError
            For an image that cannot be decoded, is too small, or is not what its annotations say.
        """
        return {place: self.one(self.dataset.images[place]) for place in places}

    def one(self, image: DenseImage) -> dict[str, Any]:
        """One image's result, as JSON holds it."""
        from dataclasses import replace

        from repro.models.dense.images import read_image

        pixels = read_image(image.path)
        if image.size is not None and pixels.shape[:2] != image.size:
            stated, there = (f"{width} x {height}" for height, width in (image.size, pixels.shape[:2]))
            raise DatasetError(f"{image.path}: {there} px; its annotations are of an image of {stated} px")
        prepared = self.pipeline.prepare(pixels, name=str(image.path))
        found = self.model(replace(prepared, pixels=prepared.pixels.to(self.device)))
        if self.entry.task == DETECTION:
            return {"key": image.key, **detection_result(found)}
        return {"key": image.key, **areas(found.cpu().numpy(), read_labels(image, found.shape), self.dataset.classes)}


def detection_result(found: Any) -> dict[str, Any]:
    """Boxes as left, top, width and height; masks run-length encoded, one at a time."""
    from pycocotools import mask as coding

    boxes = found.boxes.double().cpu().clone()
    boxes[:, 2:] -= boxes[:, :2]
    counts = [coding.encode(np.asfortranarray(mask))["counts"].decode("ascii") for mask in found.pasted()]
    return {
        "size": [found.height, found.width],
        "boxes": boxes.tolist(),
        "scores": found.scores.double().tolist(),
        "labels": found.labels.tolist(),
        "masks": counts,
    }


def read_labels(image: DenseImage, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """ADE20K's values of an image, uint8 (height, width).

    Raises
    ------
    DatasetError
        For a file that is no map of classes of this image.
    """
    from PIL import Image

    assert image.labels is not None
    try:
        with Image.open(image.labels) as opened:
            labels = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{image.labels}: cannot be decoded: {' '.join(str(error).split())}") from error
    if labels.dtype != np.uint8 or labels.shape != tuple(shape):
        raise DatasetError(
            f"{image.labels}: not the classes of {image.path.name}: {labels.dtype}, shape {labels.shape}"
        )
    return labels
