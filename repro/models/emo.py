"""EMO

Paper: `Rethinking Mobile Block for Efficient Attention-based Models` - https://arxiv.org/abs/2301.01146

@inproceedings{zhang2023emo,
  title={Rethinking Mobile Block for Efficient Attention-based Models},
  author={Zhang, Jiangning and Li, Xiangtai and Li, Jian and Liu, Liang and Xue, Zhucun and Zhang, Boshen and
          Jiang, Zhengkai and Huang, Tianxin and Wang, Yabiao and Wang, Chengjie},
  booktitle={ICCV},
  year={2023}
}

The layout of the checkpoints is that of the official implementation at https://github.com/zhangzjn/EMO
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    ConvNormAct,
    DropPath,
    LayerNorm2d,
    SqueezeExcite,
    calculate_drop_path_rates,
    create_act_layer,
    get_device_dtype,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, checkpoint, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn
from torch.nn import functional as F

from repro.errors import ModelError
from repro.models import official

__all__ = ["Emo"]

_OFFICIAL_NAMES = (
    (r"^stem\.0\.conv\.", "stage0.0.convs.0.0."),
    (r"^stem\.0\.bn\.", "stage0.0.convs.0.1."),
    (r"^stem\.1\.", "stage0.1."),
    # the official layer norm of the last two stages, and the final one, wrap one level more than its batch norm
    (r"^stages\.([23])\.(\d+)\.norm\.", r"stages.\1.\2.norm.norm."),
    (r"^norm\.", "norm.norm."),
    (r"\.attn\.qk\.", ".qk.conv."),
    (r"\.(v|proj)\.", r".\1.conv."),
    (r"\.conv_dw\.conv\.", ".conv_local.conv."),
    (r"\.conv_dw\.bn\.", ".conv_local.norm."),
    (r"\.se\.fc1\.", ".se.conv_reduce."),
    (r"\.se\.fc2\.", ".se.conv_expand."),
)


def official_key(key: str) -> str:
    """Map a state-dict key of :class:`Emo` to the official checkpoint's key for the same tensor."""
    for pattern, name in _OFFICIAL_NAMES:
        key = re.sub(pattern, name, key)
    # the official code counts the stem as stage 0
    return re.sub(r"^stages\.(\d+)", lambda match: f"stage{int(match[1]) + 1}", key)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename an official checkpoint's keys to the model's own; a training checkpoint's weights are under ``net``."""
    return official.checkpoint_filter_fn(state_dict.get("net", state_dict), model)


