"""Made images with instances, laid out as COCO and as ADE20K, and detectors small enough to train in a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coding
from torch import nn

from repro.models.dense.backbones import Backbone
from repro.models.dense.mask_rcnn import MaskRCNN
from repro.models.dense.semantic_fpn import SemanticFPN

CATEGORIES = ((3, "box"), (7, "disc"), (90, "ring"))  # ids with holes, as COCO's


def shapes(draw: np.random.Generator, height: int, width: int, count: int) -> tuple[np.ndarray, list[dict]]:
    """An image (height, width, 3) and its instances, side by side: class, mask and box (left, top, width, height)."""
    image = draw.integers(0, 60, (height, width, 3)).astype(np.float32)
    found, slot = [], width // count
    for i in range(count):
        kind = int(draw.integers(0, len(CATEGORIES)))
        side = 20 * int(draw.integers(1, 3))
        left = i * slot + int(draw.integers(0, max(1, slot - side - 8)))
        top = int(draw.integers(0, height - side + 1))
        y, x = np.mgrid[0:height, 0:width]
        mask = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
        away = np.hypot(y + 0.5 - top - side / 2, x + 0.5 - left - side / 2)
        if kind:
            mask &= away <= side / 2
        colour = np.zeros(3)
        colour[kind] = draw.uniform(150, 255)
        image[mask] = colour
        if kind == 2:
            image[mask & (away < side / 5)] = 255
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        found.append({"kind": kind, "mask": mask.astype(np.uint8), "box": box})
    return image.clip(0, 255).astype(np.uint8), found


def encode(mask: np.ndarray) -> str:
    return coding.encode(np.asfortranarray(mask))["counts"].decode()


def coco(root: Path, images: int = 200, height: int = 64, width: int = 256, count: int = 3, seed: int = 0) -> Path:
    """A data set in COCO's layout: masks run-length encoded or as polygons, one crowd among them."""
    draw = np.random.default_rng(seed)
    folder = root / "val2017"
    folder.mkdir(parents=True)
    content: dict = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": name} for number, name in CATEGORIES]
    for i in range(images):
        pixels, instances = shapes(draw, height, width, count)
        name = f"{i:06d}.png"
        Image.fromarray(pixels).save(folder / name)
        content["images"].append({"id": 1000 + 3 * i, "file_name": name, "height": height, "width": width})
        for item in instances:
            x, y, w, h = item["box"]
            as_polygon = item["kind"] == 0
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 1000 + 3 * i,
                    "category_id": CATEGORIES[item["kind"]][0],
                    "bbox": item["box"],
                    "area": int(item["mask"].sum()),
                    "iscrowd": 0,
                    "segmentation": polygon if as_polygon
                    else {"size": [height, width], "counts": encode(item["mask"])},
                }
            )  # fmt: skip
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def ade20k(root: Path, images: int = 200, height: int = 64, width: int = 128, seed: int = 0) -> Path:
    """A data set in ADE20K's layout: 0 is "other", the kinds are 1 to 3."""
    draw = np.random.default_rng(seed)
    for folder in ("images", "annotations"):
        (root / folder / "validation").mkdir(parents=True)
    for i in range(images):
        pixels, instances = shapes(draw, height, width, 2)
        labels = np.zeros((height, width), np.uint8)
        labels[: height // 2] = 4  # a class of the ground, so that not all of it is ignored
        for item in instances:
            labels[item["mask"].astype(bool)] = item["kind"] + 1
        Image.fromarray(pixels).save(root / "images" / "validation" / f"ADE_val_{i:08d}.png")
        Image.fromarray(labels).save(root / "annotations" / "validation" / f"ADE_val_{i:08d}.png")
    return root


class Body(nn.Module):
    """Four stages of two convolutions."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        stages, before = [], 3
        for i, width in enumerate(widths):
            stages.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 4 if i == 0 else 2, stride=4 if i == 0 else 2),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
            )
            before = width
        self.stages = nn.ModuleList(stages)

    def forward_intermediates(self, x: torch.Tensor, **_: object) -> list[torch.Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def tiny_detector(classes: int) -> MaskRCNN:
    widths = (16, 32, 48, 48)
    return MaskRCNN(Backbone(Body(widths), widths), classes, channels=32, hidden=64)


def tiny_segmenter(classes: int) -> SemanticFPN:
    widths = (16, 32, 48, 48)
    return SemanticFPN(Backbone(Body(widths), widths), classes, channels=32)
