"""The toolkits' test pipelines: from an image file to what a detector or segmenter is given.

Source: MMDetection 3.3.0 configs/_base_/datasets/coco_instance.py, MMSegmentation 1.2.2
configs/_base_/datasets/ade20k.py, and mmcv 2.1.0's ``imrescale``, read for their numbers. The toolkits decode and
resize with OpenCV. Its bilinear resize of bytes works in fixed point and does not low-pass when it shrinks, so no other
library gives the same pixels; OpenCV is therefore used here as well (the extra ``dense``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.errors import ModelError, UsageError

__all__ = [
    "ADE20K",
    "ADE20K_ALIGNED",
    "ADE20K_PADDED",
    "COCO",
    "PIPELINES",
    "ImageInput",
    "Pipeline",
    "read_image",
    "rescaled_size",
]

MEAN = (123.675, 116.28, 103.53)  # of red, green and blue, in units of a byte
STD = (58.395, 57.12, 57.375)
SMALLEST = 2  # px; nothing is found in a line


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """One image as a network takes it.

    Attributes
    ----------
    pixels
        float32 (1, 3, H, W): RGB, normalised, padded with zeros at the right and bottom.
    size
        Height and width of the resized image, without padding.
    original
        Height and width of the image as it was read.
    scale
        Resized to original size, horizontally and vertically: rounding to whole pixels makes them differ.
    """

    pixels: Tensor
    size: tuple[int, int]
    original: tuple[int, int]
    scale: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How an image is resized and padded.

    Attributes
    ----------
    name
        What a record's protocol calls it.
    long, short
        The image becomes as large as it can be with its longer side at most ``long`` and its shorter at most
        ``short``, in pixels.
    divisor
        Sides become multiples of this; 1 for no change.
    align
        How: ``pad`` (zeros at the right and bottom) or ``resize`` (stretched).
    """

    name: str
    long: int
    short: int
    divisor: int = 1
    align: str = "pad"

    def prepare(self, image: np.ndarray[Any, Any], *, name: str = "the image") -> ImageInput:
        """Resize, normalise and pad one image, uint8 (height, width, 3) in OpenCV's order blue, green, red.

        Raises
        ------
        ModelError
            For an image that is less than two pixels wide or high, before or after resizing.
        """
        import cv2

        height, width = image.shape[:2]
        new_height, new_width = rescaled_size(height, width, self.long, self.short)
        if self.align == "resize":
            new_height, new_width = (-(-side // self.divisor) * self.divisor for side in (new_height, new_width))
        if min(height, width, new_height, new_width) < SMALLEST:
            raise ModelError(
                f"{name}: {width} x {height} px, {new_width} x {new_height} when resized: "
                f"at least {SMALLEST} px are needed either way"
            )
        resized = image
        if (
            self.align == "resize"
        ):  # the official code stretches in a second step, after the resize that keeps the ratio
            kept = rescaled_size(height, width, self.long, self.short)
            resized = cv2.resize(resized, kept[::-1], interpolation=cv2.INTER_LINEAR)
        resized = cv2.resize(resized, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(np.ascontiguousarray(resized[..., ::-1])).permute(2, 0, 1).float()
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        pad = [-side % self.divisor for side in (new_height, new_width)]
        pixels = torch.nn.functional.pad(pixels, (0, pad[1], 0, pad[0]))
        return ImageInput(
            pixels=pixels[None],
            size=(new_height, new_width),
            original=(height, width),
            scale=(new_width / width, new_height / height),
        )

    def to_dict(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"name": self.name, "long": self.long, "short": self.short, "divisor": self.divisor, "align": self.align}


COCO = Pipeline(name="mmdet 1333x800, pad to 32", long=1333, short=800, divisor=32)
ADE20K = Pipeline(name="mmseg 2048x512", long=2048, short=512)
ADE20K_PADDED = Pipeline(name="mmseg 2048x512, pad to 32", long=2048, short=512, divisor=32)
ADE20K_ALIGNED = Pipeline(name="mmseg 2048x512, stretch to 32", long=2048, short=512, divisor=32, align="resize")

# By the names that manifests use.
PIPELINES = {
    "coco": COCO,
    "ade20k": ADE20K,
    "ade20k_padded": ADE20K_PADDED,
    "ade20k_aligned": ADE20K_ALIGNED,
}


def rescaled_size(height: int, width: int, long: int, short: int) -> tuple[int, int]:
    """The size, height and width, of an image that keeps its ratio inside ``long`` by ``short``; halves round up."""
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def read_image(path: Path) -> np.ndarray[Any, Any]:
    """Decode an image file as the toolkits do: uint8 (height, width, 3), blue first, turned as its EXIF says.

    Raises
    ------
    UsageError
        For a file that cannot be read or decoded.
    """
    import cv2

    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise UsageError(f"{path}: not an image that can be decoded")
    return image
