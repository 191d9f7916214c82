"""A small network with every part that the planted faults need."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE = (3, 32, 32)


class Attention(nn.Module):
    """Two heads over the places of a feature map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, 2, c // 2, h * w).unbind(1)
        weights = (q.transpose(-1, -2) @ k * (c // 2) ** -0.5).softmax(-1)
        return self.out((v @ weights.transpose(-1, -2)).reshape(n, c, h, w))


class Block(nn.Module):
    """A depthwise convolution and an inverted bottleneck behind a layer scale of 1e-6, as they are initialised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Sequential(nn.Conv2d(width, width, 7, padding=3, groups=width), nn.BatchNorm2d(width))
        self.mix = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.mix(self.spatial(x))


class Net(nn.Module):
    """Stem, convolution block, attention, two pooled views side by side, head."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4, bias=False), nn.BatchNorm2d(width))
        self.block = Block(width)
        self.attention = Attention(width)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        x = x + self.attention(x)
        return self.head(self.norm(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)))
