"""Swin for any image size, as its official detection code has it.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows - https://arxiv.org/abs/2103.14030

Source: SwinTransformer/Swin-Transformer-Object-Detection, mmdet/models/backbones/swin_transformer.py, read for what it
computes. timm's model rolls a map and then pads it to whole windows; the detection code pads and then rolls, so that
other positions share a window. At sizes that windows divide the two agree.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

__all__ = ["swin_body", "swin_maps"]


class Block(nn.Module):
    """A block of shifted windows, made of the parts of timm's; (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.window, self.shift, self.mask_of = of.window_size, of.shift_size, of.get_attn_mask
        self.norm1, self.attn, self.norm2, self.mlp = of.norm1, of.attn, of.norm2, of.mlp
        self.drop_path1, self.drop_path2 = of.drop_path1, of.drop_path2

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows, then mix channels."""
        x = x + self.drop_path1(self.windows(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def windows(self, x: Tensor) -> Tensor:
        """Pad, roll, attend, and undo both."""
        _, H, W, C = x.shape
        x = F.pad(x, (0, 0, 0, -W % self.window[1], 0, -H % self.window[0]))
        x = torch.roll(x, (-self.shift[0], -self.shift[1]), dims=(1, 2))
        padded = x.shape
        parts = window_partition(x, self.window).view(-1, self.window[0] * self.window[1], C)
        parts = self.attn(parts, mask=self.mask_of(x)).view(-1, *self.window, C)
        x = window_reverse(parts, self.window, padded[1], padded[2])
        return torch.roll(x, self.shift, dims=(1, 2))[:, :H, :W]


def swin_body(name: str) -> Any:
    """timm's model without its head, its windows shifted in every stage and their masks made for the map at hand."""
    body: Any = timm.create_model(name, num_classes=0, strict_img_size=False, always_partition=True)
    body.norm = nn.Identity()
    for layer in body.layers:
        for i, block in enumerate(layer.blocks):
            assert isinstance(block, SwinTransformerBlock)
            layer.blocks[i] = Block(block)
            index = block.attn.relative_position_index
            del block.attn.relative_position_index  # a released detector has it among its keys, timm's model has not
            block.attn.register_buffer("relative_position_index", index)
    return body


def swin_maps(body: Any, x: Tensor) -> list[Tensor]:
    """Maps (B, C, H / stride, W / stride); an image that patches of 4 px do not divide is padded with zeros."""
    x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
    maps: list[Tensor] = body.forward_intermediates(x, indices=[0, 1, 2, 3], intermediates_only=True)
    return maps
