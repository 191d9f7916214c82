"""iFormer's ablations (Tables 10, 11, 14, 16 and 17), each stated as a change to iFormer-M.

iFormer: Integrating ConvNet and Transformer for Mobile Application (ICLR 2025) - https://arxiv.org/abs/2501.15369

The paper prints what an ablation costs, not how it is built. The configurations below are the ones whose parameters
and MACs are those the paper prints (counted with BatchNorm folded; attention's products counted). Where a price cannot
tell two designs apart, the docstring of the part says which one was taken and why.

`IFORMER_M` with timm's `iformer_m` weights gives timm's logits; state dicts have timm's keys, and
`timm.models.iformer.checkpoint_filter_fn` renames a released state dict to them. Windows and channel chunking hold no
weights, so released weights load into them unchanged:
``load_official(model, checkpoint_filter_fn(released["model"], model))``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates, use_fused_attn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._manipulate import checkpoint
from timm.models.iformer import ConvNorm, IFormer, RepCPE, RepVitClassifier, Residual, Stem, checkpoint_filter_fn
from torch import Tensor, nn

from repro.errors import ModelError

__all__ = [
    "IFORMER_L",
    "IFORMER_L2",
    "IFORMER_M",
    "IFORMER_S",
    "IFORMER_T",
    "VARIANTS",
    "IFormerAblation",
    "IFormerConfig",
    "Part",
    "configuration",
    "configured",
    "create",
    "hybrid",
    "parts",
]

AttentionKind = Literal["full", "split", "quarter", "concat"]
BlockSpec = tuple[type[nn.Module], tuple[Any, ...]]  # a block's class and the arguments that fix its shape


@dataclass(frozen=True, kw_only=True)
class IFormerConfig:
    """What an iFormer is made of; the defaults are iFormer-M's (Table 15). Tuples hold one value a stage.

    A stage is its conv blocks but one, then (positional encoding, attention, FFN) for each attention block, then the
    last conv block. Values of a stage without attention blocks are not read.

    Parameters
    ----------
    widths
        Channels.
    conv_blocks, attention_blocks
        Number of blocks of either kind.
    conv_ratio, conv_kernel
        Expansion and depthwise kernel size of the conv blocks.
    reduction
        The paper's R: queries and keys have 1/R of the channels attention sees.
    ffn_ratio
        Expansion of the FFN after attention (the conv blocks' own is `conv_ratio`).
    gated
        Modulate attention's output with a sigmoid gate (SHMA), or not (SHA).
    cpe_kernel
        Kernel size of the conditional positional encoding before attention; 0 leaves it out.
    ffn_kernel
        Kernel size of a depthwise convolution inside every FFN, the conv blocks' included (Table 11); 0 leaves it out.
    attention
        What attention sees (Table 14), see `SingleHeadAttention`.
    windowed
        How many of a stage's attention blocks, from its first, attend within windows; the others are global.
    window
        Side of a window, in feature-map positions.
    chunks
        Parts, along the channels, in which a map is partitioned into windows and back (Eqs. 4 and 5).

    Raises
    ------
    ModelError
        Values that make no model.
    """

    widths: tuple[int, ...] = (48, 96, 192, 384)
    conv_blocks: tuple[int, ...] = (2, 2, 10, 0)
    attention_blocks: tuple[int, ...] = (0, 0, 4, 2)
    conv_ratio: int = 4
    conv_kernel: int = 7
    reduction: tuple[int, ...] = (0, 0, 2, 4)
    ffn_ratio: tuple[int, ...] = (0, 0, 3, 3)
    gated: bool = True
    cpe_kernel: int = 3
    ffn_kernel: int = 0
    attention: AttentionKind = "full"
    windowed: tuple[int, ...] = (0, 0, 0, 0)
    window: int = 16
    chunks: int = 1

    def __post_init__(self) -> None:
        stages = len(self.widths)
        for name in ("conv_blocks", "attention_blocks", "reduction", "ffn_ratio", "windowed"):
            if len(getattr(self, name)) != stages:
                raise ModelError(f"{name} has {len(getattr(self, name))} values for {stages} stages")
        for name, kernel in (("conv", self.conv_kernel), ("cpe", self.cpe_kernel), ("ffn", self.ffn_kernel)):
            if kernel % 2 == 0 and not (kernel == 0 and name != "conv"):
                raise ModelError(f"{name}_kernel is {kernel}: an even kernel has no middle, sizes would not be kept")
        if self.attention not in ("full", "split", "quarter", "concat"):
            raise ModelError(f"attention is {self.attention!r}: full, split, quarter or concat")
        if min(self.window, self.chunks, self.conv_ratio, *self.widths) < 1:
            raise ModelError("window, chunks, conv_ratio and widths are at least 1")
        for i, (dim, blocks, windowed) in enumerate(
            zip(self.widths, self.attention_blocks, self.windowed, strict=True)
        ):
            if min(blocks, windowed, self.conv_blocks[i]) < 0 or windowed > blocks:
                raise ModelError(f"stage {i + 1}: {windowed} of {blocks} attention blocks cannot be windowed")
            if windowed and self.chunks > dim:
                raise ModelError(f"stage {i + 1}: {dim} channels cannot be cut into {self.chunks} chunks")
            attended = dim // 4 if self.attention in ("quarter", "concat") else dim
            if blocks and (self.ffn_ratio[i] < 1 or not 1 <= self.reduction[i] <= attended):
                raise ModelError(
                    f"stage {i + 1}: attention needs an ffn_ratio of at least 1 and a reduction from 1 to {attended}"
                )

    def blocks(self, stage: int) -> list[BlockSpec]:
        """List a stage's blocks in order; `stage` counts from 0."""
        dim, kernel, convs = self.widths[stage], self.ffn_kernel, self.conv_blocks[stage]
        conv: list[BlockSpec] = [(ConvBlock, (dim, self.conv_kernel, self.conv_ratio, kernel))]
        group: list[BlockSpec] = [(RepCPE, (dim, self.cpe_kernel))] if self.cpe_kernel else []
        group.append((AttentionBlock, (dim, self.reduction[stage], self.gated, self.attention)))
        group.append((FFN, (dim, self.ffn_ratio[stage], kernel)))
        if not self.attention_blocks[stage]:
            return conv * convs
        return conv * max(convs - 1, 0) + group * self.attention_blocks[stage] + conv * min(convs, 1)

    def windowed_span(self, stage: int) -> tuple[int, int]:
        """Tell the index, in `blocks`, of a stage's first and last windowed attention block; (-1, -1) without any."""
        if not self.windowed[stage]:
            return -1, -1
        attention = [i for i, (block, _) in enumerate(self.blocks(stage)) if block is AttentionBlock]
        return attention[0], attention[self.windowed[stage] - 1]


# The released sizes (Table 15; iFormer-L2 from the official model card)
IFORMER_M = IFormerConfig()
IFORMER_T = replace(
    IFORMER_M, widths=(32, 64, 128, 256), conv_blocks=(2, 2, 7, 0), attention_blocks=(0, 0, 3, 2), conv_ratio=3,
    ffn_ratio=(0, 0, 2, 2),
)  # fmt: skip
IFORMER_S = replace(IFORMER_M, widths=(32, 64, 176, 320), attention_blocks=(0, 0, 3, 2))
IFORMER_L = replace(IFORMER_M, widths=(48, 96, 256, 384), conv_blocks=(2, 2, 9, 0), attention_blocks=(0, 0, 8, 2))
IFORMER_L2 = replace(IFORMER_M, widths=(64, 128, 256, 512), conv_blocks=(3, 3, 13, 0), attention_blocks=(0, 0, 11, 3))


def hybrid(config: IFormerConfig, *, chunks: int = 1) -> IFormerConfig:
    """Change a configuration to hybrid window SHMA: windows of 16, the last attention block of a stage global.

    Source: paper, appendix F. The official detection and segmentation code is not quite this: it leaves stage 4
    global, and windows all of iFormer-M's stage 3 (`iformer_*_downstream`). At 512 px stage 4 is one window, so there
    only iFormer-M differs.
    """
    return replace(config, windowed=tuple(max(n - 1, 0) for n in config.attention_blocks), window=16, chunks=chunks)


# Table 10: ways to make the baseline faster
T10_BASELINE = replace(IFORMER_M, reduction=(0, 0, 1, 1), ffn_ratio=(0, 0, 4, 4), cpe_kernel=0)
# Table 14: from SHA to SHViT; the printed parameters need R = 1
T14_SHA = replace(T10_BASELINE, gated=False)

VARIANTS: dict[str, IFormerConfig] = {
    "iformer_m_t10_baseline": T10_BASELINE,
    "iformer_m_t10_number_of_blocks": replace(T10_BASELINE, attention_blocks=(0, 0, 4, 1)),
    "iformer_m_t10_ffn_width": replace(T10_BASELINE, ffn_ratio=(0, 0, 2, 2)),
    "iformer_m_t10_attn_head_and_ffn_width": replace(IFORMER_M, cpe_kernel=0),
    "iformer_m_t11_dwconv3": replace(IFORMER_M, ffn_kernel=3),
    "iformer_m_t11_dwconv5": replace(IFORMER_M, ffn_kernel=5),
    "iformer_m_t11_dwconv7": replace(IFORMER_M, ffn_kernel=7),
    "iformer_m_t11_dwconv9": replace(IFORMER_M, ffn_kernel=9),
    "iformer_m_t14_sha": T14_SHA,
    "iformer_m_t14_split": replace(T14_SHA, attention="split"),
    "iformer_m_t14_quarter": replace(T14_SHA, attention="quarter"),
    "iformer_m_t14_concat": replace(T14_SHA, attention="concat"),
    # Tables 16 and 17, and Table 13's backbones; 16 chunks are the paper's at 512 px
    "iformer_t_hybrid": hybrid(IFORMER_T),
    "iformer_s_hybrid": hybrid(IFORMER_S),
    "iformer_m_hybrid": hybrid(IFORMER_M),
    "iformer_l_hybrid": hybrid(IFORMER_L),
    "iformer_l2_hybrid": hybrid(IFORMER_L2),
    "iformer_t_hybrid_chunked": hybrid(IFORMER_T, chunks=16),
    "iformer_s_hybrid_chunked": hybrid(IFORMER_S, chunks=16),
    "iformer_m_hybrid_chunked": hybrid(IFORMER_M, chunks=16),
    "iformer_l_hybrid_chunked": hybrid(IFORMER_L, chunks=16),
    "iformer_l2_hybrid_chunked": hybrid(IFORMER_L2, chunks=16),
    "iformer_m_windowed": replace(IFORMER_M, windowed=IFORMER_M.attention_blocks),
    # What the official detection and segmentation code builds, for its released checkpoints
    "iformer_m_downstream": replace(IFORMER_M, windowed=(0, 0, 4, 0), chunks=16),
    "iformer_l_downstream": replace(IFORMER_L, windowed=(0, 0, 7, 0), chunks=16),
    "iformer_l2_downstream": replace(IFORMER_L2, windowed=(0, 0, 10, 0), chunks=16),
}


def configuration(base: str, changes: Mapping[str, Any] | None = None) -> IFormerConfig:
    """Change a named configuration: a released size (`iformer_m`) or one of `VARIANTS`.

    Raises
    ------
    ModelError
        For a base or a knob that does not exist, or values that make no model.
    """
    bases = {
        "iformer_t": IFORMER_T, "iformer_s": IFORMER_S, "iformer_m": IFORMER_M, "iformer_l": IFORMER_L,
        "iformer_l2": IFORMER_L2, **VARIANTS,
    }  # fmt: skip
    if base not in bases:
        raise ModelError(f"no configuration {base!r}; there are {', '.join(bases)}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in (changes or {}).items()
    }
    knobs = [item.name for item in fields(IFormerConfig)]
    if unknown := [name for name in values if name not in knobs]:
        raise ModelError(f"no knob {unknown[0]!r}; there are {', '.join(knobs)}")
    wrong = [name for name, value in values.items() if type(value) is not type(getattr(IFORMER_M, name))]
    if wrong:
        kind = type(getattr(IFORMER_M, wrong[0])).__name__
        raise ModelError(f"knob {wrong[0]!r} takes a {kind}, not {values[wrong[0]]!r}")
    return replace(bases[base], **values)


class SingleHeadAttention(nn.Module):
    """Single-head attention over all positions of a map, (B, C, H, W) to (B, C, H, W).

    With a gate it is SHMA: queries and keys have C / R channels, value and gate go through a sigmoid, and the gate
    modulates what attention returns. Without a gate it is SHA, whose value is linear. Table 14 changes what it sees:

    ``full``
        All channels.
    ``split``
        All channels, after the input was split into a quarter and three quarters and put together again. The paper
        prints the parameters and MACs of SHA for this step and a longer latency: it moves data and computes the same.
    ``quarter``
        The first quarter of the channels; the projection takes its output to C, the other channels are not used.
    ``concat``
        The first quarter; its output is concatenated with the other three quarters and projected from C to C (SHViT).
    """

    fused_attn: Final[bool]
    gated: Final[bool]
    splits: Final[bool]
    rejoins: Final[bool]
    concatenates: Final[bool]

    def __init__(
        self,
        dim: int,
        reduction: int = 2,
        gated: bool = True,
        kind: AttentionKind = "full",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fused_attn = use_fused_attn()
        self.gated = gated
        self.splits, self.rejoins, self.concatenates = kind != "full", kind == "split", kind == "concat"
        self.quarter = dim // 4
        inner = self.quarter if kind in ("quarter", "concat") else dim
        self.scale = (inner // reduction) ** -0.5
        self.q = ConvNorm(inner, inner // reduction, **dd)
        self.k = ConvNorm(inner, inner // reduction, **dd)
        self.v_gate = ConvNorm(inner, 2 * inner if gated else inner, **dd)
        self.proj = ConvNorm(inner if kind == "quarter" else dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; (B, C, H, W) to (B, C, H, W)."""
        B, C, H, W = x.shape
        rest = x
        if self.splits:
            x, rest = x.split([self.quarter, C - self.quarter], dim=1)
            if self.rejoins:
                x = torch.cat([x, rest], dim=1)

        v = self.v_gate(x)
        gate = v
        if self.gated:
            v, gate = v.sigmoid().chunk(2, dim=1)
        q, k, v = self.q(x).flatten(2), self.k(x).flatten(2), v.flatten(2)
        if self.fused_attn:
            q, k, v = q.transpose(1, 2).unsqueeze(1), k.transpose(1, 2).unsqueeze(1), v.transpose(1, 2).unsqueeze(1)
            x = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(B, -1, H, W)
        else:
            attn = ((q * self.scale).transpose(1, 2) @ k).softmax(dim=-1)
            x = (v @ attn.transpose(1, 2)).view(B, -1, H, W)

        if self.gated:
            x = x * gate
        if self.concatenates:
            x = torch.cat([x, rest], dim=1)
        return self.proj(x)


def _ffn_layers(dim: int, ratio: int, kernel: int, act_layer: type[nn.Module], dd: dict[str, Any]) -> list[nn.Module]:
    """Build an FFN's layers; a depthwise convolution on the expanded features is normed and activated as they are.

    Table 11's depthwise convolution follows the works the paper cites for it (EfficientViT, MobileNetV4): expand,
    activate, convolve depthwise, activate, project.
    """
    inner = ratio * dim
    layers = [ConvNorm(dim, inner, **dd), act_layer()]
    if kernel:
        layers += [ConvNorm(inner, inner, kernel, 1, kernel // 2, groups=inner, **dd), act_layer()]
    return [*layers, ConvNorm(inner, dim, **dd)]


class _ResidualBlock(nn.Module):
    """A residual branch under the key ``mixer``, where timm's conv, attention and FFN blocks have it."""

    def __init__(self, branch: nn.Module, dim: int, drop_path: float, layer_scale: float, dd: dict[str, Any]) -> None:
        super().__init__()
        self.mixer = Residual(branch, drop_path, layer_scale, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch; (B, C, H, W) to (B, C, H, W)."""
        return self.mixer(x)


class ConvBlock(_ResidualBlock):
    """Depthwise convolution and FFN in one residual branch, with `ffn_kernel` a second one inside the FFN."""

    def __init__(
        self,
        dim: int,
        kernel: int = 7,
        ratio: int = 4,
        ffn_kernel: int = 0,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        depthwise = ConvNorm(dim, dim, kernel, 1, kernel // 2, groups=dim, **dd)
        layers = _ffn_layers(dim, ratio, ffn_kernel, act_layer, dd)
        super().__init__(nn.Sequential(depthwise, *layers), dim, drop_path, layer_scale, dd)


class AttentionBlock(_ResidualBlock):
    """`SingleHeadAttention` in a residual branch."""

    def __init__(
        self,
        dim: int,
        reduction: int = 2,
        gated: bool = True,
        kind: AttentionKind = "full",
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(SingleHeadAttention(dim, reduction, gated, kind, **dd), dim, drop_path, layer_scale, dd)


class FFN(_ResidualBlock):
    """FFN in a residual branch, with `kernel` a depthwise convolution inside."""

    def __init__(
        self,
        dim: int,
        ratio: int = 3,
        kernel: int = 0,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        layers = _ffn_layers(dim, ratio, kernel, act_layer, dd)
        super().__init__(nn.Sequential(*layers), dim, drop_path, layer_scale, dd)


def _partition(x: Tensor, window: int) -> Tensor:
    """(B, C, H, W) to (B * H/window * W/window, C, window, window)."""
    B, C, H, W = x.shape
    x = x.view(B, C, H // window, window, W // window, window)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, C, window, window)


def _reverse(x: Tensor, window: int, H: int, W: int) -> Tensor:
    """(B * H/window * W/window, C, window, window) to (B, C, H, W)."""
    C = x.shape[1]
    x = x.view(-1, H // window, W // window, C, window, window)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, C, H, W)


class Stage(nn.Module):
    """One stage: a stride-2 convolution (not in the first stage), then the blocks of `IFormerConfig.blocks`.

    Windows are made once a stage, before its first windowed attention block, and undone once, after its last: what
    lies between (the other attention blocks' FFNs and positional encodings) runs within the windows too. A map that
    windows do not fit is padded with zeros at its right and bottom, and cropped when the windows are undone; no mask
    keeps attention from the padding. Both as the official detection and segmentation code has it.

    Chunks move the same values in parts: the channels are cut into `chunks` parts, as even as they can be (the first
    ones are one channel wider where they do not divide), each is partitioned, and the parts are concatenated.
    """

    first_windowed: Final[int]
    last_windowed: Final[int]
    window: Final[int]

    def __init__(
        self,
        config: IFormerConfig,
        index: int,
        drop_path_rates: list[float],
        layer_scale: float,
        act_layer: type[nn.Module],
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        dim = config.widths[index]
        self.grad_checkpointing = False
        self.first_windowed, self.last_windowed = config.windowed_span(index)
        self.window = config.window
        self.chunk_sizes = [dim // config.chunks + (i < dim % config.chunks) for i in range(config.chunks)]
        self.downsample = ConvNorm(config.widths[index - 1], dim, 3, 2, 1, **dd) if index else nn.Identity()
        self.blocks = nn.Sequential()
        for (block, args), rate in zip(config.blocks(index), drop_path_rates, strict=True):
            extra = () if block is RepCPE else (rate, layer_scale, act_layer)
            self.blocks.append(block(*args, *extra, **dd))

    def partition(self, x: Tensor) -> Tensor:
        """Pad and cut into windows; (B, C, H, W) to (B * windows, C, window, window)."""
        H, W = x.shape[2:]
        pad_H, pad_W = (self.window - H % self.window) % self.window, (self.window - W % self.window) % self.window
        # A trace holds no branches: one that always pads and crops is right at every size
        if torch.jit.is_tracing() or pad_H > 0 or pad_W > 0:
            x = F.pad(x, (0, pad_W, 0, pad_H))
        if len(self.chunk_sizes) == 1:
            return _partition(x, self.window)
        return torch.cat([_partition(part, self.window) for part in x.split(self.chunk_sizes, dim=1)], dim=1)

    def reverse(self, x: Tensor, H: int, W: int) -> Tensor:
        """Undo `partition` of a map of H by W; (B * windows, C, window, window) to (B, C, H, W)."""
        padded_H, padded_W = -(-H // self.window) * self.window, -(-W // self.window) * self.window
        if len(self.chunk_sizes) == 1:
            x = _reverse(x, self.window, padded_H, padded_W)
        else:
            split = x.split(self.chunk_sizes, dim=1)
            x = torch.cat([_reverse(part, self.window, padded_H, padded_W) for part in split], dim=1)
        if torch.jit.is_tracing() or padded_H > H or padded_W > W:
            x = x[:, :, :H, :W].contiguous()
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Run the stage; (B, C, H, W) to (B, C', ceil(H / 2), ceil(W / 2)), in the first stage the same H and W."""
        x = self.downsample(x)
        H, W = x.shape[2:]
        for i, block in enumerate(self.blocks):
            if i == self.first_windowed:
                x = self.partition(x)
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108 (no ternary in TorchScript)
                x = checkpoint(block, x)
            else:
                x = block(x)
            if i == self.last_windowed:
                x = self.reverse(x, H, W)
        return x


class IFormerAblation(IFormer):
    """timm's iFormer, its stages built from an `IFormerConfig`.

    Takes images of any size, (B, in_chans, H, W) float, normalised as `default_cfg` says; returns logits
    (B, num_classes). On the meta device nothing is initialised, for counting; after ``to_empty`` call `init_weights`.

    Raises
    ------
    ModelError
        From `forward_features` and `forward_intermediates`, before anything is computed, for an input of another shape.
    """

    def __init__(
        self,
        config: IFormerConfig = IFORMER_M,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        distillation: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Module.__init__(self)  # timm's own constructor would build the stages it knows
        if global_pool not in ("", "avg"):
            raise ModelError(f"global_pool is {global_pool!r}: only 'avg' and '' (none) are supported")
        dd = {"device": device, "dtype": dtype}
        self.config = config
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.distillation = distillation
        self.num_stages = len(config.widths)
        self.num_features = self.head_hidden_size = config.widths[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(config.widths)
        ]
        self.stem = Stem(in_chans, config.widths[0], act_layer, **dd)
        depths = [len(config.blocks(i)) for i in range(self.num_stages)]
        rates = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        self.stages = nn.Sequential(
            *[Stage(config, i, rates[i], layer_scale_init_value, act_layer, **dd) for i in range(self.num_stages)]
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.head = RepVitClassifier(self.num_features, num_classes, distillation, 0.0, **dd)
        if not self.stem.conv1.c.weight.is_meta:
            self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_chans or min(x.shape[2:]) < 1:
            raise ModelError(
                f"iFormer takes images of shape (batch, {self.in_chans}, height, width), not {tuple(x.shape)}"
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map; (B, in_chans, H, W) to (B, C, ceil(H / 32), ceil(W / 32))."""
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():
            self._check_input(x)
        return self.stages(self.stem(x))

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's, after the input's shape was checked."""
        self._check_input(x)
        return super().forward_intermediates(x, *args, **kwargs)


class Part(NamedTuple):
    """One of the modules a model is a chain of, and the shape it is given: equal parts cost the same."""

    block: type[nn.Module]
    args: tuple[Any, ...]
    shape: tuple[int, ...]

    def build(self, **kwargs: Any) -> nn.Module:
        """Build the module; `kwargs` are torch's `device` and `dtype`."""
        return self.block(*self.args, **kwargs)


def parts(
    config: IFormerConfig, height: int = 224, width: int = 224, *, in_chans: int = 3, num_classes: int = 1000
) -> list[Part]:
    """Take the model of a configuration apart, for one image of `height` by `width` pixels.

    A model costs what its parts cost together, and configurations of one search share most of theirs. So a search
    builds and counts each distinct part once, instead of every model. Windows, pooling and residual sums are not
    parts: they have no parameters and no MACs.
    """
    h, w = -(-height // 4), -(-width // 4)
    chain = [Part(Stem, (in_chans, config.widths[0]), (1, in_chans, height, width))]
    for i, dim in enumerate(config.widths):
        if i:
            before = config.widths[i - 1]
            chain.append(Part(ConvNorm, (before, dim, 3, 2, 1), (1, before, h, w)))
            h, w = -(-h // 2), -(-w // 2)
        first, last = config.windowed_span(i)
        windows = (-(-h // config.window) * -(-w // config.window), dim, config.window, config.window)
        for j, (block, args) in enumerate(config.blocks(i)):
            chain.append(Part(block, args, windows if first <= j <= last else (1, dim, h, w)))
    chain.append(Part(RepVitClassifier, (config.widths[-1], num_classes), (1, config.widths[-1])))
    return chain


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1.c",
        "classifier": "head.head.l",
        "paper_ids": "arXiv:2501.15369",
        "paper_name": "iFormer: Integrating ConvNet and Transformer for Mobile Application",
        "origin_url": "https://github.com/ChuanyangZheng/iFormer",
        "license": "mit",
        **kwargs,
    }


def create(
    config: IFormerConfig, *, variant: str = "iformer_ablation", pretrained: bool = False, **kwargs: Any
) -> IFormerAblation:
    """Build the model of a configuration through timm's builder (`features_only`, `in_chans` and the like work).

    A search that only counts is served by ``IFormerAblation(config, device="meta")``, or faster by `parts`.
    """
    if variant not in VARIANTS:
        kwargs.setdefault("pretrained_cfg", _cfg())
    return build_model_with_cfg(
        IFormerAblation,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": tuple(range(len(config.widths))), "flatten_sequential": True},
        config=config,
        **kwargs,
    )


def configured(base: str, **changes: Any) -> IFormerAblation:
    """Build a named configuration with changes, as specs state them: a builder for variants that have no name."""
    return create(configuration(base, changes))


def _default_cfgs() -> dict[str, dict[str, Any]]:
    """Windowed models are the paper's at 512 px and take the released classification weights; others have none."""
    cfgs = {}
    for name, config in VARIANTS.items():
        if not any(config.windowed):
            cfgs[f"{name}.untrained"] = _cfg()
            continue
        size = name.split("_")[1]
        downstream = {"input_size": (3, 512, 512), "pool_size": (16, 16)}
        if size == "l2":  # only its distilled weights are released
            cfgs[f"{name}.untrained"] = _cfg(**downstream)
        else:
            cfgs[f"{name}.in1k"] = _cfg(hf_hub_id=f"timm/iformer_{size}.in1k", **downstream)
    return cfgs


default_cfgs = generate_default_cfgs(_default_cfgs())


def _entrypoint(name: str, config: IFormerConfig) -> Callable[..., IFormerAblation]:
    def build(pretrained: bool = False, **kwargs: Any) -> IFormerAblation:
        return create(config, variant=name, pretrained=pretrained, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Build `{name}`: VARIANTS[{name!r}]."
    return build


for _name, _config in VARIANTS.items():
    globals()[_name] = register_model(_entrypoint(_name, _config))
