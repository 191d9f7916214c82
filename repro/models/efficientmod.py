"""EfficientMod

Paper: `Efficient Modulation for Vision Networks` - https://arxiv.org/abs/2403.19963

@inproceedings{ma2024efficient,
  title={Efficient Modulation for Vision Networks},
  author={Xu Ma and Xiyang Dai and Jianwei Yang and Bin Xiao and Yinpeng Chen and Yun Fu and Lu Yuan},
  booktitle={The Twelfth International Conference on Learning Representations},
  year={2024}
}

Written from the architecture of the official implementation, https://github.com/ma-xu/EfficientMod (Apache-2.0).
``official_key`` maps this module's state-dict keys to those of the official checkpoints.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    Attention,
    ClassifierHead,
    DropPath,
    LayerNorm2d,
    LayerScale,
    Mlp,
    calculate_drop_path_rates,
    trunc_normal_,
)
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import nn

from repro.models.official import checkpoint_filter_fn

__all__ = ["EfficientMod"]


class ConvNorm(nn.Module):
    """Strided convolution and LayerNorm over channels, ``(B, C, H, W)`` to ``(B, out_chs, H / stride, W / stride)``.

    The stem (7x7, stride 4) and the step between two stages (3x3, stride 2), both with overlapping patches.
    """

    def __init__(
        self, in_chs: int, out_chs: int, kernel_size: int, stride: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.proj = nn.Conv2d(in_chs, out_chs, kernel_size, stride, padding=kernel_size // 2, **dd)
        self.norm = LayerNorm2d(out_chs, eps=1e-5, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed ``x``; the result is a channels-first view of channels-last memory."""
        return self.norm(self.proj(x))


