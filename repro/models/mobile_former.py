"""Mobile-Former

Paper: `Mobile-Former: Bridging MobileNet and Transformer` - https://arxiv.org/abs/2108.05895

@inproceedings{chen2022mobileformer,
  title={Mobile-Former: Bridging MobileNet and Transformer},
  author={Chen, Yinpeng and Dai, Xiyang and Chen, Dongdong and Liu, Mengchen and Dong, Xiaoyi and Yuan, Lu and
          Liu, Zicheng},
  booktitle={CVPR},
  year={2022}
}

The layout of the checkpoints is that of the official implementation at https://github.com/AAboys/MobileFormer
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ConvNormAct, DropPath, Mlp, SelectAdaptivePool2d, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn
from torch.nn import functional as F

from repro.errors import ModelError
from repro.models.official import checkpoint_filter_fn

__all__ = ["MobileFormer"]

_OFFICIAL_NAMES = (
    (r"^tokens$", "tokens.weight"),
    (r"^stem\.conv\.", "stem.0."),
    (r"^stem\.bn\.", "stem.1."),
    # the head
    (r"^head\.conv\.conv\.", "classifier.conv.1."),
    (r"^head\.conv\.bn\.", "classifier.conv.2."),
    (r"^head\.fc\.", "classifier.fc.0."),
    (r"^head\.bn\.", "classifier.fc.1."),
    (r"^head\.classifier\.", "classifier.classifier.1."),
    # the first block
    (r"\.conv_dw\.conv\.", ".conv.0."),
    (r"\.conv_dw\.bn\.", ".conv.1."),
    (r"\.conv_pw\.conv\.", ".conv.4."),
    (r"\.conv_pw\.bn\.", ".conv.5."),
    # the other blocks
    (r"\.conv(\d)\.conv\.", r".conv\1.0."),
    (r"\.conv(\d)\.bn\.", r".conv\1.1."),
    (r"\.act(\d)\.fc1\.", r".hyper\1.hyper.0."),
    (r"\.act(\d)\.fc2\.", r".hyper\1.hyper.2."),
    (r"\.former\.proj\.", ".global_block.channel_mlp."),
    (r"\.former\.norm1\.", ".global_block.layer_norm."),
    (r"\.former\.mlp\.fc1\.", ".global_block.ffn.0."),
    (r"\.former\.mlp\.fc2\.", ".global_block.ffn.2."),
    (r"\.former\.norm2\.", ".global_block.ffn_norm."),
    (r"\.former\.", ".global_block."),
    (r"\.to_local\.v\.", ".global_local.proj."),
    (r"\.to_local\.", ".global_local."),
    (r"\bto_global\.alpha\.", "local_global.alpha.0."),
    (r"\bto_global\.norm\.", "local_global.layer_norm."),
    (r"\bto_global\.", "local_global."),
    (r"^blocks\.", "features."),
)


def official_key(key: str) -> str:
    """Map a state-dict key of :class:`MobileFormer` to the official checkpoint's key for the same tensor."""
    for pattern, name in _OFFICIAL_NAMES:
        key = re.sub(pattern, name, key)
    return key


