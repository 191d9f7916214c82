"""CAS-ViT: convolutional additive self-attention.

Paper: `CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications`
- https://arxiv.org/abs/2408.03703

@article{zhang2024cas,
  title={CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications},
  author={Zhang, Tianfang and Li, Lei and Zhou, Yang and Liu, Wentao and Qian, Chen and Ji, Xiangyang},
  journal={arXiv preprint arXiv:2408.03703},
  year={2024}
}

The architecture follows the official code at https://github.com/Tianfang-Zhang/CAS-ViT, where the variants are called
``rcvit_xs``, ``rcvit_s``, ``rcvit_m`` and ``rcvit_t``. It is fully convolutional, so that any input size works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from repro.errors import ModelError
from repro.models.official import checkpoint_filter_fn

__all__ = ["CasVit"]

Logits = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2: ``[B, in_chans, H, W]`` to ``[B, dim, H/4, W/4]``."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.act2 = nn.ReLU(inplace=True)


class Downsample(nn.Sequential):
    """Patch embedding between stages: ``[B, in_dim, H, W]`` to ``[B, dim, H/2, W/2]``."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)


class SpatialGate(nn.Module):
    """Spatial operation of the paper's token mixer: each position is weighed by one sigmoid, for all channels.

    Shapes: ``[B, dim, H, W]`` to the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.BatchNorm2d(dim)
        self.act = nn.ReLU(inplace=True)
        self.to_gate = nn.Conv2d(dim, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh the positions of ``x``."""
        gate = self.to_gate(self.act(self.norm(self.dwconv(x))))
        return x * gate.sigmoid()


class ChannelGate(nn.Module):
    """Channel operation of the paper's token mixer: squeeze and excitation with one full-width layer.

    Shapes: ``[B, dim, H, W]`` to the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.to_gate = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh the channels of ``x``."""
        return x * self.to_gate(self.pool(x)).sigmoid()


