"""Let a network take another image size than the one that its tables of positions were made for."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import efficientformer
from torch import nn
from torch.nn import functional as F

from repro.spec.tables import InputSize

#: Of EfficientFormer's last stage, the only one with attention.
_STRIDE = 32


def fit_positions(model: nn.Module, input_size: InputSize) -> nn.Module:
    """Give EfficientFormer's attention biases for an image size (height, width), in place.

    timm builds its table for 7 x 7 positions, whatever size is asked for; the family's downstream code makes a larger
    one. A trained table, of offsets between positions, is resized as that code resizes its maps, bicubically.
    Every other model is left as it is.
    """
    side = (-(-input_size[0] // _STRIDE), -(-input_size[1] // _STRIDE))
    for module in model.modules():
        if isinstance(module, efficientformer.Attention):
            _fit(module, side)
    return model


def _fit(module: Any, side: tuple[int, int]) -> None:
    biases, indices = module.attention_biases, module.attention_bias_idxs
    old = round(biases.shape[1] ** 0.5)
    if (old, old) == side:
        return
    with torch.no_grad():
        table = F.interpolate(biases.reshape(1, -1, old, old), size=side, mode="bicubic").flatten(2)[0]
    places = torch.cartesian_prod(torch.arange(side[0]), torch.arange(side[1]))
    offset = (places[:, None] - places[None]).abs()
    module.attention_biases = nn.Parameter(table, requires_grad=biases.requires_grad)
    module.attention_bias_idxs = (offset[..., 0] * side[1] + offset[..., 1]).to(indices.dtype)
    module.attention_bias_cache = {}  # of the old table, kept by device
