"""The feature pyramid network of Mask R-CNN and Semantic FPN.

Feature Pyramid Networks for Object Detection - https://arxiv.org/abs/1612.03144

Module names are those of MMDetection's and MMSegmentation's ``FPN`` (mmdet/models/necks/fpn.py): a released
checkpoint's keys are the keys here.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FPN", "ConvModule"]


class ConvModule(nn.Module):
    """Convolution, with BatchNorm and ReLU where ``norm``; (B, C, H, W) to (B, C', H, W).

    Without a norm the convolution has a bias and no activation follows.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=not norm)
        self.bn = nn.BatchNorm2d(out_channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        x = self.conv(x)
        return x if self.bn is None else F.relu(self.bn(x), inplace=True)


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path of nearest upsampling, and a 3x3 convolution a level.

    Parameters
    ----------
    in_channels
        Channels of the backbone's maps, finest first.
    channels
        Channels of every level.
    levels
        Levels to return; those beyond the backbone's are every other position of the coarsest one (max-pool of 1,
        stride 2).
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, levels: int = 4) -> None:
        super().__init__()
        self.levels = levels
        self.lateral_convs = nn.ModuleList([ConvModule(width, channels, 1) for width in in_channels])
        self.fpn_convs = nn.ModuleList([ConvModule(channels, channels, 3) for _ in in_channels])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """From maps of strides 4, 8, ... to as many levels with equal channels, and the extra ones."""
        found = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(found) - 1, 0, -1):
            found[i - 1] = found[i - 1] + F.interpolate(found[i], size=found[i - 1].shape[2:], mode="nearest")
        found = [conv(x) for conv, x in zip(self.fpn_convs, found, strict=True)]
        while len(found) < self.levels:
            found.append(F.max_pool2d(found[-1], 1, stride=2))
        return found
