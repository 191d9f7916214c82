"""timm's evaluation preprocessing, done once for all models that have a part of it in common.

The transform objects are timm's own (``timm.data.create_transform(..., is_training=False, use_prefetcher=True)``), in
the form that its ``validate.py`` uses: pixels stay uint8 up to the batch, which is then normalised as
``(x - 255 mean) / (255 std)`` in float32. What is added is memory: an image is decoded once, and each step of the
transforms runs once for all models whose transforms agree up to it. The results are timm's, bit for bit.

An image is read as timm's ``ImageDataset`` reads it: ``PIL.Image.open`` and ``convert("RGB")``; EXIF orientation is
not applied, grey is repeated, CMYK and 16-bit values are converted by PIL's rules.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from repro.accuracy.errors import CorruptImageError, EvaluationError

if TYPE_CHECKING:  # importing torch takes seconds, and who only describes a preprocessing does not need it
    import torch

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What happens to an image's pixels before normalisation."""

    height: int
    width: int
    interpolation: str
    crop_pct: float
    crop_mode: str
    fill: tuple[int, ...] | None = None  # colour of the border, which timm takes from the mean


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How one checkpoint wants its images: timm's words for it.

    Attributes
    ----------
    input_size
        Channels, height and width in pixels; three channels.
    interpolation
        One of ``INTERPOLATIONS``.
    crop_pct
        Input size over the size that the image is resized to.
    crop_mode
        ``center``: shortest edge resized, centre cropped; ``squash``: both edges resized, centre cropped; ``border``:
        longest edge resized, padded with the mean.
    mean, std
        Per channel, on the scale of 0 to 1.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        # JSON and YAML give lists; only tuples hash and compare as keys
        for name in ("input_size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.input_size) != 3 or self.input_size[0] != 3 or min(self.input_size) < 1:
            raise EvaluationError(f"input size {self.input_size}: expected 3 channels, height and width")
        if self.interpolation not in INTERPOLATIONS:
            raise EvaluationError(f"unknown interpolation {self.interpolation!r}: {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in CROP_MODES:
            raise EvaluationError(f"unknown crop mode {self.crop_mode!r}: {', '.join(CROP_MODES)}")
        if not (math.isfinite(self.crop_pct) and 0 < self.crop_pct <= 10):
            raise EvaluationError(f"crop fraction {self.crop_pct}: expected a number above 0, 1 for no crop")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise EvaluationError("mean and std need three values each, std above 0")

    @property
    def geometry(self) -> Geometry:
        """The part that the pixels depend on; models that share it share the images."""
        fill = tuple(round(255 * value) for value in self.mean) if self.crop_mode == "border" else None
        return Geometry(
            height=self.input_size[1],
            width=self.input_size[2],
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            fill=fill,
        )

    def to_dict(self) -> dict[str, Any]:
        """For records and keys."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Take the keys of timm's data config; others are left alone."""
        return cls(**{key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None})

    @classmethod
    def for_model(cls, model: Any, *, use_test_size: bool = True, **overrides: Any) -> Preprocessing:
        """Resolve a timm model's preprocessing as ``validate.py`` does.

        Parameters
        ----------
        model
            A timm model, or anything with its ``pretrained_cfg``.
        use_test_size
            Whether a test size and crop in the config, where there are any, come before those of training.
        overrides
            Fields to set, whatever the config says.
        """
        from timm.data import resolve_data_config

        return cls.from_config({**resolve_data_config({}, model=model, use_test_size=use_test_size), **overrides})

    def transform(self) -> Any:
        """timm's transform: a PIL image to a uint8 tensor of shape (3, H, W)."""
        from timm.data import create_transform

        return create_transform(
            self.input_size,
            is_training=False,
            use_prefetcher=True,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )


def decode(data: bytes, name: str) -> Any:
    """Decode an image to RGB.

    Parameters
    ----------
    name
        For the error.

    Returns
    -------
    PIL.Image.Image
        In mode RGB.

    Raises
    ------
    CorruptImageError
        With PIL's reason, in one line, when the image is not whole or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF blocks: several of ImageNet's images have one
            image = Image.open(io.BytesIO(data))
            image.load()
            # convert() of an RGB image to RGB is a copy
            return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError as error:
        raise CorruptImageError(name, "not an image" if data else "the file is empty") from error
    except Exception as error:  # PIL's plug-ins raise whatever their parsers meet
        raise CorruptImageError(name, " ".join(f"{error}".split()) or type(error).__name__) from error


class Preprocessor:
    """Turns an image's bytes into the pixels that each of several preprocessings wants.

    Parameters
    ----------
    preprocessings
        Those of the models; equal geometries count once.

    Attributes
    ----------
    geometries
        The distinct ones, in the order of first appearance.
    """

    def __init__(self, preprocessings: Sequence[Preprocessing]) -> None:
        from timm.data.transforms import MaybePILToTensor

        self.geometries: list[Geometry] = []
        self._chains: list[list[tuple[tuple[str, ...], Any]]] = []
        for preprocessing in preprocessings:
            if preprocessing.geometry in self.geometries:
                continue
            *steps, last = preprocessing.transform().transforms
            assert isinstance(last, MaybePILToTensor)  # replaced below by numpy's view of the same bytes
            chain: list[tuple[tuple[str, ...], Any]] = []
            done: tuple[str, ...] = ()
            for step in steps:
                # timm's padding crop does not print its colour
                done = (*done, f"{step!r} {getattr(step, 'fill', '')}")
                chain.append((done, step))
            self.geometries.append(preprocessing.geometry)
            self._chains.append(chain)

    def __call__(self, data: bytes, name: str) -> list[Pixels]:
        """Decode an image and give its pixels for each geometry.

        Returns
        -------
        list of uint8 arrays
            Shape (H, W, 3), one for each of ``geometries``.

        Raises
        ------
        CorruptImageError
            When the image cannot be decoded.
        """
        image = decode(data, name)
        results: dict[tuple[str, ...], Any] = {}
        pixels = []
        for chain in self._chains:
            result = image
            for done, step in chain:
                if done not in results:
                    results[done] = step(result)
                result = results[done]
            pixels.append(np.asarray(result))
        return pixels


def normalise(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Normalise a batch as timm's ``PrefetchLoader`` does.

    Parameters
    ----------
    pixels
        uint8, shape (B, H, W, 3), on any device.

    Returns
    -------
    torch.Tensor
        float32, shape (B, 3, H, W), channels last in memory.
    """
    import torch

    scale = {
        name: torch.tensor([value * 255 for value in values], device=pixels.device).view(1, 3, 1, 1)
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std))
    }
    return pixels.permute(0, 3, 1, 2).to(torch.float32).sub_(scale["mean"]).div_(scale["std"])
