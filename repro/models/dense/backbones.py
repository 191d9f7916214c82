"""Which model, stages and output norms the detector and the segmenter of a row have.

Each is what the family's own detection and segmentation code builds; ``layouts`` names the files. Where the two differ
(the size that biases are trained for, the block that RepViT's maps are taken from) the task decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from repro.errors import ModelError
from repro.models.dense import layouts
from repro.models.dense.efficientformer import efficientformer_body, efficientformerv2_body
from repro.models.dense.swin import swin_body, swin_maps

__all__ = ["BACKBONES", "DETECTION", "SEGMENTATION", "Backbone", "backbone"]

DETECTION, SEGMENTATION = "detection", "segmentation"
SMALLEST = 32  # px on a side: the coarsest map then has one position
Maps = Callable[[Any, Tensor], Sequence[Tensor]]


class Backbone(nn.Module):
    """A model's four stages and the norms on their outputs.

    Parameters
    ----------
    body
        A timm model, its head removed.
    channels
        Of the four maps.
    indices
        Of ``forward_intermediates``: the stages of strides 4, 8, 16 and 32.
    norms
        One for each map; None for maps that go out as they are.
    layout
        From ``body`` to a function that tells each key's name in the family's own code.
    maps
        How the maps come from ``body``, where ``forward_intermediates`` does not give them.

    Raises
    ------
    ModelError
        From ``forward``, for an image of less than 32 px on a side.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: Sequence[int],
        *,
        indices: Sequence[int] = (0, 1, 2, 3),
        norms: Sequence[nn.Module] | None = None,
        layout: Callable[[nn.Module], layouts.Layout] = layouts.resnet,
        maps: Maps | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.indices, self.channels = tuple(indices), tuple(channels)
        self.norms = nn.ModuleList(norms) if norms is not None else None
        self._layout, self._maps = layout(body), maps  # plain functions, no part of the state

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to maps (B, channels[i], H / stride, W / stride)."""
        if min(x.shape[2:]) < SMALLEST:
            raise ModelError(f"an image of {x.shape[3]} x {x.shape[2]} px: at least {SMALLEST} px on a side are needed")
        if self._maps is not None:
            maps = list(self._maps(self.body, x))
        else:
            body: Any = self.body
            maps = body.forward_intermediates(x, indices=list(self.indices), intermediates_only=True)
        if self.norms is not None:
            maps = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        return maps

    def official_keys_of(self, model: nn.Module) -> dict[str, str]:
        """Each released key of a detector or segmenter whose ``backbone`` this is, with the key in ``model``."""
        prefix = "backbone."
        found = {}
        for key in model.state_dict():
            inner = key.removeprefix(prefix).removeprefix("body.")
            found[prefix + self._layout(inner) if key.startswith(prefix) else key] = key
        return found


def _create(name: str, **kwargs: Any) -> Any:
    """timm's model without its head, nor the norm in front of that."""
    body: Any = timm.create_model(name, num_classes=0, **kwargs)
    owner: Any
    for owner in (body, getattr(body, "head", None)):
        if isinstance(getattr(owner, "norm", None), nn.Module):
            owner.norm = nn.Identity()
    return body


def _resnet(task: str, name: str = "resnet50", layout: Any = layouts.resnet) -> Backbone:
    body = timm.create_model(name, num_classes=0)
    widths = [info["num_chs"] for info in body.feature_info][-4:]
    return Backbone(body, widths, indices=(1, 2, 3, 4), layout=layout)


def _poolformer(task: str) -> Backbone:
    widths = (64, 128, 320, 512)
    norms = [nn.GroupNorm(1, width) for width in widths]
    return Backbone(_create("poolformer_s24"), widths, norms=norms, layout=layouts.poolformer)


def _convnext(task: str) -> Backbone:
    widths = (96, 192, 384, 768)
    norms = [LayerNorm2d(width, eps=1e-6) for width in widths]
    return Backbone(_create("convnext_tiny"), widths, norms=norms, layout=layouts.convnext)


def _efficientformer(task: str) -> Backbone:
    widths = (64, 128, 320, 512)
    body = efficientformer_body("efficientformer_l3", 800 if task == DETECTION else 512)
    norms = [nn.GroupNorm(1, width) for width in widths]
    return Backbone(body, widths, norms=norms, layout=layouts.efficientformer, maps=_flat_last)


