"""CMT

Paper: `CMT: Convolutional Neural Networks Meet Vision Transformers` - https://arxiv.org/abs/2107.06263

@inproceedings{guo2022cmt,
  title={CMT: Convolutional Neural Networks Meet Vision Transformers},
  author={Jianyuan Guo and Kai Han and Han Wu and Yehui Tang and Xinghao Chen and Yunhe Wang and Chang Xu},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2022}
}

Written from the architecture of the official implementation, https://github.com/ggjy/CMT.pytorch (MIT).
``official_key`` maps this module's state-dict keys to those of the official checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from repro.errors import ModelError
from repro.models import official

__all__ = ["CMT"]


class Stem(nn.Module):
    """Three 3x3 convolutions, the first of stride 2, each followed by GELU and BatchNorm (paper, Section 3.1).

    Maps ``(B, in_chs, H, W)`` to ``(B, out_chs, H / 2, W / 2)``, for the one image size that the position tables of the
    stages are made for.

    Raises:
        ModelError: the image has another size.
    """

    def __init__(
        self, in_chs: int, out_chs: int, img_size: tuple[int, int], device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.img_size = img_size
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(out_chs, **dd)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(out_chs, **dd)
        self.conv3 = nn.Conv2d(out_chs, out_chs, 3, padding=1, **dd)
        self.norm3 = nn.BatchNorm2d(out_chs, **dd)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images of the size that the model was built for to features at half of it."""
        _check_size(x, self.img_size)
        x = self.norm1(self.act(self.conv1(x)))
        x = self.norm2(self.act(self.conv2(x)))
        return self.norm3(self.act(self.conv3(x)))


class PatchEmbed(nn.Module):
    """2x2 convolution of stride 2 and LayerNorm, ``(B, in_chs, H, W)`` to tokens ``(B, H / 2 * W / 2, out_chs)``."""

    def __init__(self, in_chs: int, out_chs: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.proj = nn.Conv2d(in_chs, out_chs, 2, stride=2, **dd)
        self.norm = nn.LayerNorm(out_chs, **dd)  # eps 1e-5, unlike the blocks' norms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed ``x``."""
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class Attention(nn.Module):
    """Lightweight multi-head self-attention (paper, Section 3.2).

    Keys and values come from the tokens reduced by a depthwise convolution of stride ``sr_ratio``; a learned bias of
    every query and key position is added to the scores. It is written with plain products, not with
    ``scaled_dot_product_attention``, so that every counter sees them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: tuple[int, int],
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.feat_size = feat_size
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.k = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.sr = nn.Sequential(
                nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio, groups=dim, **dd), nn.BatchNorm2d(dim, **dd)
            )
        else:
            self.sr = nn.Sequential()

    def forward(self, x: torch.Tensor, relative_pos: torch.Tensor) -> torch.Tensor:
        """Map tokens ``(B, N, C)`` to the same shape; ``relative_pos`` is ``(heads, N, N / sr_ratio ** 2)``."""
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        if self.sr_ratio > 1:
            x = x.transpose(1, 2).reshape(B, C, self.feat_size[0], self.feat_size[1])
            x = self.sr(x).flatten(2).transpose(1, 2)
        k = self.k(x).reshape(B, -1, self.num_heads, self.head_dim).permute(0, 2, 3, 1)
        v = self.v(x).reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)
        attn = (q @ k) * self.scale + relative_pos
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x))


class Mlp(nn.Module):
    """Inverted residual feed-forward network (paper, Section 3.2), ``(B, C, H, W)`` to the same shape.

    1x1 expansion, 3x3 depthwise convolution with a shortcut, 1x1 projection.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.conv1 = nn.Sequential(nn.Conv2d(dim, hidden_dim, 1, **dd), nn.GELU(), nn.BatchNorm2d(hidden_dim, **dd))
        self.proj = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.proj_act = nn.GELU()
        self.proj_bn = nn.BatchNorm2d(hidden_dim, **dd)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden_dim, dim, 1, **dd), nn.BatchNorm2d(dim, **dd))
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        x = self.drop(self.conv1(x))
        x = self.proj_bn(self.proj_act(self.proj(x) + x))
        return self.drop(self.conv2(x))


