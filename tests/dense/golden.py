"""Outputs of the official toolkits, and the weights and images they were made with.

Of three images i ``tests/data/golden/mask_rcnn_r50.npz`` holds ``boxes{i}``, ``scores{i}``, ``labels{i}``, ``areas{i}``
(pixels of each pasted mask) and ``mask{i}`` (packed bits of the first); of two images ``semantic_fpn_r50.npz`` holds
``pred{i}`` (class of each pixel) and ``logits{i}`` (every 37th row and 41st column). ``keys`` is the layout
of a released checkpoint.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from tests.models.golden import FOLDER, weight

DETECTION_SIZES = ((480, 640), (427, 640), (640, 361))
SEGMENTATION_SIZES = ((512, 683), (375, 500))


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}


def state_dict(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights seeded by their keys; some larger or smaller, so that scores spread and boxes move."""
    made = {}
    for key, shape in keys.items():
        if key.endswith("num_batches_tracked"):
            made[key] = torch.tensor(0)
            continue
        made[key] = weight(key, shape)
        if "fc_reg" in key or "rpn_reg" in key:
            made[key] *= 0.2
        elif key.endswith("fc_cls.weight"):
            made[key] *= 10
        elif key == "decode_head.conv_seg.weight":
            made[key] *= 200
    return made


def layout(data: dict[str, np.ndarray]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(str(data["keys"]))
    return found


def image(i: int, height: int, width: int) -> np.ndarray:
    """Blocks of 32 px with noise, BGR bytes."""
    draw = np.random.default_rng(i)
    blocks = draw.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3)).astype("float32")
    blocks = np.kron(blocks, np.ones((32, 32, 1), "float32"))[:height, :width]
    return np.clip(blocks + draw.normal(0, 8, blocks.shape), 0, 255).astype("uint8")