class ContextLayer(nn.Module):
    """Context modelling branch (paper, Section 3): project, gather a large neighbourhood, activate, project.

    Maps ``(B, H, W, C)`` to a modulator of the same shape.
    """

    def __init__(self, dim: int, kernel_size: int = 7, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.f = nn.Linear(dim, dim, **dd)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)
        self.act = nn.GELU()
        self.g = nn.Linear(dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the modulator of ``x``, both ``(B, H, W, C)``."""
        x = self.f(x).permute(0, 3, 1, 2)
        x = self.act(self.conv(x)).permute(0, 2, 3, 1)
        return self.g(x)


class ModulationMlp(nn.Module):
    """MLP whose hidden values are multiplied by the context (paper, Section 3).

    The modulator has ``dim`` channels; with an expansion of r, every group of ``dim`` hidden channels is multiplied by
    it. With an expansion of 1 the block is a plain modulation, without activation.
    """

    def __init__(
        self,
        dim: int,
        expansion: int,
        kernel_size: int = 7,
        drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.expansion = expansion
        self.fc1 = nn.Linear(dim, dim * expansion, **dd)
        self.act = nn.GELU() if expansion > 1 else nn.Identity()
        self.drop = nn.Dropout(drop) if expansion > 1 else nn.Identity()
        self.context_layer = ContextLayer(dim, kernel_size, **dd)
        self.fc2 = nn.Linear(dim * expansion, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        context = self.context_layer(x)
        x = self.drop(self.act(self.fc1(x)))
        if self.expansion > 1:
            # Broadcast over the groups: the same products as with a repeated context, which is never materialised.
            x = (x.unflatten(-1, (self.expansion, -1)) * context.unsqueeze(-2)).flatten(-2)
        else:
            x = x * context
        return self.fc2(x)


class ModulationBlock(nn.Module):
    """Residual efficient-modulation block, ``(B, H, W, C)`` to the same shape (paper, Section 3)."""

    def __init__(
        self,
        dim: int,
        expansion: int,
        kernel_size: int = 7,
        init_values: float = 1e-4,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.mlp = ModulationMlp(dim, expansion, kernel_size, proj_drop, **dd)
        self.ls = LayerScale(dim, init_values=init_values, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        return x + self.drop_path(self.ls(self.mlp(self.norm(x))))


class AttentionBlock(nn.Module):
    """Transformer block over all positions, ``(B, H, W, C)`` to the same shape; closes the last stages of the hybrids.

    A head is never narrower than 32 channels, so that attention in a narrow stage works in more channels than ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = Attention(dim, num_heads, attn_head_dim=max(dim // num_heads, 32), proj_drop=proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, H, W, C)`` to the same shape."""
        B, H, W, C = x.shape
        x = x.reshape(B, H * W, C)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x.reshape(B, H, W, C)


class EfficientModStage(nn.Module):
    """A step down in resolution (all stages but the first), modulation blocks, then attention blocks.

    Maps ``(B, in_chs, H, W)`` to ``(B, out_chs, H / s, W / s)``, where s is 2 with ``downsample`` and 1 without. The
    blocks work channels last; the permutations at both ends are views.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        depth: int,
        attn_depth: int = 0,
        expansions: tuple[int, ...] = (1, 6),
        attn_mlp_ratio: float = 4.0,
        kernel_size: int = 7,
        downsample: bool = True,
        init_values: float = 1e-4,
        proj_drop: float = 0.0,
        drop_path: tuple[float, ...] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.downsample = ConvNorm(in_chs, out_chs, 3, 2, **dd) if downsample else nn.Identity()
        blocks: list[nn.Module] = [
            ModulationBlock(
                out_chs,
                expansions[i % len(expansions)],
                kernel_size,
                init_values=init_values,
                proj_drop=proj_drop,
                drop_path=drop_path[i],
                **dd,
            )
            for i in range(depth)
        ]
        blocks += [
            AttentionBlock(out_chs, mlp_ratio=attn_mlp_ratio, proj_drop=proj_drop, drop_path=drop_path[depth + i], **dd)
            for i in range(attn_depth)
        ]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_chs, H, W)`` to ``(B, out_chs, H / s, W / s)``."""
        x = self.downsample(x).permute(0, 2, 3, 1)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)


class EfficientMod(nn.Module):
    """EfficientMod classifier: ``(B, in_chans, H, W)`` images to ``(B, num_classes)`` logits.

    No layer is tied to the input size.

    Args:
        in_chans: channels of the input image.
        num_classes: classes; 0 removes the classifier.
        global_pool: pooling before the classifier; ``""`` (with ``num_classes=0``) leaves the feature map.
        embed_dims: channels of each stage.
        depths: modulation blocks of each stage.
        attn_depths: attention blocks that close each stage.
        expansions: hidden expansion of the modulation blocks, repeated along a stage.
        attn_mlp_ratios: hidden expansion of the attention blocks' MLP in each stage.
        kernel_size: side of the context's depthwise convolution.
        init_values: initial layer scale of the modulation blocks.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout inside the blocks.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        device: where the parameters are created.
        dtype: type of the parameters.

    Source: paper, Section 3 and the official configurations.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (32, 64, 128, 256),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        attn_depths: tuple[int, ...] = (0, 0, 0, 0),
        expansions: tuple[int, ...] = (1, 6),
        attn_mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0),
        kernel_size: int = 7,
        init_values: float = 1e-4,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        feature_info: list[dict[str, Any]] = []

        self.patch_embed = ConvNorm(in_chans, embed_dims[0], 7, 4, **dd)
        rates = calculate_drop_path_rates(
            drop_path_rate, [d + a for d, a in zip(depths, attn_depths, strict=True)], stagewise=True
        )
        stages = []
        in_chs = embed_dims[0]
        for i, dim in enumerate(embed_dims):
            stages.append(
                EfficientModStage(
                    in_chs,
                    dim,
                    depths[i],
                    attn_depths[i],
                    expansions=expansions,
                    attn_mlp_ratio=attn_mlp_ratios[i],
                    kernel_size=kernel_size,
                    downsample=i > 0,
                    init_values=init_values,
                    proj_drop=proj_drop_rate,
                    drop_path=tuple(rates[i]),
                    **dd,
                )
            )
            feature_info += [{"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"}]
            in_chs = dim
        self.stages = nn.Sequential(*stages)
        self.feature_info = feature_info

        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.norm: nn.Module = LayerNorm2d(self.num_features, eps=1e-5, **dd)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.apply(_init_weights)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters by depth, for layer-wise learning rates."""
        return {
            "stem": r"^patch_embed",
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
            norm: apply the final normalisation to the last stage's output where it is taken.
            stop_early: stop after the last stage asked for.
            output_fmt: only ``"NCHW"``.
            intermediates_only: return the list alone.
        """
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        x = self.patch_embed(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(self.norm(x) if norm and i == last else x)
        if intermediates_only:
            return intermediates
        return self.norm(x) if not stop_early or max_index == last else x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that the intermediates ``indices`` do not need; return the indices taken."""
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

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_chans, H, W)`` to normalised features ``(B, num_features, H / 32, W / 32)``."""
        x = self.patch_embed(x)
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool the features and classify them; with ``pre_logits`` return the pooled features."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(B, in_chans, H, W)`` to ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    """Truncated normal for linear layers; convolutions keep PyTorch's initialisation, as in the official code."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def official_key(key: str) -> str:
    """Map a state-dict key of this module to the key of the official checkpoint.

    There, the step into a stage closes the stage before, and the classifier and the layer scale are bare parameters.
    """
    key = re.sub(r"^stages\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", key)
    key = re.sub(r"^stages\.", "layers.", key)
    key = re.sub(r"^head\.fc\.", "head.", key)
    return key.replace(".context_layer.conv.", ".context_layer.context_list.0.").replace(".ls.gamma", ".gamma_1")


def _create_efficientmod(variant: str, pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    return build_model_with_cfg(
        EfficientMod,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **kwargs,
    )


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    # The official evaluation leaves crop and interpolation to the defaults of the timm release it names (0.6.13).
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc",
        "license": "apache-2.0",
        **kwargs,
    }


# The official checkpoints are shared folders, not files with an address of their own.
default_cfgs = generate_default_cfgs(
    {
        "efficientmod_xxs.dist_in1k": _cfg(),
        "efficientmod_xs.dist_in1k": _cfg(),
        "efficientmod_s.dist_in1k": _cfg(),
        "efficientmod_s_conv.in1k": _cfg(),
    }
)


@register_model
def efficientmod_xxs(pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    """EfficientMod-xxs, hybrid: 4.7 M parameters (official README)."""
    model_args = {"embed_dims": (32, 64, 128, 256), "depths": (2, 2, 6, 2), "attn_depths": (0, 0, 1, 2)}
    return _create_efficientmod("efficientmod_xxs", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def efficientmod_xs(pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    """EfficientMod-xs, hybrid: 6.6 M parameters."""
    model_args = {
        "embed_dims": (32, 64, 144, 288),
        "depths": (3, 3, 4, 2),
        "attn_depths": (0, 0, 3, 3),
        "expansions": (1, 4),
    }
    return _create_efficientmod("efficientmod_xs", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def efficientmod_s(pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    """EfficientMod-s, hybrid: 12.9 M parameters."""
    model_args = {
        "embed_dims": (32, 64, 144, 312),
        "depths": (4, 4, 8, 4),
        "attn_depths": (0, 0, 4, 4),
        "attn_mlp_ratios": (4.0, 4.0, 4.0, 5.0),
        "drop_path_rate": 0.02,
    }
    return _create_efficientmod("efficientmod_s", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def efficientmod_s_conv(pretrained: bool = False, **kwargs: Any) -> EfficientMod:
    """EfficientMod-s-Conv, modulation blocks only: 12.9 M parameters."""
    model_args = {"embed_dims": (40, 80, 160, 344), "depths": (4, 4, 12, 8), "drop_path_rate": 0.02}
    return _create_efficientmod("efficientmod_s_conv", pretrained=pretrained, **dict(model_args, **kwargs))
