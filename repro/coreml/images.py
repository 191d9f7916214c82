"""Images as a package's image input takes them.

Core ML hands an image to the program as numbers from 0 to 255 in planes (1, C, H, W); what scales them is part of the
program. An image must have the size that the package declares: :func:`fit` makes it so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repro.coreml.errors import ProgramError
from repro.coreml.export import MEAN, STD
from repro.coreml.package import Feature, Package

if TYPE_CHECKING:
    from PIL.Image import Image


def load(path: str | Path) -> Image:
    """Read an image file.

    Raises
    ------
    ProgramError
        There is no such file, or it is no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ProgramError(f"{path}: cannot be read as an image: {error}") from None


def fit(image: Image, *, height: int, width: int, crop: float = 1.0) -> Image:
    """Resize (bicubic, keeping the aspect) and cut out the centre.

    Parameters
    ----------
    image
        Any PIL image.
    height, width
        Of the result, in pixels.
    crop
        The part of the resized image's shorter side that is kept, as evaluation protocols state it (0.875, 0.95).
    """
    from PIL.Image import Resampling

    scale = max(height / image.height, width / image.width) / crop
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    resized = image.resize(size, Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return resized.crop((left, top, left + width, top + height))


def prepare(image: Image, package: Package, *, crop: float) -> Any:
    """Make of an image what a package's only input takes: an image of its size, or a normalised tensor.

    A tensor input has no normalisation of its own: the one that the package's metadata names counts (``repro.mean`` and
    ``repro.std``), else ImageNet's usual one.

    Raises
    ------
    ProgramError
        The package takes something else than one image, or its metadata holds no numbers.
    """
    feature, shown = package.inputs[0], package.shown
    shape = feature.shape or ()
    if len(package.inputs) != 1 or feature.kind not in ("image", "tensor"):
        raise ProgramError(f"{shown}: its input is not one image")
    if feature.kind == "image":
        return fit(image, height=shape[0], width=shape[1], crop=crop)
    if len(shape) != 4 or shape[:2] != (1, 3):
        raise ProgramError(f"{shown}: its input '{feature.name}' has shape {shape}, not that of one RGB image")
    metadata = package.metadata
    try:
        mean, std = (
            np.asarray([float(part) for part in metadata[f"repro.{name}"].split(",")]) if f"repro.{name}" in metadata
            else np.asarray(usual)
            for name, usual in (("mean", MEAN), ("std", STD))
        )  # fmt: skip
        pixels = np.asarray(fit(image, height=shape[2], width=shape[3], crop=crop).convert("RGB"), dtype=np.float64)
        return ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    except ValueError:
        raise ProgramError(f"{shown}: the normalisation in its metadata is not three numbers") from None


def planes(image: Any, feature: Feature) -> np.ndarray[Any, np.dtype[np.float32]]:
    """An image as the program sees it: float32 (1, C, H, W) from 0 to 255, in the colour order of the input.

    Parameters
    ----------
    image
        A PIL image; an array of uint8 (H, W, 3), (H, W, 1) or (H, W); or planes of any number type,
        (1, C, H, W) or (C, H, W), already in the input's colour order.
    feature
        The input as the package describes it.

    Raises
    ------
    ProgramError
        The image has another size or other channels than the input.
    """
    gray = (feature.colour or "").startswith("grayscale")
    if hasattr(image, "convert"):
        image = np.asarray(image.convert("L" if gray else "RGB"))
    array = np.asarray(image)
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3))):
        array = array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
        if feature.colour == "bgr":
            array = array[::-1]
    if array.ndim == 3:
        array = array[None]
    channels = 1 if gray else 3
    height, width = feature.shape or (0, 0)
    right = array.ndim == 4 and array.shape[:2] == (1, channels)
    if not right or not (feature.flexible or array.shape[2:] == (height, width)):
        raise ProgramError(
            f"input '{feature.name}' takes an image of {height} x {width} pixels and {channels} "
            f"channel{'s' if channels > 1 else ''}, not an array of shape {tuple(np.shape(image))}"
        )
    if array.dtype.kind not in "uif":
        raise ProgramError(f"input '{feature.name}' takes an image of numbers, not of {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float32)