class GridAttention(nn.Module):
    """Multi-head attention inside dilated windows, with the features themselves as values (paper, Section 2.3).

    A window takes every n-th row and column, n being the number of windows along a side, so that it spans the whole
    map. Maps that no whole number of windows covers are padded with zeros on the right and below; as in the official
    code the padding is not masked. There is no value projection: the block's expansion convolution, applied to the
    result, is one, since it acts on channels and attention on positions.

    Shapes: ``[B, C, H, W]`` to ``[B, C, H, W]``.

    Raises:
        ModelError: ``dim`` is not a multiple of ``head_dim``.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        window_size: int = 7,
        attn_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim % head_dim:
            raise ModelError(f"{dim} channels do not split into attention heads of width {head_dim}")
        self.num_heads = dim // head_dim
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.window_size = window_size
        self.qk = nn.Conv2d(dim, 2 * dim, 1, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        size = self.window_size
        pad_h, pad_w = -H % size, -W % size
        if pad_h > 0 or pad_w > 0:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        rows, cols = (H + pad_h) // size, (W + pad_w) // size

        # Batch and channels stay in one axis while windows are cut and put together: Core ML takes at most five axes.
        # The windows' order in the batch does not matter.
        qk = self.qk(x).reshape(-1, size, rows, size, cols).permute(2, 4, 0, 1, 3)
        q, k = qk.reshape(-1, 2, self.num_heads, self.head_dim, size * size).unbind(1)
        v = x.reshape(-1, size, rows, size, cols).permute(2, 4, 0, 1, 3)
        v = v.reshape(-1, self.num_heads, self.head_dim, size * size)

        # Not the fused operator: counters of operations do not know it, and windows of 49 positions gain nothing by it.
        attn = (q * self.scale).transpose(-2, -1) @ k
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = v @ attn.transpose(-2, -1)

        x = x.reshape(rows, cols, B * C, size, size).permute(2, 3, 0, 4, 1)
        x = x.reshape(B, C, H + pad_h, W + pad_w)
        if pad_h > 0 or pad_w > 0:
            x = x[:, :, :H, :W]
        return x


class InvertedResidualMobileBlock(nn.Module):
    """iRMB: an inverted residual block whose expanded features may be mixed by attention (paper, Section 2.3).

    Both the block and its depthwise convolution have a shortcut where stride and widths allow.

    Shapes: ``[B, dim, H, W]`` to ``[B, dim_out, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        norm_layer: Callable[..., nn.Module] | None,
        act_layer: str,
        exp_ratio: float = 1.0,
        expand: bool = True,
        kernel_size: int = 3,
        stride: int = 1,
        head_dim: int | None = None,
        window_size: int = 7,
        use_se: bool = False,
        skip: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        dim_mid = int(dim * exp_ratio)
        self.has_skip = skip and stride == 1 and dim == dim_out
        self.norm = norm_layer(dim, **dd) if norm_layer is not None else nn.Identity()
        self.attn = GridAttention(dim, head_dim, window_size, attn_drop, **dd) if head_dim else nn.Identity()
        self.v = nn.Conv2d(dim, dim_mid, 1, **dd) if expand else nn.Identity()
        self.act = create_act_layer(act_layer, inplace=True) if expand else nn.Identity()
        self.conv_dw = ConvNormAct(
            dim_mid,
            dim_mid,
            kernel_size,
            stride=stride,
            groups=dim_mid,
            norm_kwargs={"eps": 1e-6},
            act_layer=nn.SiLU,
            **dd,
        )
        self.se = SqueezeExcite(dim_mid, rd_channels=dim_mid, act_layer=act_layer, **dd) if use_se else nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)
        self.proj = nn.Conv2d(dim_mid, dim_out, 1, bias=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        x = self.act(self.v(self.attn(self.norm(x))))
        local = self.se(self.conv_dw(x))
        x = x + local if self.has_skip else local
        x = self.proj(self.proj_drop(x))
        if self.has_skip:
            x = shortcut + self.drop_path(x)
        return x


class Emo(nn.Module):
    """EMO: four stages of iRMB after a stem of stride 2; the last two stages attend inside windows.

    Any input size will do. ``forward`` maps ``[B, in_chans, H, W]`` to ``[B, num_classes]``, ``forward_features`` to
    ``[B, num_features, H / 32, W / 32]``.

    Args:
        depths: Blocks of each stage; the first block of a stage halves the resolution, doubles the expansion and
            does not attend.
        embed_dims: Width of each stage.
        exp_ratios: Expansion of each stage's blocks.
        head_dims: Width of an attention head for each stage, None where the stage does not attend.
        norm_layers: Normalisation before each stage's blocks, ``bn`` or ``ln``; the last one is the final norm's too.
        act_layers: Activation after each stage's expansion, by timm's name.
        kernel_sizes: Depthwise kernel of each stage; the stem uses the first.
        drop_rate: Dropout before the classifier. The official recipe uses none.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0. The official recipe trains with
            0.04036 (1M) and 0.05 (the others).

    Raises:
        ModelError: a width that the heads do not divide, or pooling other than ``avg`` (``''``: none, without a
            classifier).
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        embed_dims: tuple[int, ...],
        exp_ratios: tuple[float, ...],
        head_dims: tuple[int | None, ...],
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem_dim: int = 24,
        norm_layers: tuple[str, ...] = ("bn", "bn", "ln", "ln"),
        act_layers: tuple[str, ...] = ("silu", "silu", "gelu", "gelu"),
        kernel_sizes: tuple[int, ...] = (3, 3, 5, 5),
        window_size: int = 7,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        norms = {"bn": partial(nn.BatchNorm2d, eps=1e-6), "ln": partial(LayerNorm2d, eps=1e-6)}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.grad_checkpointing = False
        self._check_head()

        self.stem = nn.Sequential(
            ConvNormAct(
                in_chans,
                stem_dim,
                kernel_sizes[0],
                stride=2,
                bias=True,
                apply_act=False,
                norm_kwargs={"eps": 1e-6},
                **dd,
            ),
            InvertedResidualMobileBlock(
                stem_dim,
                stem_dim,
                norm_layer=None,
                act_layer=act_layers[0],
                expand=False,
                kernel_size=kernel_sizes[0],
                use_se=True,
                skip=False,
                proj_drop=proj_drop_rate,
                **dd,
            ),
        )

        dim = stem_dim
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        feature_info: list[dict[str, Any]] = []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(
                    InvertedResidualMobileBlock(
                        dim,
                        embed_dims[i],
                        norm_layer=norms[norm_layers[i]],
                        act_layer=act_layers[i],
                        exp_ratio=exp_ratios[i] * (2 if j == 0 else 1),
                        kernel_size=kernel_sizes[i],
                        stride=2 if j == 0 else 1,
                        head_dim=None if j == 0 else head_dims[i],
                        window_size=window_size,
                        skip=j > 0,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                        drop_path=rates[i][j],
                        **dd,
                    )
                )
                dim = embed_dims[i]
            stages.append(nn.Sequential(*blocks))
            feature_info.append({"num_chs": dim, "reduction": 2 ** (i + 2), "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.feature_info = feature_info

        self.num_features = self.head_hidden_size = dim
        self.norm = norms[norm_layers[-1]](dim, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.apply(self._init_weights)

    def _check_head(self) -> None:
        if self.global_pool not in ("", "avg"):
            raise ModelError(f"EMO pools by 'avg' or not at all (''), not by {self.global_pool!r}")
        if not self.global_pool and self.num_classes > 0:
            raise ModelError("EMO's classifier needs pooled features: global_pool='' goes with num_classes=0")

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        # Convolutions keep PyTorch's default, as in the official code.
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for layer-wise learning rates."""
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(
        self,
        num_classes: int,
        global_pool: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Replace the classifier by a new one for ``num_classes``, 0 for none.

        Raises:
            ModelError: pooling is neither ``avg`` nor ``''``, or ``''`` with a classifier.
        """
        dd = get_device_dtype(self, device=device, dtype=dtype)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self._check_head()
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self._init_weights(self.head)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the stages' feature maps, alone or after the final features.

        Args:
            x: ``[B, in_chans, H, W]``.
            indices: Stages from 0; the last n if an int, all if None.
            norm: Apply the final norm to the last stage's map.
            stop_early: Leave out the stages after the last map that is asked for.
            output_fmt: ``NCHW`` alone.
            intermediates_only: Return the maps alone.

        Raises:
            ModelError: another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"EMO's feature maps are NCHW, not {output_fmt}")
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = checkpoint(stage, x) if self.grad_checkpointing else stage(x)
            if i in take:
                intermediates.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        if intermediates_only:
            return intermediates
        if last == len(self.stages) - 1 or not stop_early:
            x = self.norm(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the feature maps of the stages ``indices`` do not need."""
        take, last = feature_take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or cut:
            self.norm = nn.Identity()
        if prune_head or cut:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised map of the last stage, ``[B, num_features, H / 32, W / 32]``."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x)
        else:
            x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool and classify: ``[B, num_classes]``, or ``[B, num_features]`` with ``pre_logits``."""
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, ``[B, num_classes]``, for images ``[B, in_chans, H, W]``."""
        return self.forward_head(self.forward_features(x))


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
        "first_conv": "stem.0.conv",
        "classifier": "head",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        f"emo_{size.lower()}.in1k": _cfg(
            url=f"https://github.com/zhangzjn/EMO/raw/main/resources/EMO_{size}/net.pth",
        )
        for size in ("1M", "2M", "5M", "6M")
    }
)