class CMTBlock(nn.Module):
    """Local perception unit, attention and feed-forward network, each with a shortcut (paper, Section 3.2).

    Maps tokens ``(B, H * W, C)`` to the same shape. Maps are views of the tokens, channels last in memory.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: tuple[int, int],
        mlp_ratio: float = 4.0,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.feat_size = feat_size
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = Attention(dim, num_heads, feat_size, sr_ratio, qkv_bias, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def as_map(self, x: torch.Tensor) -> torch.Tensor:
        """View tokens ``(B, H * W, C)`` as a map ``(B, C, H, W)``."""
        B, _, C = x.shape
        return x.transpose(1, 2).reshape(B, C, self.feat_size[0], self.feat_size[1])

    def forward(self, x: torch.Tensor, relative_pos: torch.Tensor) -> torch.Tensor:
        """Map tokens ``(B, H * W, C)`` to the same shape; ``relative_pos`` as in the attention."""
        x = x + self.proj(self.as_map(x)).flatten(2).transpose(1, 2)
        x = x + self.drop_path1(self.attn(self.norm1(x), relative_pos))
        return x + self.drop_path2(self.mlp(self.as_map(self.norm2(x))).flatten(2).transpose(1, 2))


class CMTStage(nn.Module):
    """Patch embedding and blocks that share one position table, ``(B, in_chs, 2 H, 2 W)`` to ``(B, out_chs, H, W)``.

    ``feat_size`` is the ``(H, W)`` that the table is made for.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        depth: int,
        num_heads: int,
        feat_size: tuple[int, int],
        mlp_ratio: float,
        sr_ratio: int,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: tuple[float, ...] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.feat_size = feat_size
        height, width = feat_size
        self.patch_embed = PatchEmbed(in_chs, out_chs, **dd)
        self.relative_pos = nn.Parameter(
            torch.randn(num_heads, height * width, (height // sr_ratio) * (width // sr_ratio), **dd)
        )
        self.blocks = nn.ModuleList(
            [
                CMTBlock(
                    out_chs,
                    num_heads,
                    feat_size,
                    mlp_ratio=mlp_ratio,
                    sr_ratio=sr_ratio,
                    qkv_bias=qkv_bias,
                    proj_drop=proj_drop,
                    attn_drop=attn_drop,
                    drop_path=drop_path[i],
                    **dd,
                )
                for i in range(depth)
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_chs, 2 H, 2 W)`` to ``(B, out_chs, H, W)``."""
        x = self.patch_embed(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, self.relative_pos)
            else:
                x = block(x, self.relative_pos)
        B, _, C = x.shape
        return x.transpose(1, 2).reshape(B, C, self.feat_size[0], self.feat_size[1])


class CMT(nn.Module):
    """CMT classifier: ``(B, in_chans, H, W)`` images of one fixed size to ``(B, num_classes)`` logits.

    The attention bias of each stage is a table of every query and key position, so that a model is built for one input
    size, ``img_size``, and takes no other.

    Args:
        img_size: height and width of the input, or one number for both, in pixels; multiples of 32.
        in_chans: channels of the input image.
        num_classes: classes; 0 removes the classifier.
        global_pool: pooling before the classifier; ``""`` (with ``num_classes=0``) leaves the feature map.
        embed_dims: channels of each stage.
        stem_chs: channels of the stem.
        head_chs: channels of the 1x1 convolution before the pooling.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        mlp_ratios: hidden expansion of each stage's feed-forward networks.
        sr_ratios: stride at which each stage reduces the keys and values.
        qkv_bias: add a bias to queries, keys and values.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout inside the blocks.
        attn_drop_rate: dropout of the attention.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        device: where the parameters are created.
        dtype: type of the parameters.

    Raises:
        ModelError: ``img_size`` is not in multiples of 32, or an image has another size than ``img_size``.

    Source: paper, Section 3 and the official configurations.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (46, 92, 184, 368),
        stem_chs: int = 16,
        head_chs: int = 1280,
        depths: tuple[int, ...] = (2, 2, 10, 2),
        num_heads: tuple[int, ...] = (1, 2, 4, 8),
        mlp_ratios: tuple[float, ...] = (3.6, 3.6, 3.6, 3.6),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        drop_rate: float = 0.1,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        height, width = to_2tuple(img_size)
        if min(height, width) < 32 or height % 32 or width % 32:
            raise ModelError(f"CMT takes an img_size in multiples of 32 pixels, not {height}x{width}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        feature_info: list[dict[str, Any]] = []

        self.stem = Stem(in_chans, stem_chs, (height, width), **dd)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        in_chs = stem_chs
        for i, dim in enumerate(embed_dims):
            reduction = 4 * 2**i
            stages.append(
                CMTStage(
                    in_chs,
                    dim,
                    depths[i],
                    num_heads[i],
                    (height // reduction, width // reduction),
                    mlp_ratio=mlp_ratios[i],
                    sr_ratio=sr_ratios[i],
                    qkv_bias=qkv_bias,
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=tuple(rates[i]),
                    **dd,
                )
            )
            feature_info += [{"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}]
            in_chs = dim
        self.stages = nn.Sequential(*stages)
        self.feature_info = feature_info

        self.num_features = self.head_hidden_size = head_chs
        self.final_conv: nn.Module = nn.Conv2d(in_chs, head_chs, 1, **dd)
        self.final_norm: nn.Module = nn.BatchNorm2d(head_chs, **dd)
        self.final_act: nn.Module = nn.SiLU()
        self.head = ClassifierHead(head_chs, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.apply(_init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay: none. The names the official code lists are of another family's tables."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters by depth, for layer-wise learning rates."""
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(?:patch_embed|relative_pos)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^final_(?:conv|norm)", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one with ``num_classes`` outputs (0 removes it)."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the stages' outputs, with the final features unless ``intermediates_only``.

        Args:
            x: images, ``(B, in_chans, H, W)``.
            indices: the last n stages if an int, these stages if a sequence, every stage if None.
            norm: accepted for timm's interface; no norm fits a stage's output.
            stop_early: stop after the last stage asked for.
            output_fmt: only ``"NCHW"``.
            intermediates_only: return the list alone.
        """
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if not stop_early or max_index == len(self.stages) - 1:
            x = self.final_act(self.final_norm(self.final_conv(x)))
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that the intermediates ``indices`` do not need; return the indices taken."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_norm or prune_end:
            self.final_conv, self.final_norm, self.final_act = nn.Identity(), nn.Identity(), nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_norm or prune_end:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_chans, H, W)`` to features ``(B, num_features, H / 32, W / 32)``."""
        x = self.stem(x)
        x = self.stages(x)
        return self.final_act(self.final_norm(self.final_conv(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool the features and classify them; with ``pre_logits`` return the pooled features."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_chans, H, W)`` to ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _check_size(x: torch.Tensor, img_size: tuple[int, int]) -> None:
    """Refuse images that the position tables were not made for; a trace has fixed its size already."""
    if torch.jit.is_tracing():
        return
    height, width = x.shape[-2:]
    if height != img_size[0] or width != img_size[1]:
        raise ModelError(
            f"this CMT was built for {img_size[0]}x{img_size[1]} images, not {height}x{width}: "
            "its position tables have one size, pass img_size when building it"
        )


def _init_weights(module: nn.Module) -> None:
    """Truncated normal for linear layers, He for convolutions, as in the official code."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def official_key(key: str) -> str:
    """Map a state-dict key of this module to the key of the official checkpoint.

    There, the four stages are lettered and their parts lie side by side.
    """
    key = re.sub(r"^stages\.(\d+)\.(blocks|patch_embed|relative_pos)\b", lambda m: f"{m[2]}_{'abcd'[int(m[1])]}", key)
    key = re.sub(r"^stem\.", "stem_", key)
    key = re.sub(r"^final_conv\.", "_fc.", key)
    key = re.sub(r"^final_norm\.", "_bn.", key)
    return re.sub(r"^head\.fc\.", "head.", key)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Take the weights that the official evaluation takes out of a training checkpoint, under this module's keys.

    The official training script saves the averaged weights beside the trained ones, and evaluates the averaged ones
    where there are any. A bare state dict passes through.
    """
    if "model" in state_dict:
        averaged = state_dict.get("model_ema")
        state_dict = state_dict["model"] if averaged is None else averaged
    return official.checkpoint_filter_fn(state_dict, model)


def _create_cmt(variant: str, pretrained: bool = False, **kwargs: Any) -> CMT:
    return build_model_with_cfg(
        CMT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **kwargs,
    )


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    # The official evaluation resizes to 256 / 224 of the input size and crops the centre: 0.875.
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "fixed_input_size": True,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "mit",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "cmt_ti.in1k": _cfg(
            url="https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_tiny.pth",
            input_size=(3, 160, 160),
            pool_size=(5, 5),
        ),
        "cmt_xs.in1k": _cfg(
            url="https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/cmt_xs.pth",
            input_size=(3, 192, 192),
            pool_size=(6, 6),
        ),
    }
)


@register_model
def cmt_ti(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-Ti, at 160 px: 9.5 M parameters."""
    return _create_cmt("cmt_ti", pretrained=pretrained, **kwargs)


@register_model
def cmt_xs(pretrained: bool = False, **kwargs: Any) -> CMT:
    """CMT-XS, at 192 px: 15.2 M parameters."""
    model_args = {"embed_dims": (52, 104, 208, 416), "depths": (3, 3, 12, 3), "mlp_ratios": (3.77, 3.77, 3.77, 3.77)}
    return _create_cmt("cmt_xs", pretrained=pretrained, **dict(model_args, **kwargs))
