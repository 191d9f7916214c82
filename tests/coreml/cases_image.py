"""Resizing and resampling, against the grids that coremltools documents, written out in numpy, or against torch."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from tests.coreml.programs import Case, floats, integers

X = floats(2, 3, 4, 5)
MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def _places(size: int, out: int, mode: str) -> list[float]:
    """The documented grid points of one dimension."""
    if mode == "ALIGN_CORNERS" and out == 1:
        return [(size - 1) / 2]
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        spacing, start = ((size - 1) / (out - 1) if out > 1 else 0), 0.0
    elif mode == "DEFAULT":
        spacing, start = ((size - size / out) / (out - 1) if out > 1 else 0), 0.0
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / out
        spacing, start = delta, 0.5 * delta
    else:
        spacing, start = size / out, 0.5 * size / out - 0.5
    return [min(size - 1, max(0, start + i * spacing)) for i in range(out)]


def _linear(x: np.ndarray, axis: int, out: int, mode: str) -> np.ndarray:
    slices = []
    for place in _places(x.shape[axis], out, mode):
        low = int(np.floor(place))
        high = min(low + 1, x.shape[axis] - 1)
        slices.append(x.take(low, axis) * (1 - (place - low)) + x.take(high, axis) * (place - low))
    return np.stack(slices, axis)


def _bilinear(height: int, width: int, mode: str):
    return lambda x: _linear(_linear(x, -2, height, mode), -1, width, mode)


def _nearest(height: int, width: int):
    def want(x: np.ndarray) -> np.ndarray:
        rows = [i * x.shape[-2] // height for i in range(height)]
        columns = [i * x.shape[-1] // width for i in range(width)]
        return x[..., rows, :][..., columns]

    return want


def _torch(function):
    return lambda *arrays: function(*(torch.from_numpy(array) for array in arrays)).numpy()


RESIZING = [
    *(
        Case(
            op="resize_bilinear",
            note=f"{mode.lower()} {height}x{width}",
            inputs=(X,),
            build=lambda mb, x, h=height, w=width, mode=mode: mb.resize_bilinear(
                x=x, target_size_height=h, target_size_width=w, sampling_mode=mode
            ),
            want=_bilinear(height, width, mode),
        )
        for mode, (height, width) in itertools.product(MODES, ((7, 3), (4, 5), (1, 1)))
    ),
    *(
        Case(
            op="resize",
            note=f"linear {mode.lower()}",
            target="iOS17",
            inputs=(X,),
            build=lambda mb, x, mode=mode: mb.resize(
                x=x, shape=[2, 0, 6, 9], resized_dims=np.uint32(2), interpolation_mode="LINEAR", sampling_mode=mode
            ),
            want=_bilinear(6, 9, mode),
        )
        for mode in MODES
    ),
    Case(
        op="resize",
        note="nearest",
        target="iOS17",
        inputs=(X,),
        build=lambda mb, x: mb.resize(
            x=x, shape=[3, 0], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
        ),
        want=_nearest(3, 5),
    ),
    Case(
        op="resize_nearest_neighbor",
        inputs=(X,),
        build=lambda mb, x: mb.resize_nearest_neighbor(x=x, target_size_height=7, target_size_width=3),
        want=_nearest(7, 3),
    ),
    Case(
        op="upsample_nearest_neighbor",
        inputs=(X,),
        build=lambda mb, x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        want=_torch(lambda x: F.interpolate(x, scale_factor=(2, 3), mode="nearest")),
    ),
    Case(
        op="upsample_nearest_neighbor",
        note="fractions",
        inputs=(floats(1, 2, 6, 6),),
        build=lambda mb, x: mb.upsample_nearest_neighbor(
            x=x, scale_factor_height=np.float32(1.5), scale_factor_width=np.float32(0.5)
        ),
        want=_torch(lambda x: F.interpolate(x, scale_factor=(1.5, 0.5), mode="nearest")),
    ),
    *(
        Case(
            op="upsample_bilinear",
            note=f"align_corners={align}",
            inputs=(X,),
            build=lambda mb, x, align=align: mb.upsample_bilinear(
                x=x, scale_factor_height=2, scale_factor_width=3, align_corners=align
            ),
            want=_torch(
                lambda x, align=align: F.interpolate(x, scale_factor=(2, 3), mode="bilinear", align_corners=align)
            ),
        )
        for align in (True, False)
    ),
    Case(
        op="upsample_bilinear",
        note="corner pixels",
        target="iOS16",
        inputs=(X,),
        build=lambda mb, x: mb.upsample_bilinear(
            x=x, scale_factor_height=2, scale_factor_width=2, align_corners=False, half_pixel_centers=False
        ),
        want=_bilinear(8, 10, "DEFAULT"),
    ),
    Case(
        op="upsample_bilinear",
        note="rank 3",
        inputs=(floats(3, 4, 5),),
        build=lambda mb, x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=2, align_corners=False),
        want=_bilinear(8, 10, "UNALIGN_CORNERS"),
    ),
    Case(
        op="crop",
        inputs=(X,),
        build=lambda mb, x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
        want=lambda x: x[:, :, 1:2, :2],
    ),
]

GRID = floats(2, 6, 4, 2, seed=4, low=-1.4, high=1.4)


def _grid_sample(mode: str, padding: str, align: bool):
    return _torch(lambda x, g: F.grid_sample(x, g, mode=mode, padding_mode=padding, align_corners=align))


def _resample(note: str, want, coordinates: np.ndarray = GRID, **arguments: object) -> Case:
    defaults = {
        "sampling_mode": "bilinear",
        "padding_mode": "constant",
        "padding_value": np.float32(0),
        "coordinates_mode": "normalized_minus_one_to_one",
        "align_corners": True,
    }
    return Case(
        op="resample",
        note=note,
        inputs=(X, coordinates),
        build=lambda mb, x, c: mb.resample(x=x, coordinates=c, **(defaults | arguments)),
        want=want,
        tolerance=1e-4,
    )


def _pixel_lookup(border: str):
    """Integer coordinates, by numpy's padding of that name."""

    def want(x: np.ndarray, places: np.ndarray) -> np.ndarray:
        wide = np.pad(x, ((0, 0), (0, 0), (3, 3), (3, 3)), mode=border)
        return np.stack([wide[n][:, places[n, ..., 1] + 3, places[n, ..., 0] + 3] for n in range(len(x))])

    return want


