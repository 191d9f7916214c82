"""SBCFormer: hourglass attention beside a full-size convolutional branch, for single-board computers.

Papers:
* `SBCFormer: Lightweight Network Capable of Full-size ImageNet Classification at 1 FPS on Single Board Computers`
  - https://arxiv.org/abs/2311.03747 (WACV 2024)

@inproceedings{lu2024sbcformer,
  title={SBCFormer: Lightweight Network Capable of Full-size ImageNet Classification at 1 FPS on Single Board
         Computers},
  author={Lu, Xiangyong and Suganuma, Masanori and Okatani, Takayuki},
  booktitle={Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision},
  pages={1123--1133},
  year={2024}
}

Official code: https://github.com/xyongLu/SBCFormer. This module states the architecture anew on timm's layers;
:func:`official_key` and :func:`official_aliases` say how its tensors are called in the official checkpoints.
"""

import logging
import math
import re
from collections import OrderedDict
from typing import Any, Self

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, get_device_dtype, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from repro.errors import ModelError
from repro.models.official import checkpoint_filter_fn

__all__ = ["SBCFormer"]

_logger = logging.getLogger(__name__)


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm; padded so that stride 1 keeps the size. ``[B, C, H, W]`` in and out."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.add_module(
            "conv", nn.Conv2d(in_chs, out_chs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False, **dd)
        )
        self.add_module("bn", nn.BatchNorm2d(out_chs, **dd))