def _head_scale(dim: int, num_heads: int) -> float:
    if dim % num_heads:
        raise ModelError(f"{dim} channels do not split into {num_heads} attention heads")
    return float((dim // num_heads) ** -0.5)


class DynamicRelu(nn.Module):
    """Dynamic ReLU: the larger of two lines through the origin, whose slopes the first token sets for each channel.

    The slopes lie around (1, 0), the plain ReLU, at a distance of at most 1. The function is that of Chen et al.,
    Dynamic ReLU (ECCV 2020), without its offsets and with a token in the place of the pooled features.

    Shapes: features ``[B, dim, H, W]`` and tokens ``[B, T, token_dim]`` to ``[B, dim, H, W]``.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        reduction: int = 4,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = nn.Linear(token_dim, token_dim // reduction, **dd)
        self.fc2 = nn.Linear(token_dim // reduction, 2 * dim, **dd)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        # in [0, 1]; doubled, and less one for the second slope, they are [0, 2] around 1 and [-1, 1] around 0
        slopes = 2 * F.hardsigmoid(self.fc2(F.relu(self.fc1(tokens[:, 0]))))
        first, second = slopes[:, :, None, None].chunk(2, dim=1)
        second = second - 1
        # The larger of first * x and second * x, with one tensor of the features' size less than torch.maximum takes:
        # at the early blocks' resolution getting the memory costs as much as the arithmetic.
        return (second * x).add_(((first - second) * x).relu_())


class LocalToGlobal(nn.Module):
    """Bridge from the features to the tokens: each token attends to all positions (paper, Low Cost Two-Way Bridge).

    Keys and values are the features themselves, so that no projection works at the features' resolution.

    Shapes: features ``[B, dim, H, W]`` and tokens ``[B, T, token_dim]`` to tokens of the same shape.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        num_heads: int = 2,
        drop_path: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_heads = num_heads
        self.scale = _head_scale(dim, num_heads)
        self.alpha = nn.Linear(token_dim, dim, **dd)
        self.q = nn.Linear(token_dim, dim, **dd)
        self.proj = nn.Linear(dim, token_dim, **dd)
        self.norm = nn.LayerNorm(token_dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        T = tokens.shape[1]
        q = (self.q(tokens) * self.scale).reshape(B, T, self.num_heads, -1).transpose(1, 2)
        kv = x.reshape(B, self.num_heads, -1, H * W)
        attn = (q @ kv).softmax(dim=-1)
        out = (attn @ kv.transpose(-2, -1)).transpose(1, 2).reshape(B, T, C)
        out = out * (2 * F.hardsigmoid(self.alpha(tokens)))
        return self.norm(tokens + self.drop_path(self.proj(out)))


class Former(nn.Module):
    """A transformer block on the tokens, normalised after each part, again with the input as keys and values.

    Shapes: tokens ``[B, T, dim]`` to ``[B, T, dim]``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        drop_path: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_heads = num_heads
        self.scale = _head_scale(dim, num_heads)
        self.q = nn.Linear(dim, dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, 2 * dim, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q = (self.q(x) * self.scale).reshape(B, T, self.num_heads, -1).transpose(1, 2)
        kv = x.reshape(B, T, self.num_heads, -1).transpose(1, 2)
        attn = (q @ kv.transpose(-2, -1)).softmax(dim=-1)
        out = (attn @ kv).transpose(1, 2).reshape(B, T, C)
        x = self.norm1(x + self.drop_path(self.proj(out)))
        return self.norm2(x + self.mlp(x))


class GlobalToLocal(nn.Module):
    """Bridge from the tokens to the features: each position attends to all tokens (paper, Low Cost Two-Way Bridge).

    Queries are the features themselves.

    Shapes: features ``[B, dim, H, W]`` and tokens ``[B, T, token_dim]`` to features of the same shape.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        num_heads: int = 2,
        drop_path: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_heads = num_heads
        self.scale = _head_scale(dim, num_heads)
        self.k = nn.Linear(token_dim, dim, **dd)
        self.v = nn.Linear(token_dim, dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        T = tokens.shape[1]
        # Positions stay the last axis throughout, so that the result has the features' layout without a copy.
        q = x.reshape(B, self.num_heads, -1, H * W)
        k = (self.k(tokens) * self.scale).reshape(B, T, self.num_heads, -1).transpose(1, 2)
        v = self.v(tokens).reshape(B, T, self.num_heads, -1).permute(0, 2, 3, 1)
        attn = (k @ q).softmax(dim=-2)
        return x + self.drop_path((v @ attn).reshape(B, C, H, W))


class ConvBlock(nn.Module):
    """The first block: an expanding depthwise and a projecting 1x1 convolution, without tokens.

    Shapes: features ``[B, dim, H, W]`` to ``[B, dim_out, H / stride, W / stride]``; tokens pass unchanged.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        exp_ratio: int,
        stride: int = 1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.has_skip = stride == 1 and dim == dim_out
        hidden = dim * exp_ratio
        self.conv_dw = ConvNormAct(dim, hidden, 3, stride=stride, groups=dim, act_layer=nn.ReLU6, **dd)
        self.conv_pw = ConvNormAct(hidden, dim_out, 1, apply_act=False, **dd)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shortcut = x
        x = self.conv_pw(self.conv_dw(x))
        if self.has_skip:
            x = x + shortcut
        return x, tokens


class MobileFormerBlock(nn.Module):
    """An inverted bottleneck and a transformer block side by side, with a bridge each way (paper, Section 3).

    Tokens take from the block's input, are transformed, set the slopes of the bottleneck's activations, and give to
    its output.

    Shapes: features ``[B, dim, H, W]`` and tokens ``[B, T, token_dim]`` to features ``[B, dim_out, H, W]`` and tokens.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        exp_ratio: int,
        token_dim: int,
        num_heads: int = 2,
        drop_path: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.has_skip = dim == dim_out
        hidden = dim * exp_ratio
        self.to_global = LocalToGlobal(dim, token_dim, num_heads, drop_path, **dd)
        self.former = Former(token_dim, drop_path=drop_path, **dd)
        self.conv1 = ConvNormAct(dim, hidden, 1, apply_act=False, **dd)
        self.act1 = DynamicRelu(hidden, token_dim, **dd)
        self.conv2 = ConvNormAct(hidden, hidden, 3, groups=hidden, apply_act=False, **dd)
        self.act2 = DynamicRelu(hidden, token_dim, **dd)
        self.conv3 = ConvNormAct(hidden, dim_out, 1, apply_act=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.to_local = GlobalToLocal(dim_out, token_dim, num_heads, drop_path, **dd)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shortcut = x
        tokens = self.former(self.to_global(x, tokens))
        x = self.act1(self.conv1(x), tokens)
        x = self.act2(self.conv2(x), tokens)
        x = self.conv3(x)
        if self.has_skip:
            x = shortcut + self.drop_path(x)
        return self.to_local(x, tokens), tokens


class MobileFormerDownBlock(nn.Module):
    """The block that halves the resolution: twice an expanding depthwise convolution and a projecting 1x1 one.

    The first pair has stride 2, the second a shortcut. Tokens work as in :class:`MobileFormerBlock`.

    Shapes: features ``[B, dim, H, W]`` and tokens ``[B, T, token_dim]`` to features
    ``[B, dim_out, ceil(H / 2), ceil(W / 2)]`` and tokens.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        exp_ratios: tuple[int, int],
        token_dim: int,
        num_heads: int = 2,
        drop_path: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        hidden, hidden_out = dim * exp_ratios[0], dim_out * exp_ratios[1]
        self.to_global = LocalToGlobal(dim, token_dim, num_heads, drop_path, **dd)
        self.former = Former(token_dim, drop_path=drop_path, **dd)
        self.conv1 = ConvNormAct(dim, hidden, 3, stride=2, groups=dim, apply_act=False, **dd)
        self.act1 = DynamicRelu(hidden, token_dim, **dd)
        self.conv2 = ConvNormAct(hidden, dim_out, 1, apply_act=False, **dd)
        self.conv3 = ConvNormAct(dim_out, hidden_out, 3, groups=dim_out, apply_act=False, **dd)
        self.act3 = DynamicRelu(hidden_out, token_dim, **dd)
        self.conv4 = ConvNormAct(hidden_out, dim_out, 1, apply_act=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.to_local = GlobalToLocal(dim_out, token_dim, num_heads, drop_path, **dd)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.former(self.to_global(x, tokens))
        x = self.conv2(self.act1(self.conv1(x), tokens))
        x = x + self.drop_path(self.conv4(self.act3(self.conv3(x), tokens)))
        return self.to_local(x, tokens), tokens


class MobileFormerHead(nn.Module):
    """Classify from the pooled, widened features and the first token together.

    Pooling off (``''``), for which there is no classifier, gives the features as they come.

    Shapes: features ``[B, dim, H, W]`` and tokens ``[B, T, token_dim]`` to ``[B, num_classes]``, or to
    ``[B, hidden_size]`` without a classifier or with ``pre_logits``.

    Raises:
        ModelError: pooling is neither ``avg`` nor ``''``, or ``''`` with a classifier.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        hidden_size: int,
        num_classes: int,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__()
        self.hidden_size = hidden_size
        self.conv = ConvNormAct(dim, 6 * dim, 1, act_layer=nn.ReLU6, **dd)
        self.fc = nn.Linear(6 * dim + token_dim, hidden_size, **dd)
        self.bn = nn.BatchNorm1d(hidden_size, **dd)
        self.drop = nn.Dropout(drop_rate)
        self.pool_type = global_pool
        self.reset(num_classes, **dd)

    def reset(
        self,
        num_classes: int,
        global_pool: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Replace the classifier, 0 classes for none, and the pooling if given."""
        if global_pool is not None:
            self.pool_type = global_pool
        if self.pool_type not in ("", "avg"):
            raise ModelError(f"Mobile-Former pools by 'avg' or not at all (''), not by {self.pool_type!r}")
        if not self.pool_type and num_classes > 0:
            raise ModelError("Mobile-Former's classifier needs pooled features: global_pool='' goes with num_classes=0")
        self.global_pool = SelectAdaptivePool2d(pool_type=self.pool_type, flatten=bool(self.pool_type))
        if num_classes > 0:
            self.classifier: nn.Module = nn.Linear(self.hidden_size, num_classes, device=device, dtype=dtype)
        else:
            self.classifier = nn.Identity()

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        if not self.pool_type:
            return x
        x = F.hardswish(self.global_pool(self.conv(x)))
        x = F.hardswish(self.bn(self.fc(torch.cat([x, tokens[:, 0]], dim=1))))
        x = self.drop(x)
        return x if pre_logits else self.classifier(x)


class MobileFormer(nn.Module):
    """Mobile-Former: a MobileNet and a transformer of a few learned tokens side by side (paper, Section 3).

    Any input size will do. ``forward`` maps ``[B, in_chans, H, W]`` to ``[B, num_classes]``. ``forward_features`` gives
    two tensors, and ``forward_head`` takes them as one pair: features ``[B, num_features, H / 32, W / 32]`` and tokens
    ``[B, num_tokens, token_dim]``. With ``features_only`` there are the features after the last
    block of each resolution, from a quarter of the input's on.

    Args:
        blocks: For each block its width, stride and expansion. The first has no tokens; the others expand twice, by
            two factors, where their stride is 2.
        stem_dim: Width of the stem.
        hidden_size: Width of the layer before the classifier.
        num_tokens: Number of tokens.
        token_dim: Width of a token.
        num_heads: Heads of the attention between features and tokens; every width must be a multiple of it.
        drop_rate: Dropout before the classifier. The official recipe trains with 0.3.
        drop_path_rate: Stochastic depth of the last block, of the bottlenecks and of the tokens' updates alike. Rates
            rise linearly with the block's number, counted from 1.

    Raises:
        ModelError: a width that the heads do not divide, a stride or expansion that no block has, or pooling other
            than ``avg`` (``''``: none, without a classifier).
    """

    def __init__(
        self,
        blocks: tuple[tuple[int, int, int | tuple[int, int]], ...],
        stem_dim: int,
        hidden_size: int,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        num_tokens: int = 6,
        token_dim: int = 192,
        num_heads: int = 2,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False

        self.tokens = nn.Parameter(torch.randn(num_tokens, token_dim, **dd))
        self.stem = ConvNormAct(in_chans, stem_dim, 3, stride=2, act_layer=nn.ReLU6, **dd)
        dim, reduction = stem_dim, 2
        self.blocks = nn.ModuleList()
        feature_info: list[dict[str, Any]] = []
        for i, (dim_out, stride, exp_ratio) in enumerate(blocks):
            drop_path = drop_path_rate * (i + 1) / len(blocks)
            reduction *= stride
            if i == 0 and isinstance(exp_ratio, int):
                block: nn.Module = ConvBlock(dim, dim_out, exp_ratio, stride, **dd)
            elif stride == 1 and isinstance(exp_ratio, int):
                block = MobileFormerBlock(dim, dim_out, exp_ratio, token_dim, num_heads, drop_path, **dd)
            elif stride == 2 and not isinstance(exp_ratio, int):
                block = MobileFormerDownBlock(dim, dim_out, exp_ratio, token_dim, num_heads, drop_path, **dd)
            else:
                raise ModelError(
                    f"Mobile-Former has no block of stride {stride} and expansion {exp_ratio} at place {i}"
                )
            self.blocks.append(block)
            dim = dim_out
            if feature_info and feature_info[-1]["reduction"] == reduction:
                feature_info.pop()
            if reduction > 2:  # detectors and their like take strides 4 to 32, as of the stages of other families
                feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"blocks.{i}"})

        self.feature_info = feature_info
        self.num_features = dim
        self.head_hidden_size = hidden_size
        self.to_global = LocalToGlobal(dim, token_dim, num_heads, drop_path_rate, **dd)
        self.head = MobileFormerHead(dim, token_dim, hidden_size, num_classes, global_pool, drop_rate, **dd)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    @property
    def global_pool(self) -> str:
        """Kind of pooling: ``avg``, or ``''`` for none."""
        return self.head.pool_type

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for layer-wise learning rates; blocks are the finest and the coarsest groups."""
        return {"stem": r"^stem|^tokens", "blocks": [(r"^blocks\.(\d+)", None), (r"^to_global", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head.classifier

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
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, **get_device_dtype(self, device=device, dtype=dtype))
        self._init_weights(self.head.classifier)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[tuple[torch.Tensor, torch.Tensor], list[torch.Tensor]]:
        """Return the features after each resolution's last block, alone or after the final features and tokens.

        Args:
            x: ``[B, in_chans, H, W]``.
            indices: Resolutions, 0 for a quarter of the input's; the last n if an int, all if None.
            norm: Nothing to apply; there is no final norm.
            stop_early: Leave out the blocks after the last features that are asked for.
            output_fmt: ``NCHW`` alone.
            intermediates_only: Return the features alone.

        Raises:
            ModelError: another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise ModelError(f"Mobile-Former's features are NCHW, not {output_fmt}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        places = [int(info["module"].removeprefix("blocks.")) for info in self.feature_info]
        wanted = {places[i] for i in take}
        intermediates = []
        x = self.stem(x)
        tokens = self.tokens.repeat(x.shape[0], 1, 1)
        for i, block in enumerate(self.blocks[: places[last] + 1] if stop_early else self.blocks):
            x, tokens = checkpoint(block, x, tokens) if self.grad_checkpointing else block(x, tokens)
            if i in wanted:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if not stop_early or last == len(places) - 1:
            tokens = self.to_global(x, tokens)
        return (x, tokens), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the features ``indices`` (see :meth:`forward_intermediates`) do not need."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        end = int(self.feature_info[last]["module"].removeprefix("blocks.")) + 1
        cut = end < len(self.blocks)
        self.blocks = self.blocks[:end]
        if cut:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or cut:
            # the head and the last bridge, which serves the head alone, are sized for the final features
            self.num_classes = 0
            self.to_global = None  # type: ignore[assignment]
            self.head = None  # type: ignore[assignment]
        return take

    def forward_features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features ``[B, num_features, H / 32, W / 32]`` and tokens ``[B, num_tokens, token_dim]``."""
        x = self.stem(x)
        tokens = self.tokens.repeat(x.shape[0], 1, 1)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, tokens = checkpoint(block, x, tokens)
            else:
                x, tokens = block(x, tokens)
        return x, self.to_global(x, tokens)

    def forward_head(self, x: tuple[torch.Tensor, torch.Tensor], pre_logits: bool = False) -> torch.Tensor:
        """Classify features and tokens: ``[B, num_classes]``, or ``[B, head_hidden_size]`` with ``pre_logits``."""
        return self.head(x[0], x[1], pre_logits)

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
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.classifier",
        **kwargs,
    }


# The official weights lie behind pages of a file-sharing site, which no program can download.
default_cfgs = generate_default_cfgs({"mobile_former_294m.in1k": _cfg(), "mobile_former_508m.in1k": _cfg()})


def _create_mobile_former(variant: str, pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        MobileFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        # blocks pass features and tokens on, which only the model itself can tell apart
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def mobile_former_294m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former-294M: 294 million multiply-adds at 224 px."""
    model_args = {
        "blocks": (
            (16, 1, 2),
            (24, 2, (6, 4)),
            (24, 1, 4),
            (48, 2, (6, 4)),
            (48, 1, 4),
            (96, 2, (6, 4)),
            (96, 1, 4),
            (128, 1, 6),
            (128, 1, 6),
            (192, 2, (6, 4)),
            (192, 1, 6),
            (192, 1, 6),
        ),
        "stem_dim": 16,
        "hidden_size": 1920,
    }
    return _create_mobile_former("mobile_former_294m", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def mobile_former_508m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former-508M: 508 million multiply-adds at 224 px."""
    model_args = {
        "blocks": (
            (24, 1, 2),
            (40, 2, (6, 4)),
            (40, 1, 3),
            (72, 2, (6, 4)),
            (72, 1, 3),
            (128, 2, (6, 4)),
            (128, 1, 4),
            (176, 1, 6),
            (176, 1, 6),
            (240, 2, (6, 4)),
            (240, 1, 6),
            (240, 1, 6),
        ),
        "stem_dim": 24,
        "hidden_size": 1920,
    }
    return _create_mobile_former("mobile_former_508m", pretrained=pretrained, **dict(model_args, **kwargs))