PIXELS = np.stack([integers(2, 6, 4, low=-3, high=8), integers(2, 6, 4, seed=1, low=-3, high=7)], -1)

RESAMPLING = [
    *(
        _resample(
            f"{mode} {padding} align_corners={align}",
            _grid_sample(mode, torch_padding, align),
            sampling_mode=mode,
            padding_mode=padding,
            align_corners=align,
        )
        for mode in ("bilinear", "nearest")
        for padding, torch_padding, align in (
            ("constant", "zeros", True),
            ("constant", "zeros", False),
            ("border", "border", True),
            ("reflection", "reflection", True),
            ("symmetric", "reflection", False),
        )
    ),
    _resample(
        "value outside",
        lambda x, c: _grid_sample("bilinear", "zeros", True)(x - np.float32(0.7), c) + 0.7,
        padding_value=np.float32(0.7),
    ),
    _resample(
        "from zero to one",
        lambda x, c: _grid_sample("bilinear", "zeros", False)(x, 2 * c - 1),
        coordinates_mode="normalized_zero_to_one",
        align_corners=False,
    ),
    *(
        _resample(
            f"pixels {padding}",
            _pixel_lookup(border),
            PIXELS,
            padding_mode=padding,
            coordinates_mode="unnormalized",
        )
        for padding, border in (
            ("constant", "constant"),
            ("border", "edge"),
            ("reflection", "reflect"),
            ("symmetric", "symmetric"),
        )
    ),
    Case(
        op="affine",
        inputs=(X, floats(2, 6, seed=6)),
        tolerance=1e-4,
        build=lambda mb, x, m: mb.affine(
            x=x,
            transform_matrix=m,
            output_height=3,
            output_width=6,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=np.float32(0),
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        want=_torch(
            lambda x, m: F.grid_sample(
                x, F.affine_grid(m.reshape(2, 2, 3), [2, 3, 3, 6], align_corners=True), align_corners=True
            )
        ),
    ),
]

CASES = RESIZING + RESAMPLING