class AdditiveAttention(nn.Module):
    """Convolutional additive token mixer (CATM): gated query and key are added, not multiplied.

    The sum, mixed by a depthwise convolution, weighs the value element by element, so that the cost is linear in the
    number of positions. Shapes: ``[B, dim, H, W]`` to the same.
    """

    def __init__(self, dim: int, qkv_bias: bool = False, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias)
        self.gate_q = nn.Sequential(SpatialGate(dim), ChannelGate(dim))
        self.gate_k = nn.Sequential(SpatialGate(dim), ChannelGate(dim))
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the tokens of ``x``."""
        q, k, v = self.qkv(x).chunk(3, dim=1)
        similarity = self.dwconv(self.gate_q(q) + self.gate_k(k))
        return self.proj_drop(self.proj(similarity * v))


class LocalPerception(nn.Sequential):
    """Local branch at the head of a block: 1x1, depthwise 3x3 and 1x1 convolutions.

    Shapes: ``[B, dim, H, W]`` to the same.
    """

    def __init__(self, dim: int, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.norm = nn.BatchNorm2d(dim)
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = act_layer()
        self.conv2 = nn.Conv2d(dim, dim, 1)


class Block(nn.Module):
    """CAS block: local branch, additive attention and MLP, each with a skip connection.

    Shapes: ``[B, dim, H, W]`` to the same. As in the official code stochastic depth spares the local branch.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.local = LocalPerception(dim, act_layer=act_layer)
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = AdditiveAttention(dim, qkv_bias=qkv_bias, proj_drop=proj_drop)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop, use_conv=True)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        x = x + self.local(x)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """An optional downsampling to ``dim`` channels and half the size, then ``len(drop_path)`` blocks."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        drop_path: Sequence[float],
        downsample: bool,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = Downsample(in_dim, dim) if downsample else nn.Identity()
        self.blocks = nn.Sequential(
            *[
                Block(
                    dim,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    proj_drop=proj_drop,
                    drop_path=rate,
                    act_layer=act_layer,
                )
                for rate in drop_path
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the stage."""
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class CasVit(nn.Module):
    """CAS-ViT classifier: ``[B, in_chans, H, W]`` images to ``[B, num_classes]`` logits.

    Parameters
    ----------
    depths, dims:
        Blocks and channels of the four stages.
    drop_rate, proj_drop_rate, drop_path_rate:
        Dropout before the head, dropout in attention and MLP, and the last block's stochastic depth.
    global_pool:
        ``"avg"``, or ``""`` for no pooling, which goes with ``num_classes=0`` only.
    distillation:
        Build the second head that the official models train against a teacher. Evaluation averages the two heads.

    Raises
    ------
    ModelError
        The pooling is unknown, or absent before a classifier.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: type[nn.Module] = nn.GELU,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        distillation: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.distillation = distillation
        self.distilled_training = False
        self.feature_info = [
            {"num_chs": dim, "reduction": 2 ** (i + 2), "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        # One place for the device serves every layer, so that the layers need not hand it on.
        with torch.device(device) if device else nullcontext():
            self.stem = Stem(in_chans, dims[0])
            self.stages = nn.Sequential(
                *[
                    Stage(
                        dims[max(i - 1, 0)],
                        dim,
                        drop_path=rates[i],
                        downsample=i > 0,
                        mlp_ratio=mlp_ratio,
                        qkv_bias=qkv_bias,
                        proj_drop=proj_drop_rate,
                        act_layer=act_layer,
                    )
                    for i, dim in enumerate(dims)
                ]
            )
            self.norm: nn.Module = nn.BatchNorm2d(dims[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.to(dtype=dtype)
        self._set_classifier(num_classes, global_pool)

    def _make_head(self, num_classes: int) -> nn.Linear:
        like = next(self.stem.parameters())
        head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head.train(self.training)

    def _set_classifier(self, num_classes: int, global_pool: str) -> None:
        if global_pool not in ("", "avg"):
            raise ModelError(f"CAS-ViT pools with 'avg' or not at all (''), not with {global_pool!r}")
        if not global_pool and num_classes:
            raise ModelError("CAS-ViT without pooling has no classifier: pass num_classes=0")
        self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = self._make_head(num_classes) if num_classes else nn.Identity()
        self.head_dist = self._make_head(num_classes) if num_classes and self.distillation else None

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names that take no weight decay besides the vectors: none."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates, in timm's form."""
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
        """Trade time for memory in training: recompute each block's activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' logits as a tuple in training, for a distillation loss."""
        self.distilled_training = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Return the head, or both of a distilled model."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the heads by new ones for ``num_classes`` classes; 0 removes them."""
        self._set_classifier(num_classes, self.global_pool if global_pool is None else global_pool)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the stages' maps, after the final features unless ``intermediates_only``.

        Parameters
        ----------
        x:
            Images, ``[B, in_chans, H, W]``.
        indices:
            The last n stages if an int, these stages if a list, every stage if None.
        norm:
            Apply the final BatchNorm to the last stage's map.
        stop_early:
            Run no stage after the last one asked for.
        output_fmt:
            Only ``"NCHW"``.
        intermediates_only:
            Return the list alone.

        Raises
        ------
        ModelError
            Another ``output_fmt`` was asked for.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"the stages' maps come as 'NCHW', not as {output_fmt!r}")
        taken, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in taken:
                maps.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        if intermediates_only:
            return maps
        return (self.norm(x) if i == len(self.stages) - 1 else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of the stages ``indices`` do not need, and return these stages' numbers."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shorter = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Turn images into the last stage's normalised map, ``[B, num_features, H/32, W/32]``."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> Logits:
        """Pool the map and classify; ``pre_logits`` stops before the heads.

        Returns ``[B, num_classes]``, or a pair of them in distilled training.
        """
        if self.global_pool == "avg":
            x = x.mean(dim=(2, 3))
        x = self.head_drop(x)
        if pre_logits:
            return x
        if self.head_dist is None:
            return self.head(x)
        logits, logits_dist = self.head(x), self.head_dist(x)
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return logits, logits_dist
        return (logits + logits_dist) / 2

    def forward(self, x: torch.Tensor) -> Logits:
        """Classify ``[B, in_chans, H, W]`` images; see `forward_head` for what comes back."""
        return self.forward_head(self.forward_features(x))


# Own module names to the official ones. The official trunk is one flat list in which stages (even places) and the
# downsamplings between them (odd places) alternate; `official_key` sees to that.
_OFFICIAL_NAMES = (
    (r"^stem\.conv1\.", "patch_embed.0."),
    (r"^stem\.norm1\.", "patch_embed.1."),
    (r"^stem\.conv2\.", "patch_embed.3."),
    (r"^stem\.norm2\.", "patch_embed.4."),
    (r"^head_dist\.", "dist_head."),
    (r"\.downsample\.conv\.", ".downsample.proj."),
    (r"\.local\.conv1\.", ".local_perception.network.0."),
    (r"\.local\.norm\.", ".local_perception.network.1."),
    (r"\.local\.dwconv\.", ".local_perception.network.2."),
    (r"\.local\.conv2\.", ".local_perception.network.4."),
    (r"\.attn\.dwconv\.", ".attn.dwc."),
    (r"\.gate_([qk])\.0\.dwconv\.", r".oper_\1.0.block.0."),
    (r"\.gate_([qk])\.0\.norm\.", r".oper_\1.0.block.1."),
    (r"\.gate_([qk])\.0\.to_gate\.", r".oper_\1.0.block.3."),
    (r"\.gate_([qk])\.1\.to_gate\.", r".oper_\1.1.block.1."),
)


def official_key(key: str) -> str:
    """Name the entry of an official checkpoint that belongs to the model's ``key``."""
    for pattern, name in _OFFICIAL_NAMES:
        key = re.sub(pattern, name, key)
    key = re.sub(r"^stages\.(\d+)\.blocks\.", lambda m: f"network.{2 * int(m[1])}.", key)
    return re.sub(r"^stages\.(\d+)\.downsample\.", lambda m: f"network.{2 * int(m[1]) - 1}.", key)


def _filter_checkpoint(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    # A file of the official training script holds the weights that it evaluates under "model".
    return checkpoint_filter_fn(state_dict.get("model", state_dict), model)


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    # The official evaluation resizes to 256 and crops 224. The released files lie on a drive without direct links.
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": ("head", "head_dist"),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "casvit_xs.in1k": _cfg(),
        "casvit_s.in1k": _cfg(),
        "casvit_m.in1k": _cfg(),
        "casvit_t.in1k": _cfg(),
    }
)


