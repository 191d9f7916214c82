"""Outputs of the families' official code, and the weights and images they were made with.

Each ``tests/data/golden/*.npz`` has ``logits`` (2 x 1000), ``keys`` (JSON: official state-dict key to shape),
``params`` as trained, ``fvcore`` (its total with its default handles), ``torchflops`` (FlopCounterMode's) and ``res``
(input side).
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "data" / "golden"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One official model's layout, output and size."""

    keys: dict[str, list[int]]
    logits: torch.Tensor
    params: int
    fvcore: int
    size: int

    @classmethod
    def read(cls, name: str) -> Golden:
        with np.load(FOLDER / f"{name}.npz") as data:
            return cls(
                keys=json.loads(str(data["keys"])),
                logits=torch.from_numpy(data["logits"]),
                params=int(data["params"]),
                fvcore=int(data["fvcore"]),
                size=int(data["res"]),
            )

    def images(self) -> torch.Tensor:
        draw = np.random.default_rng(0).standard_normal((2, 3, self.size, self.size))
        return torch.from_numpy(draw.astype(np.float32))


def weight(key: str, shape: list[int]) -> torch.Tensor:
    """The tensor of an official key: drawn from a generator that its name seeds, scaled by what it is."""
    draw = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        draw = 1 + np.abs(draw)
    elif key.endswith(("running_mean", "bias")):
        draw = np.float32(0.1) * draw
    elif len(shape) <= 1:
        draw = (np.float32(0.8) if key.endswith("weight") else np.float32(0)) + np.float32(0.1) * draw
    else:
        draw = draw / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(np.asarray(draw, dtype=np.float32))


def weights(keys: dict[str, list[int]], built: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict in the official layout; integer buffers keep what the model built (``built``, by official key)."""
    made = {}
    for key, shape in keys.items():
        own = built.get(key)
        integer = own is not None and not own.is_floating_point()
        made[key] = own.clone() if integer and own is not None else weight(key, shape)
        if key.endswith("num_batches_tracked"):
            made[key] = torch.tensor(0)
    return made