def _flat_last(body: Any, x: Tensor) -> list[Tensor]:
    """EfficientFormer's maps: its last stage ends as a sequence (B, H * W, C)."""
    x, maps = body.stem(x), []
    for stage in body.stages[:-1]:
        x = stage(x)
        maps.append(x)
    last = body.stages[-1]
    x = last.downsample(x)
    H, W = x.shape[2:]
    return [*maps, last.blocks(x).transpose(1, 2).reshape(x.shape[0], -1, H, W)]


def _efficientformerv2(task: str) -> Backbone:
    body = efficientformerv2_body("efficientformerv2_l", 800 if task == DETECTION else 512)
    return Backbone(body, (40, 80, 192, 384), layout=layouts.efficientformerv2)


def _repvit(task: str) -> Backbone:
    body = _create("repvit_m1_5")
    maps = _after_pre_block if task == SEGMENTATION else None
    return Backbone(body, (64, 128, 256, 512), layout=layouts.repvit, maps=maps)


def _after_pre_block(body: Any, x: Tensor) -> list[Tensor]:
    """RepViT's maps in its segmentation code: behind the block that timm counts to the next stage's downsampling."""
    x, maps = body.stem(x), []
    for i, stage in enumerate(body.stages):
        if i:
            step = stage.downsample
            x = step.pre_block(x)
            maps.append(x)
            x = step.channel_downsample(step.spatial_downsample(x))
            x = step.ffn(x) + x
        x = stage.blocks(x)
    return [*maps, x]


def _pvtv2(task: str) -> Backbone:
    return Backbone(_create("pvt_v2_b1"), (64, 128, 320, 512), layout=layouts.pvtv2)


def _fastvit(task: str) -> Backbone:
    # The released file numbers its outputs without the positional encoding of the last stage; no detector was released
    # with it, and the outputs meant are the stages'.
    widths = (64, 128, 256, 512)
    body = _create("fastvit_sa24")
    body.final_conv = nn.Identity()
    return Backbone(body, widths, norms=[nn.BatchNorm2d(width) for width in widths], layout=layouts.fastvit)


def _efficientmod(task: str, name: str = "efficientmod_s", widths: Sequence[int] = (32, 64, 144, 312)) -> Backbone:
    return Backbone(_create(name), widths, layout=layouts.efficientmod)


def _swin(task: str) -> Backbone:
    widths = (96, 192, 384, 768)
    norms = [LayerNorm2d(width, eps=1e-5) for width in widths]
    body = swin_body("swin_tiny_patch4_window7_224")
    return Backbone(body, widths, norms=norms, layout=layouts.swin, maps=swin_maps)


def _iformer(task: str, name: str, widths: Sequence[int]) -> Backbone:
    return Backbone(_create(name), widths, layout=layouts.iformer)


# By the name of the variant in Table 13; a manifest may name another.
BACKBONES: dict[str, Callable[[str], Backbone]] = {
    "resnet50": _resnet,
    "resnet50_v1c": partial(_resnet, name="resnet50c", layout=layouts.resnet_deep_stem),
    "poolformer_s24": _poolformer,
    "convnext_tiny": _convnext,
    "efficientformer_l3": _efficientformer,
    "repvit_m1_5": _repvit,
    "pvt_v2_b1": _pvtv2,
    "fastvit_sa24": _fastvit,
    "efficientmod_s": _efficientmod,
    "efficientmod_s_conv": partial(_efficientmod, name="efficientmod_s_conv", widths=(40, 80, 160, 344)),
    "swin_tiny_patch4_window7_224": _swin,
    "iformer_m": partial(_iformer, name="iformer_m_downstream", widths=(48, 96, 192, 384)),
    "iformer_l": partial(_iformer, name="iformer_l_downstream", widths=(48, 96, 256, 384)),
    "efficientformerv2_l": _efficientformerv2,
    "iformer_l2_distilled": partial(_iformer, name="iformer_l2_downstream", widths=(64, 128, 256, 512)),
}


def backbone(name: str, task: str = DETECTION) -> Backbone:
    """Build the backbone of a row's detector or segmenter, with random weights.

    Raises
    ------
    ModelError
        For a name that no row has.
    """
    if name not in BACKBONES:
        raise ModelError(f"no backbone {name!r} for {task}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name](task)
