"""EdgeViT: local aggregation, sparse global attention, local propagation.

Papers:
* `EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers`
  - https://arxiv.org/abs/2205.03436 (ECCV 2022)

@inproceedings{pan2022edgevits,
  title={EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers},
  author={Pan, Junting and Bulat, Adrian and Tan, Fuwen and Zhu, Xiatian and Dudziak, Lukasz and Li, Hongsheng and
          Tzimiropoulos, Georgios and Martinez, Brais},
  booktitle={European Conference on Computer Vision},
  year={2022}
}

Official code: https://github.com/saic-fi/edgevit. This module states the architecture anew on timm's layers;
:func:`official_key` says how its tensors are called in the official checkpoints.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    DropPath,
    LayerNorm2d,
    Mlp,
    calculate_drop_path_rates,
    get_device_dtype,
    to_2tuple,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from repro.errors import ModelError
from repro.models.official import checkpoint_filter_fn

__all__ = ["EdgeViT"]


class PatchEmbed(nn.Module):
    """Non-overlapping patches, then LayerNorm over channels: ``[B, C, H, W]`` to ``[B, C', H/patch, W/patch]``."""

    def __init__(self, in_chs: int, out_chs: int, patch_size: int, device: Any = None, dtype: Any = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.proj = nn.Conv2d(in_chs, out_chs, patch_size, patch_size, **dd)
        # 1e-5 here and after the propagation, 1e-6 in the blocks.
        self.norm = LayerNorm2d(out_chs, eps=1e-5, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in_chs, H, W]`` to ``[B, out_chs, H/patch, W/patch]``."""
        return self.norm(self.proj(x))


class LocalAgg(nn.Module):
    """Local aggregation by pointwise and 5x5 depthwise convolutions, then a convolutional MLP (section 3.2).

    ``[B, dim, H, W]`` in and out.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.conv1 = nn.Conv2d(dim, dim, 1, **dd)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, **dd)
        self.conv2 = nn.Conv2d(dim, dim, 1, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, use_conv=True, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, dim, H, W]`` to the same shape."""
        x = x + self.pos_embed(x)
        x = x + self.drop_path1(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class GlobalSparseAttention(nn.Module):
    """Attention among one token of each ``sr_ratio`` x ``sr_ratio`` window, spread back over it (section 3.2).

    The sampled token is the window's first; a transposed depthwise convolution propagates it. Tokens
    ``[B, H, W, dim]`` in, ``[B, H * W, dim]`` out; H and W are multiples of ``sr_ratio``. With ``sr_ratio`` 1 it is
    plain attention.

    The products are written out: at 196 tokens and fewer a fused kernel gains little, and operation counters see them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.sr_ratio = sr_ratio
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        if sr_ratio > 1:
            self.local_prop: nn.Module = nn.ConvTranspose2d(dim, dim, sr_ratio, sr_ratio, groups=dim, **dd)
            self.norm: nn.Module = nn.LayerNorm(dim, eps=1e-5, **dd)
        else:
            self.local_prop = nn.Identity()
            self.norm = nn.Identity()
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, H, W, dim]`` to ``[B, H * W, dim]``."""
        if self.sr_ratio > 1:
            x = x[:, :: self.sr_ratio, :: self.sr_ratio]
        B, H, W, C = x.shape
        qkv = self.qkv(x.reshape(B, H * W, C)).reshape(B, H * W, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(B, H * W, C)
        if self.sr_ratio > 1:
            x = self.local_prop(x.transpose(1, 2).reshape(B, C, H, W))
            x = self.norm(x.flatten(2).transpose(1, 2))
        return self.proj_drop(self.proj(x))


class SelfAttn(nn.Module):
    """Sparse global attention, local propagation and MLP in pre-norm form (section 3.2). ``[B, dim, H, W]``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = GlobalSparseAttention(dim, num_heads, sr_ratio, qkv_bias, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, dim, H, W]`` to the same shape."""
        x = x + self.pos_embed(x)
        B, C, H, W = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.drop_path1(self.attn(self.norm1(x).reshape(B, H, W, C)))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x.transpose(1, 2).reshape(B, C, H, W)


class LGLBlock(nn.Module):
    """Local-global-local bottleneck (section 3.2, figure 2); without the local part where nothing is sampled.

    ``[B, dim, H, W]`` in and out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.local_agg = LocalAgg(dim, mlp_ratio, proj_drop, drop_path, **dd) if sr_ratio > 1 else nn.Identity()
        self.self_attn = SelfAttn(dim, num_heads, sr_ratio, mlp_ratio, qkv_bias, attn_drop, proj_drop, drop_path, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, dim, H, W]`` to the same shape."""
        return self.self_attn(self.local_agg(x))


class EdgeViTStage(nn.Module):
    """Patch embedding (but for the first stage, which the stem feeds) and blocks: ``[B, C, H, W]`` to NCHW."""

    def __init__(
        self,
        in_chs: int,
        dim: int,
        depth: int,
        num_heads: int,
        sr_ratio: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        downsample: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: list[float] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        drop_path = drop_path or [0.0] * depth
        self.grad_checkpointing = False
        self.downsample = PatchEmbed(in_chs, dim, 2, **dd) if downsample else nn.Identity()
        self.blocks = nn.Sequential(
            *[
                LGLBlock(dim, num_heads, sr_ratio, mlp_ratio, qkv_bias, attn_drop, proj_drop, drop_path[i], **dd)
                for i in range(depth)
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in_chs, H, W]`` to ``[B, dim, H', W']``, halved where the stage downsamples."""
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class EdgeViT(nn.Module):
    """EdgeViT (https://arxiv.org/abs/2205.03436, section 3).

    Images ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``. No table is tied to the input's size: H and W may be
    any multiples of 32, since each stage's map must divide into its sampling windows. ``img_size`` is the nominal size.

    ``drop_rate`` is the dropout before the classifier, ``pos_drop_rate`` the one after the stem, ``proj_drop_rate`` the
    one inside the blocks.

    Raises
    ------
    ModelError
        ``img_size``, or (eager forward) the input, is not a multiple of 32, or ``global_pool`` is not ``"avg"`` or
        ``""``.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (36, 72, 144, 288),
        depths: tuple[int, ...] = (1, 1, 3, 2),
        head_dim: int = 36,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        sr_ratios: tuple[int, ...] = (4, 2, 2, 1),
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = _checked_pool(global_pool)
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.size_multiple = math.lcm(*[4 * 2**i * ratio for i, ratio in enumerate(sr_ratios)])
        if img_size is not None:
            self._check_size(to_2tuple(img_size))

        self.stem = PatchEmbed(in_chans, embed_dims[0], 4, **dd)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.feature_info = []
        stages = []
        in_chs = embed_dims[0]
        for i, dim in enumerate(embed_dims):
            stages.append(
                EdgeViTStage(
                    in_chs,
                    dim,
                    depths[i],
                    dim // head_dim,
                    sr_ratios[i],
                    mlp_ratio,
                    qkv_bias,
                    downsample=i > 0,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    drop_path=drop_paths[i],
                    **dd,
                )
            )
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"})
            in_chs = dim
        self.stages = nn.Sequential(*stages)

        self.norm: nn.Module = nn.BatchNorm2d(self.num_features, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()

        self.apply(_init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name the parameters to leave undecayed beyond biases and norms: none.

        The official code lists ``pos_embed`` and ``cls_token``, but no parameter of it bears either name.
        """
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates."""
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier, ``nn.Identity`` where there are no classes."""
        return self.head

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, device: Any = None, dtype: Any = None
    ) -> None:
        """Replace the classifier by a fresh one, and the pooling (``"avg"`` or ``""``) where given.

        Raises ModelError for another pooling.
        """
        dd = get_device_dtype(self, device=device, dtype=dtype)
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the stages' maps, ``[B, embed_dims[i], H/4/2^i, W/4/2^i]``, and unless told otherwise the features.

        ``indices`` takes the last n stages if int, all if None, else the listed ones; ``norm`` applies the final norm
        to the last stage's map; ``stop_early`` runs no stage beyond the last one taken.

        Raises ModelError for another ``output_fmt`` than NCHW and for an input that is no multiple of 32.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"EdgeViT's features are NCHW, not {output_fmt}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        self._check_size((x.shape[-2], x.shape[-1]))
        last = len(self.stages) - 1
        x = self.pos_drop(self.stem(x))
        intermediates = []
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(self.norm(x) if norm and i == last else x)
        if intermediates_only:
            return intermediates
        if not stop_early or max_index == last:
            x = self.norm(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that ``indices`` does not need, and return the stages taken."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_norm or prune_end:
            self.norm = nn.Identity()
        if prune_head or prune_end:
            self.reset_classifier(0, "")
        return take_indices

    @torch.jit.ignore
    def _check_size(self, size: tuple[int, int]) -> None:
        """Raise ModelError where height or width does not divide into every stage's sampling windows."""
        if not torch.jit.is_tracing() and any(n < 1 or n % self.size_multiple for n in size):
            raise ModelError(
                f"EdgeViT needs height and width in multiples of {self.size_multiple}, not {size[0]}x{size[1]}"
            )

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in_chans, H, W]`` to ``[B, num_features, H/32, W/32]``."""
        if not torch.jit.is_scripting():
            self._check_size((x.shape[-2], x.shape[-1]))
        return self.norm(self.stages(self.pos_drop(self.stem(x))))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """``[B, num_features, h, w]`` to logits ``[B, num_classes]``; unpooled where ``global_pool`` is empty."""
        if self.global_pool == "avg":
            x = self.head_drop(x.mean((2, 3)))
            return x if pre_logits else self.head(x)
        x = self.head_drop(x)
        if pre_logits:
            return x
        return self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in_chans, H, W]`` to ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))


def _checked_pool(global_pool: str) -> str:
    """Return ``global_pool``, which must be ``"avg"`` or ``""``."""
    if global_pool not in ("", "avg"):
        raise ModelError(f"EdgeViT pools by 'avg' or not at all (''), not by {global_pool!r}")
    return global_pool


def _init_weights(module: nn.Module) -> None:
    """Initialise as the official code does: linear layers; convolutions and norms keep torch's defaults."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def official_key(key: str) -> str:
    """Map a state-dict key of :class:`EdgeViT` to the official checkpoint's, which numbers stages from 1."""
    key = re.sub(r"^stem\.", "stages.0.downsample.", key)
    key = re.sub(r"^stages\.(\d+)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}.", key)
    key = re.sub(r"^stages\.(\d+)\.blocks\.", lambda m: f"blocks{int(m[1]) + 1}.", key)
    for own, official in (
        (".local_agg.", ".LocalAgg."),
        (".self_attn.", ".SelfAttn."),
        (".local_prop.", ".LocalProp."),
    ):
        key = key.replace(own, official)
    return key


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.proj",
        "classifier": "head",
        **kwargs,
    }


# The official repository releases no checkpoints.
default_cfgs = generate_default_cfgs(
    {
        "edgevit_xxs.in1k": _cfg(),
        "edgevit_xs.in1k": _cfg(),
    }
)


def _create_edgevit(variant: str, pretrained: bool = False, **kwargs: Any) -> EdgeViT:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        EdgeViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **kwargs,
    )


@register_model
def edgevit_xxs(pretrained: bool = False, **kwargs: Any) -> EdgeViT:
    """Construct an EdgeViT-XXS model (4.1 M parameters)."""
    model_args = {"embed_dims": (36, 72, 144, 288), "depths": (1, 1, 3, 2), "head_dim": 36}
    return _create_edgevit("edgevit_xxs", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def edgevit_xs(pretrained: bool = False, **kwargs: Any) -> EdgeViT:
    """Construct an EdgeViT-XS model (6.8 M parameters)."""
    model_args = {"embed_dims": (48, 96, 240, 384), "depths": (1, 1, 3, 1), "head_dim": 48}
    return _create_edgevit("edgevit_xs", pretrained=pretrained, **dict(model_args, **kwargs))