def _create_emo(variant: str, pretrained: bool = False, **kwargs: Any) -> Emo:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        Emo,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **kwargs,
    )


@register_model
def emo_1m(pretrained: bool = False, **kwargs: Any) -> Emo:
    """EMO-1M (paper, Section 2.4)."""
    model_args = {
        "depths": (2, 2, 8, 3),
        "embed_dims": (32, 48, 80, 168),
        "exp_ratios": (2.0, 2.5, 3.0, 3.5),
        "head_dims": (None, None, 20, 21),
    }
    return _create_emo("emo_1m", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def emo_2m(pretrained: bool = False, **kwargs: Any) -> Emo:
    """EMO-2M (paper, Section 2.4)."""
    model_args = {
        "depths": (3, 3, 9, 3),
        "embed_dims": (32, 48, 120, 200),
        "exp_ratios": (2.0, 2.5, 3.0, 3.5),
        "head_dims": (None, None, 20, 20),
    }
    return _create_emo("emo_2m", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def emo_5m(pretrained: bool = False, **kwargs: Any) -> Emo:
    """EMO-5M (paper, Section 2.4)."""
    model_args = {
        "depths": (3, 3, 9, 3),
        "embed_dims": (48, 72, 160, 288),
        "exp_ratios": (2.0, 3.0, 4.0, 4.0),
        "head_dims": (None, None, 32, 32),
    }
    return _create_emo("emo_5m", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def emo_6m(pretrained: bool = False, **kwargs: Any) -> Emo:
    """EMO-6M, of the official code: EMO-5M with a wider, deeper-expanding last stage."""
    model_args = {
        "depths": (3, 3, 9, 3),
        "embed_dims": (48, 72, 160, 320),
        "exp_ratios": (2.0, 3.0, 4.0, 5.0),
        "head_dims": (None, None, 20, 32),
    }
    return _create_emo("emo_6m", pretrained=pretrained, **dict(model_args, **kwargs))