def _create_casvit(variant: str, pretrained: bool = False, **kwargs: Any) -> CasVit:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        CasVit,
        variant,
        pretrained,
        pretrained_filter_fn=_filter_checkpoint,
        feature_cfg={"out_indices": out_indices, "flatten_sequential": True},
        **kwargs,
    )


@register_model
def casvit_xs(pretrained: bool = False, **kwargs: Any) -> CasVit:
    """CAS-ViT-XS, 3.2 M parameters."""
    model_args = {"depths": (2, 2, 4, 2), "dims": (48, 56, 112, 220)}
    return _create_casvit("casvit_xs", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def casvit_s(pretrained: bool = False, **kwargs: Any) -> CasVit:
    """CAS-ViT-S, 5.8 M parameters."""
    model_args = {"depths": (3, 3, 6, 3), "dims": (48, 64, 128, 256)}
    return _create_casvit("casvit_s", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def casvit_m(pretrained: bool = False, **kwargs: Any) -> CasVit:
    """CAS-ViT-M, 12.4 M parameters."""
    model_args = {"depths": (3, 3, 6, 3), "dims": (64, 96, 192, 384)}
    return _create_casvit("casvit_m", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def casvit_t(pretrained: bool = False, **kwargs: Any) -> CasVit:
    """CAS-ViT-T, 21.8 M parameters."""
    model_args = {"depths": (3, 3, 6, 3), "dims": (96, 128, 256, 512)}
    return _create_casvit("casvit_t", pretrained=pretrained, **{**model_args, **kwargs})
