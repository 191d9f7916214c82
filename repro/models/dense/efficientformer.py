"""EfficientFormer and EfficientFormerV2 for any image size, as their official detection and segmentation code has them.

EfficientFormer: Vision Transformers at MobileNet Speed - https://arxiv.org/abs/2206.01191
Rethinking Vision Transformers for MobileNet Size and Speed - https://arxiv.org/abs/2212.08059

Source: snap-research/EfficientFormer, detection/backbone.py and detection/backbonev2.py (segmentation/ differs in the
resolution of the biases alone), read for what they compute and how their tensors are called.

timm's models add a table of attention biases that fits one image size. The downstream code keeps, beside that table
(a buffer that nothing reads), a larger one for its own training size, gathers it into a map of query by key and
resizes that map, as if it were an image, bicubically to the number of positions at hand.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import efficientformer, efficientformer_v2
from torch import Tensor, nn

__all__ = ["efficientformer_body", "efficientformerv2_body"]


class Biases(nn.Module):
    """A table of biases for a square of ``side`` positions, and maps of it at any number of positions.

    Parameters
    ----------
    heads
        Attention heads.
    side
        Key positions on a side.
    stride
        Of the queries, which lie on every ``stride``-th key.
    unread
        Shapes of the official buffers that hold the classification model's biases and indices; nothing reads them.
    """

    def __init__(self, heads: int, side: int, stride: int = 1, unread: tuple[int, int] = (49, 49)) -> None:
        super().__init__()
        self.attention_biases_seg = nn.Parameter(torch.zeros(heads, side * side))
        keys = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        queries = torch.cartesian_prod(torch.arange(0, side, stride), torch.arange(0, side, stride))
        offset = (queries[:, None] - keys[None]).abs()
        self.register_buffer("attention_bias_idxs_seg", offset[..., 0] * side + offset[..., 1])
        self.register_buffer("attention_biases", torch.zeros(heads, unread[1]))
        self.register_buffer("attention_bias_idxs", torch.ones(unread, dtype=torch.long))

    def forward(self, queries: int, keys: int) -> Tensor:
        """Biases (1, heads, queries, keys)."""
        index: Any = self.attention_bias_idxs_seg
        table = self.attention_biases_seg[:, index]
        return F.interpolate(table[None], size=(queries, keys), mode="bicubic")


class Attention(nn.Module):
    """EfficientFormer's attention; (B, N, C) to (B, N, C)."""

    def __init__(self, of: Any, side: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim, self.scale = of.num_heads, of.key_dim, of.val_dim, of.scale
        self.qkv, self.proj = of.qkv, of.proj
        self.biases = Biases(of.num_heads, side)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, self.num_heads, -1).permute(0, 2, 1, 3)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.val_dim], dim=3)
        attn = (q @ k.transpose(-2, -1)) * self.scale + self.biases(N, N)
        return self.proj((attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, -1))


class _Attention2d(nn.Module):
    """What the two attentions of V2 have in common: the parts of timm's module, and heads of flat maps."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.num_heads, self.scale = of.num_heads, of.scale
        self.q, self.k, self.v, self.v_local = of.q, of.k, of.v, of.v_local
        self.act, self.proj = of.act, of.proj

    def heads(self, x: Tensor) -> Tensor:
        """(B, heads * D, H, W) to (B, heads, H * W, D)."""
        return x.flatten(2).reshape(x.shape[0], self.num_heads, -1, x.shape[2] * x.shape[3]).transpose(-2, -1)

    def whole(self, x: Tensor, H: int, W: int) -> Tensor:
        """(B, heads, H * W, D) to (B, heads * D, H, W)."""
        return x.transpose(2, 3).reshape(x.shape[0], -1, H, W)


class Attention2d(_Attention2d):
    """V2's attention, at half the resolution where the stage asks for it; (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, of: Any, side: int) -> None:
        super().__init__(of)
        self.stride_conv = of.stride_conv
        self.talking_head1, self.talking_head2 = of.talking_head1, of.talking_head2
        self.biases = Biases(of.num_heads, side if of.stride_conv is None else ceil(side / 2))

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        size = x.shape[2:]
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        q, k, v = self.q(x), self.k(x), self.v(x)
        H, W = x.shape[2:]
        attn = self.heads(q) @ self.heads(k).transpose(-2, -1) * self.scale + self.biases(H * W, H * W)
        attn = self.talking_head2(self.talking_head1(attn).softmax(dim=-1))
        x = self.whole(attn @ self.heads(v), H, W) + self.v_local(v)
        if self.stride_conv is not None:  # twice the size where the map divides, as the official code has it
            x = F.interpolate(x, size=size, mode="bilinear")
        return self.proj(self.act(x))


class Attention2dDownsample(_Attention2d):
    """V2's attention between stages; (B, C, H, W) to (B, C', ceil(H / 2), ceil(W / 2))."""

    def __init__(self, of: Any, side: int) -> None:
        super().__init__(of)
        self.biases = Biases(of.num_heads, side, 2, (49, 196))

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        H, W = q.shape[2:]
        attn = self.heads(q) @ self.heads(k).transpose(-2, -1) * self.scale
        attn = attn + self.biases(attn.shape[-2], attn.shape[-1])
        x = self.whole(attn.softmax(dim=-1) @ self.heads(v), H, W) + self.v_local(v)
        return self.proj(self.act(x))


_REPLACED: Mapping[type, Any] = {
    efficientformer.Attention: Attention,
    efficientformer_v2.Attention2d: Attention2d,
    efficientformer_v2.Attention2dDownsample: Attention2dDownsample,
}


class Scale(nn.Module):
    """A layer scale in V2's official shape, (C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of (B, C, H, W)."""
        return x * self.gamma


def _replace_attention(module: nn.Module, side: int) -> None:
    for name, child in module.named_children():
        if type(child) in _REPLACED:
            setattr(module, name, _REPLACED[type(child)](child, side))
        else:
            _replace_attention(child, side)


def efficientformer_body(name: str, image: int) -> nn.Module:
    """timm's model without its head, its attention for any size; ``image`` is the side its biases were trained for."""
    body = timm.create_model(name, num_classes=0)
    body.norm = nn.Identity()
    _replace_attention(body.stages[3], image // 32)
    return body


def efficientformerv2_body(name: str, image: int) -> nn.Module:
    """timm's model without its head, its attention for any size; ``image`` is the side its biases were trained for."""
    body = timm.create_model(name, num_classes=0)
    body.norm = nn.Identity()
    for i, stage in enumerate(body.stages):
        _replace_attention(stage.downsample, ceil(image / 2 ** (i + 1)))  # the map that the downsampling is given
        _replace_attention(stage.blocks, ceil(image / 2 ** (i + 2)))
        for block in stage.blocks:
            for name in ("ls1", "ls2"):
                if isinstance(scale := getattr(block, name, None), efficientformer_v2.LayerScale2d):
                    setattr(block, name, Scale(len(scale.gamma)))
    return body