class InvertedResidual(nn.Module):
    """Pointwise, depthwise 3x3, pointwise convolutions around a shortcut. ``[B, dim, H, W]`` in and out."""

    def __init__(self, dim: int, expand_ratio: int = 2, device: Any = None, dtype: Any = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        hidden = dim * expand_ratio
        self.conv_pw = ConvNorm(dim, hidden, **dd)
        self.act1 = nn.GELU()
        self.conv_dw = ConvNorm(hidden, hidden, 3, groups=hidden, **dd)
        self.act2 = nn.GELU()
        self.conv_pwl = ConvNorm(hidden, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, dim, H, W]`` to the same shape."""
        return x + self.conv_pwl(self.act2(self.conv_dw(self.act1(self.conv_pw(x)))))


class Attention(nn.Module):
    """The paper's modified attention: learned biases by offset, values strengthened by a depthwise convolution.

    Tokens ``[B, H * W, dim]`` in and out, on a grid that is fixed when the module is built, since there is one bias
    for each head and each distance ``(|dy|, |dx|)`` on it.

    As in the official code (and LeViT's, from which it comes) the biases are gathered into ``[heads, N, N]`` tables
    when the module enters eval mode, not at each forward: weights that are loaded into a model in eval mode take effect
    at its next ``eval()``. While training the biases are gathered at each step, so that they learn.

    The products are written out: at 49 tokens a fused kernel gains nothing, and operation counters see them.
    """

    # Types that TorchScript reads: this module cannot postpone the evaluation of its annotations.
    attention_bias_idxs: torch.Tensor
    bias_table: torch.Tensor

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        attn_ratio: int = 2,
        resolution: int | tuple[int, int] = 7,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.scale = key_dim**-0.5
        self.resolution = to_2tuple(resolution)
        self.qk_dim = 2 * key_dim * num_heads
        self.val_dim = attn_ratio * key_dim * num_heads

        self.qkv = nn.Conv2d(dim, self.qk_dim + self.val_dim, 1, **dd)
        self.dwconv = ConvNorm(self.val_dim, self.val_dim, 3, groups=self.val_dim, **dd)
        self.act = nn.GELU()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(self.val_dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

        num_tokens = self.resolution[0] * self.resolution[1]
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, num_tokens, **dd))
        self.register_buffer("attention_bias_idxs", self._offsets(device))
        self.register_buffer(
            "bias_table", torch.zeros(num_heads, num_tokens, num_tokens, **dd), persistent=False
        )  # of the zero biases above

    def _offsets(self, device: Any = None) -> torch.Tensor:
        """Column of ``attention_biases`` for each pair of tokens, int64 ``[N, N]``."""
        height, width = self.resolution
        y = torch.arange(height, device=device).repeat_interleave(width)
        x = torch.arange(width, device=device).repeat(height)
        return (y[:, None] - y[None, :]).abs() * width + (x[:, None] - x[None, :]).abs()

    @torch.no_grad()
    def train(self, mode: bool = True) -> Self:
        """Set the mode; entering eval mode gathers the bias tables from the biases as they are now."""
        super().train(mode)
        if not mode:
            self.bias_table = self.attention_biases[:, self.attention_bias_idxs]
        return self

    @torch.jit.ignore
    @torch.no_grad()
    def stale(self) -> bool:
        """Whether the module is in eval mode with tables of other biases than it has now."""
        if self.training or self.attention_biases.is_meta:
            return False
        return not torch.equal(self.bias_table, self.attention_biases[:, self.attention_bias_idxs])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, N, dim]`` to the same shape."""
        B, N, C = x.shape
        x = self.qkv(x.transpose(1, 2).reshape(B, C, self.resolution[0], self.resolution[1]))
        qk, v = x.split([self.qk_dim, self.val_dim], dim=1)
        q, k = qk.reshape(B, 2 * self.num_heads, self.key_dim, N).chunk(2, dim=1)
        v = (v + self.act(self.dwconv(v))).reshape(B, self.num_heads, -1, N)

        bias = self.attention_biases[:, self.attention_bias_idxs] if self.training else self.bias_table
        attn = (q * self.scale).transpose(-2, -1) @ k + bias
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = (attn @ v.transpose(-2, -1)).transpose(1, 2).reshape(B, N, self.val_dim)
        return self.proj_drop(self.proj(x))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP on tokens ``[B, N, dim]``."""

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        attn_ratio: int = 2,
        mlp_ratio: int = 4,
        resolution: int | tuple[int, int] = 7,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = Attention(dim, key_dim, num_heads, attn_ratio, resolution, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, dim * mlp_ratio, drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, N, dim]`` to the same shape."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Downsample(nn.Module):
    """Between stages: 3x3 convolution of stride 2, then BatchNorm. ``[B, C, H, W]`` to ``[B, C', H/2, W/2]``."""

    def __init__(self, in_chs: int, out_chs: int, device: Any = None, dtype: Any = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 3, 2, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(out_chs, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in_chs, H, W]`` to ``[B, out_chs, ceil(H / 2), ceil(W / 2)]``."""
        return self.norm(self.conv(x))


class SBCFormerStage(nn.Module):
    """One stage, the paper's SBCFormer block: a local branch at full size beside an hourglass of global attention.

    The hourglass pools the local map by ``pool_ratio`` to ``resolution``, mixes it, attends over it and brings it back
    to full size; it gates the local map, and both are joined by a pointwise convolution.
    ``[B, in_chs, H, W]`` in, ``[B, dim, H', W']`` out, H' and W' half of H and W where the stage downsamples.
    """

    def __init__(
        self,
        in_chs: int,
        dim: int,
        depth_local: int,
        depth_mixer: int,
        depth_attn: int,
        key_dim: int,
        num_heads: int,
        attn_ratio: int = 2,
        mlp_ratio: int = 4,
        expand_ratio: int = 2,
        pool_ratio: int = 1,
        resolution: int | tuple[int, int] = 7,
        downsample: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: list[float] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        drop_path = drop_path or [0.0] * depth_attn
        self.downsample = Downsample(in_chs, dim, **dd) if downsample else nn.Identity()
        self.local_blocks = nn.Sequential(*[InvertedResidual(dim, expand_ratio, **dd) for _ in range(depth_local)])
        self.pool = nn.AvgPool2d(pool_ratio) if pool_ratio > 1 else nn.Identity()
        # The mixer expands by 2 in every variant, also where the local blocks expand by 4.
        self.mixer = nn.Sequential(*[InvertedResidual(dim, 2, **dd) for _ in range(depth_mixer)])
        self.attn_blocks = nn.Sequential(
            *[
                TransformerBlock(
                    dim,
                    key_dim,
                    num_heads,
                    attn_ratio,
                    mlp_ratio,
                    resolution,
                    attn_drop=attn_drop,
                    proj_drop=proj_drop,
                    drop_path=drop_path[i],
                    **dd,
                )
                for i in range(depth_attn)
            ]
        )
        if pool_ratio > 1:
            self.upsample: nn.Module = nn.Sequential(
                OrderedDict(
                    conv=nn.ConvTranspose2d(dim, dim, pool_ratio, pool_ratio, groups=dim, **dd),
                    norm=nn.BatchNorm2d(dim, **dd),
                )
            )
        else:
            self.upsample = nn.Identity()
        self.proj = ConvNorm(dim, dim, **dd)
        self.gate = nn.Hardsigmoid()
        self.proj_fuse = ConvNorm(dim * 2, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in_chs, H, W]`` to ``[B, dim, H', W']``."""
        local = self.local_blocks(self.downsample(x))
        x = self.mixer(self.pool(local))
        B, C, H, W = x.shape
        x = self.attn_blocks(x.flatten(2).transpose(1, 2))
        x = self.upsample(x.transpose(1, 2).reshape(B, C, H, W))
        local = local * self.gate(self.proj(x))
        return self.proj_fuse(torch.cat([x, local], dim=1))


class SBCFormer(nn.Module):
    """SBCFormer (https://arxiv.org/abs/2311.03747).

    Images ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``. The attention's bias tables tie a model to
    ``img_size``, a multiple of 32 each way; a checkpoint fits only a model built for the size it was trained at.

    ``drop_rate`` is the dropout before the classifier, ``proj_drop_rate`` the one inside the attention blocks.

    Raises
    ------
    ModelError
        ``img_size`` is not a multiple of 32, ``global_pool`` is not ``"avg"`` or ``""``, or (eager forward) the input
        has another size than the model was built for.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (96, 160, 288),
        depths_local: tuple[int, ...] = (2, 2, 1),
        depths_mixer: tuple[int, ...] = (2, 2, 2),
        depths_attn: tuple[int, ...] = (2, 3, 2),
        num_heads: tuple[int, ...] = (3, 5, 6),
        key_dim: int = 16,
        attn_ratio: int = 2,
        mlp_ratio: int = 4,
        expand_ratio: int = 2,
        pool_ratios: tuple[int, ...] = (4, 2, 1),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.img_size = to_2tuple(img_size)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = _checked_pool(global_pool)
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.grad_checkpointing = False

        dim = embed_dims[0]
        self.stem = nn.Sequential(
            ConvNorm(in_chans, dim // 4, 3, 2, **dd),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 4, dim // 2, 3, 2, **dd),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 2, dim, 3, 2, **dd),
            nn.ReLU(inplace=True),
        )

        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths_attn), stagewise=True)
        # Each stage's map must divide into pooling windows, so that the upsampled map has the local one's size again.
        stride, in_chs = 8, dim
        multiple = math.lcm(*[stride * 2**i * ratio for i, ratio in enumerate(pool_ratios)])
        if any(size < multiple or size % multiple for size in self.img_size):
            raise ModelError(
                f"SBCFormer needs an img_size that is a multiple of {multiple}, not "
                + "x".join(map(str, self.img_size))
            )
        self.feature_info = []
        stages = []
        for i, dim in enumerate(embed_dims):
            stride *= 2 if i else 1
            height, width = (size // (stride * pool_ratios[i]) for size in self.img_size)
            stages.append(
                SBCFormerStage(
                    in_chs,
                    dim,
                    depths_local[i],
                    depths_mixer[i],
                    depths_attn[i],
                    key_dim,
                    num_heads[i],
                    attn_ratio,
                    mlp_ratio,
                    expand_ratio,
                    pool_ratios[i],
                    (height, width),
                    downsample=i > 0,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    drop_path=drop_paths[i],
                    **dd,
                )
            )
            self.feature_info.append({"num_chs": dim, "reduction": stride, "module": f"stages.{i}"})
            in_chs = dim
        self.stages = nn.Sequential(*stages)

        self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()

        self.apply(_init_weights)
        self.register_load_state_dict_post_hook(_warn_if_stale)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates."""
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(?:downsample|local_blocks)", (0,)),
                (r"^stages\.(\d+)\.mixer", (1,)),
                (r"^stages\.(\d+)\.attn_blocks", (2,)),
                (r"^stages\.(\d+)", (3,)),
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

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
        """Return the stages' maps, ``[B, embed_dims[i], H/8/2^i, W/8/2^i]``, and unless told otherwise the last map.

        ``indices`` takes the last n stages if int, all if None, else the listed ones; ``stop_early`` runs no stage
        beyond the last one taken. The final norm acts on the pooled vector, so ``norm`` changes nothing here.

        Raises ModelError for another ``output_fmt`` than NCHW and for an input of another size than ``img_size``.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"SBCFormer's features are NCHW, not {output_fmt}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        self._check_size(x)
        x = self.stem(x)
        intermediates = []
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = checkpoint(stage, x) if self.grad_checkpointing else stage(x)
            if i in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

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
    def _check_size(self, x: torch.Tensor) -> None:
        """Raise ModelError where ``x`` has not the size that the bias tables are for."""
        if not torch.jit.is_tracing() and tuple(x.shape[-2:]) != self.img_size:
            given, built = ("x".join(map(str, size)) for size in (x.shape[-2:], self.img_size))
            raise ModelError(f"the input is {given}, but this SBCFormer was built for {built}: pass img_size")

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in_chans, H, W]`` to ``[B, num_features, H/32, W/32]``."""
        if not torch.jit.is_scripting():
            self._check_size(x)
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in self.stages:
                x = checkpoint(stage, x)
        else:
            x = self.stages(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """``[B, num_features, h, w]`` to logits ``[B, num_classes]``; unpooled where ``global_pool`` is empty."""
        if self.global_pool == "avg":
            x = self.head_drop(self.norm(x.mean((2, 3))))
            return x if pre_logits else self.head(x)
        x = self.head_drop(self.norm(x.permute(0, 2, 3, 1)))
        if not pre_logits:
            x = self.head(x)
        return x.permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, in_chans, H, W]`` to ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))


def _checked_pool(global_pool: str) -> str:
    """Return ``global_pool``, which must be ``"avg"`` or ``""``."""
    if global_pool not in ("", "avg"):
        raise ModelError(f"SBCFormer pools by 'avg' or not at all (''), not by {global_pool!r}")
    return global_pool


def _init_weights(module: nn.Module) -> None:
    """Initialise as the official code does; transposed convolutions and norms keep torch's defaults."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _warn_if_stale(model: nn.Module, incompatible_keys: Any) -> None:
    """Say so when weights were loaded behind tables that eval mode had already gathered."""
    if any(isinstance(module, Attention) and module.stale() for module in model.modules()):
        _logger.warning(
            "weights loaded into an SBCFormer in eval mode: its attention keeps the old biases until eval() is called"
        )


_OFFICIAL_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^stem\.", "merging_blocks.0.stem."),
        (r"^stages\.(\d+)\.downsample\.", r"merging_blocks.\1."),
        (r"^stages\.(\d+)\.upsample\.conv\.", r"sbcformer_blocks.\1.convTrans."),
        (r"^stages\.(\d+)\.upsample\.norm\.", r"sbcformer_blocks.\1.norm."),
        (r"^stages\.", "sbcformer_blocks."),
        (r"\.local_blocks\.(\d+)\.", r".invres_blocks.InvRes_\1."),
        (r"\.mixer\.(\d+)\.", r".mixer.Mixer_\1."),
        (r"\.attn_blocks\.(\d+)\.", r".trans_blocks.MAttn_\1."),
        (r"\.conv_pw\.", ".pwconv1_bn."),
        (r"\.conv_dw\.", ".dwconv_bn."),
        (r"\.conv_pwl\.", ".pwconv2_bn."),
        (r"\.attn\.qkv\.", ".attn.pwconv."),
        (r"\.attn\.proj\.", ".attn.proj_out."),
    )
]


def official_key(key: str) -> str:
    """Map a state-dict key of :class:`SBCFormer` to the official checkpoint's."""
    for pattern, name in _OFFICIAL_NAMES:
        key = pattern.sub(name, key)
    return key


def official_aliases(model: SBCFormer) -> dict[str, str]:
    """Name the official prefixes that repeat others: the official model holds its stem and its last stage twice."""
    return {"patch_embed.": "merging_blocks.0.", "sbcformer_blk.": f"sbcformer_blocks.{len(model.stages) - 1}."}


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head",
        **kwargs,
    }


# The one released checkpoint (SBCFormer-B) lies behind a sharing page, not at an address that can be downloaded.
default_cfgs = generate_default_cfgs(
    {
        "sbcformer_xs.in1k": _cfg(),
        "sbcformer_s.in1k": _cfg(),
        "sbcformer_b.in1k": _cfg(),
        "sbcformer_l.in1k": _cfg(),
    }
)


def _create_sbcformer(variant: str, pretrained: bool = False, **kwargs: Any) -> SBCFormer:
    out_indices = kwargs.pop("out_indices", (0, 1, 2))
    return build_model_with_cfg(
        SBCFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **kwargs,
    )


@register_model
def sbcformer_xs(pretrained: bool = False, **kwargs: Any) -> SBCFormer:
    """Construct an SBCFormer-XS model (5.6 M parameters)."""
    model_args = {"embed_dims": (96, 160, 288), "depths_attn": (2, 3, 2), "num_heads": (3, 5, 6), "key_dim": 16}
    return _create_sbcformer("sbcformer_xs", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def sbcformer_s(pretrained: bool = False, **kwargs: Any) -> SBCFormer:
    """Construct an SBCFormer-S model (8.5 M parameters)."""
    model_args = {"embed_dims": (96, 192, 320), "depths_attn": (2, 4, 3), "num_heads": (3, 5, 7), "key_dim": 16}
    return _create_sbcformer("sbcformer_s", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def sbcformer_b(pretrained: bool = False, **kwargs: Any) -> SBCFormer:
    """Construct an SBCFormer-B model (13.8 M parameters)."""
    model_args = {"embed_dims": (128, 256, 384), "depths_attn": (2, 4, 3), "num_heads": (4, 6, 8), "key_dim": 24}
    return _create_sbcformer("sbcformer_b", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def sbcformer_l(pretrained: bool = False, **kwargs: Any) -> SBCFormer:
    """Construct an SBCFormer-L model (18.5 M parameters)."""
    model_args = {
        "embed_dims": (192, 288, 384),
        "depths_attn": (2, 4, 3),
        "num_heads": (4, 6, 8),
        "key_dim": 32,
        "expand_ratio": 4,
    }
    return _create_sbcformer("sbcformer_l", pretrained=pretrained, **dict(model_args, **kwargs))
