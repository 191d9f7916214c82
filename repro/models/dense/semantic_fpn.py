"""Semantic FPN with the conventions of MMSegmentation's ADE20K configurations, for inference.

Panoptic Feature Pyramid Networks - https://arxiv.org/abs/1901.02446

Source of the conventions: MMSegmentation 1.2.2, configs/_base_/models/fpn_r50.py, mmseg/models/decode_heads/fpn_head.py
and the whole-image mode of mmseg/models/segmentors/encoder_decoder.py, read for their numbers, order and key names.
"""

from collections.abc import Sequence
from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.models.dense.backbones import Backbone
from repro.models.dense.fpn import FPN, ConvModule
from repro.models.dense.images import ImageInput

__all__ = ["SemanticFPN"]

_BYTES = 64 * 2**20  # of full-size logits at a time


class Double(nn.Module):
    """Twice the size, bilinear; (B, C, H, W) to (B, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Resize."""
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class FPNHead(nn.Module):
    """Brings each level to stride 4 by 3x3 convolutions and doublings, sums them and classifies.

    The level of stride 4 has one convolution, the others as many as doublings.
    """

    def __init__(
        self, classes: int, in_channels: int = 256, channels: int = 128, strides: Sequence[int] = (4, 8, 16, 32)
    ):
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.scale_heads = nn.ModuleList()
        for stride in strides:
            doublings = int(log2(stride // strides[0]))
            layers: list[nn.Module] = []
            for i in range(max(1, doublings)):
                layers.append(ConvModule(channels if i else in_channels, channels, 3, norm=True))
                layers += [Double()] if doublings else []
            self.scale_heads.append(nn.Sequential(*layers))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, 256, H / stride, W / stride) to logits (B, classes, H / 4, W / 4)."""
        x = self.scale_heads[0](levels[0])
        for head, level in zip(self.scale_heads[1:], levels[1:], strict=True):
            x = x + F.interpolate(head(level), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.conv_seg(x)


class SemanticFPN(nn.Module):
    """Semantic FPN over a four-stage backbone.

    Parameters
    ----------
    backbone
        Gives four maps of strides 4, 8, 16 and 32.
    channels
        Of the pyramid's levels; the head has half as many.
    """

    def __init__(self, backbone: Backbone, classes: int = 150, *, channels: int = 256) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = backbone
        self.neck = FPN(backbone.channels, channels)
        self.decode_head = FPNHead(classes, channels, channels // 2)

    def official_keys(self) -> dict[str, str]:
        """Each key of a released checkpoint, with the key here."""
        return self.backbone.official_keys_of(self)

    def logits(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to logits (B, classes, ceil(H / 4), ceil(W / 4))."""
        return self.decode_head(self.neck(self.backbone(pixels)))

    @torch.inference_mode()
    def forward(self, image: ImageInput) -> Tensor:
        """Class of each pixel of the original image, int64 (height, width).

        Logits are brought to the network's input size and from there to the original's, as the toolkit does, some
        classes at a time: all 150 of a large photograph would take gigabytes. Of equal logits the first class counts.
        """
        coarse = self.logits(image.pixels)
        height, width = image.original
        best = coarse.new_full((height, width), -torch.inf)
        classes = torch.zeros((height, width), dtype=torch.long, device=coarse.device)
        step = max(1, _BYTES // (4 * max(height * width, image.pixels[0, 0].numel())))
        for start in range(0, self.classes, step):
            value, index = self.enlarge(coarse[:, start : start + step], image)[0].max(0)
            better = value > best
            best = torch.where(better, value, best)
            classes = torch.where(better, index + start, classes)
        return classes

    @staticmethod
    def enlarge(logits: Tensor, image: ImageInput) -> Tensor:
        """Logits (B, C, h, w) at the size of the original image, (B, C, height, width)."""
        full = F.interpolate(logits, size=image.pixels.shape[2:], mode="bilinear", align_corners=False)
        full = full[..., : image.size[0], : image.size[1]]  # padding was no part of the image
        return F.interpolate(full, size=image.original, mode="bilinear", align_corners=False)
