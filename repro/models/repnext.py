"""RepNeXt: multi-scale convolutions, trained as many branches and deployed as few.

Paper: `RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization` - https://arxiv.org/abs/2406.16004

@article{zhao2024repnext,
  title={RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization},
  author={Zhao, Mingshu and Luo, Yi and Ouyang, Yong},
  journal={arXiv preprint arXiv:2406.16004},
  year={2024}
}

The architecture follows the official code at https://github.com/suous/RepNeXt. It is fully convolutional, so that any
input size works. ``timm.utils.reparameterize_model`` turns a model into the form that the authors deploy and count:
each depthwise group of branches is one convolution, convolutions and linear layers have taken over their BatchNorm,
and the two heads are averaged into one.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from repro.errors import ModelError
from repro.models.official import checkpoint_filter_fn

__all__ = ["RepNext"]

Logits = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class ConvNorm(nn.Sequential):
    """A convolution without bias and its BatchNorm."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int = 1, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride=stride, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return one convolution that does the same in eval mode."""
        frozen = copy.deepcopy(self).eval()
        return fuse_conv_bn_eval(frozen.conv, frozen.norm).train(self.training)


class NormLinear(nn.Sequential):
    """A BatchNorm over ``[B, dim]`` features and a linear layer to ``[B, num_classes]``."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.linear = nn.Linear(dim, num_classes)
        trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        """Return one linear layer that does the same in eval mode."""
        fused, norm = copy.deepcopy(self.linear), self.norm
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        fused.bias.add_(fused.weight @ (norm.bias - mean * scale))
        fused.weight.mul_(scale)
        return fused


def _dwconv(
    dim: int, height: int, width: int, stride: tuple[int, int] = (1, 1), dilation: int = 1, bias: bool = True
) -> nn.Conv2d:
    """Build a depthwise convolution that is padded so that its kernel is centred."""
    padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    return nn.Conv2d(
        dim, dim, (height, width), stride=stride, padding=padding, dilation=dilation, groups=dim, bias=bias
    )


def _square_kernel(branch: nn.Module, size: int) -> torch.Tensor:
    """Give the ``[dim, 1, size, size]`` kernel that does what ``branch`` does.

    ``branch`` is a convolution, or a row convolution and then a column convolution.
    """
    if isinstance(branch, nn.Conv2d):
        kernel, step = branch.weight, branch.dilation[0]
        if step > 1:
            height, width = kernel.shape[2:]
            spread = kernel.new_zeros(*kernel.shape[:2], step * (height - 1) + 1, step * (width - 1) + 1)
            spread[:, :, ::step, ::step] = kernel
            kernel = spread
    else:
        row, column = branch.parameters()
        kernel = column @ row
    pad_h, pad_w = (size - kernel.shape[2]) // 2, (size - kernel.shape[3]) // 2
    return F.pad(kernel, (pad_w, pad_w, pad_h, pad_h))


class RepDwConv(nn.Module):
    """A depthwise convolution trained as the sum of itself and of smaller ones, the paper's RepDWConv.

    ``[B, dim, H, W]`` to ``[B, dim, H/stride, W/stride]``. ``fuse`` gives the one convolution.

    Parameters
    ----------
    size:
        Height and width of the largest kernel, which is the fused one's too.
    parallel:
        ``(height, width, dilation)`` of each further branch that is one convolution.
    serial:
        Sizes ``k`` of the branches that are a 1 x k and then a k x 1 convolution, both without bias: a bias between
        the two would not reach the padding, and they could not be merged.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        parallel: Sequence[tuple[int, int, int]] = (),
        serial: Sequence[int] = (),
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.main = _dwconv(dim, size, size, (stride, stride))
        branches: dict[str, nn.Module] = {}
        for height, width, dilation in parallel:
            branches[f"k{height}x{width}"] = _dwconv(dim, height, width, (stride, stride), dilation)
        for k in serial:
            row = _dwconv(dim, 1, k, (1, stride), bias=False)
            column = _dwconv(dim, k, 1, (stride, 1), bias=False)
            branches[f"s{k}"] = nn.Sequential(OrderedDict([(f"k1x{k}", row), (f"k{k}x1", column)]))
        self.branches = nn.ModuleDict(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum the branches' outputs."""
        out = self.main(x)
        for branch in self.branches.values():
            out = out + branch(x)
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the one convolution that does the same."""
        fused = copy.deepcopy(self.main)
        bias = fused.get_parameter("bias")
        for branch in self.branches.values():
            fused.weight.add_(_square_kernel(branch, fused.kernel_size[0]))
            if isinstance(branch, nn.Conv2d):
                bias.add_(branch.get_parameter("bias"))
        return fused


def _rep_dwconv_small(dim: int, stride: int = 1) -> RepDwConv:
    """3x3 group. With a stride the row and the column convolution stand in series, not side by side."""
    if stride == 1:
        return RepDwConv(dim, 3, parallel=((1, 3, 1), (3, 1, 1), (2, 2, 2)))
    return RepDwConv(dim, 3, parallel=((2, 2, 2),), serial=(3,), stride=stride)


def _rep_dwconv_medium(dim: int, stride: int = 1) -> RepDwConv:
    """7x7 group."""
    return RepDwConv(dim, 7, parallel=((5, 3, 1), (3, 5, 1)), serial=(7, 5), stride=stride)


class ChunkConv(nn.Module):
    """Token mixer of a block: one quarter of the channels each left as is, to 3x3, to 7x7, to 1x11 then 11x1.

    Shapes: ``[B, dim, H, W]`` to the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        dim = dim // 4
        self.conv_s = _rep_dwconv_small(dim)
        self.conv_m = _rep_dwconv_medium(dim)
        self.conv_l = nn.Sequential(_dwconv(dim, 1, 11), _dwconv(dim, 11, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix each channel's positions."""
        rest, small, medium, large = x.chunk(4, dim=1)
        return torch.cat((rest, self.conv_s(small), self.conv_m(medium), self.conv_l(large)), dim=1)


class CopyConv(nn.Module):
    """Token mixer of a downsampling: all channels to 3x3 and to 7x7, both of stride 2.

    Shapes: ``[B, dim, H, W]`` to ``[B, 2 * dim, H/2, W/2]``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_s = _rep_dwconv_small(dim, stride=2)
        self.conv_m = _rep_dwconv_medium(dim, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix each channel's positions, at two scales."""
        return torch.cat((self.conv_s(x), self.conv_m(x)), dim=1)


class Mlp(nn.Sequential):
    """Channel mixer: 1x1 convolutions to ``mlp_ratio`` times the channels and back, each with BatchNorm."""

    def __init__(self, dim: int, mlp_ratio: int, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim * mlp_ratio)
        self.act = act_layer()
        self.conv2 = ConvNorm(dim * mlp_ratio, dim)


class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2: ``[B, in_chans, H, W]`` to ``[B, dim, H/4, W/4]``."""

    def __init__(self, in_chans: int, dim: int, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_chans, dim // 2, 3, stride=2, padding=1)
        self.act = act_layer()
        self.conv2 = ConvNorm(dim // 2, dim, 3, stride=2, padding=1)


class Block(nn.Module):
    """Token mixer, BatchNorm and channel mixer under one skip connection, as in MetaNeXt.

    Shapes: ``[B, dim, H, W]`` to the same.
    """

    def __init__(self, dim: int, mlp_ratio: int, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.token_mixer = ChunkConv(dim)
        self.norm = nn.BatchNorm2d(dim)
        self.channel_mixer = Mlp(dim, mlp_ratio, act_layer=act_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return x + self.channel_mixer(self.norm(self.token_mixer(x)))


class Downsample(nn.Module):
    """The same at half the size and twice the channels: only the channel mixer has a skip connection.

    Shapes: ``[B, in_dim, H, W]`` to ``[B, 2 * in_dim, H/2, W/2]``.
    """

    def __init__(self, in_dim: int, mlp_ratio: int, act_layer: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.token_mixer = CopyConv(in_dim)
        self.norm = nn.BatchNorm2d(2 * in_dim)
        self.channel_mixer = Mlp(2 * in_dim, mlp_ratio, act_layer=act_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the downsampling."""
        x = self.norm(self.token_mixer(x))
        return x + self.channel_mixer(x)


class Stage(nn.Module):
    """An optional downsampling, which doubles the channels to ``dim``, then ``depth`` blocks."""

    def __init__(
        self, dim: int, depth: int, mlp_ratio: int, downsample: bool, act_layer: type[nn.Module] = nn.GELU
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = Downsample(dim // 2, mlp_ratio, act_layer=act_layer) if downsample else nn.Identity()
        self.blocks = nn.Sequential(*[Block(dim, mlp_ratio, act_layer=act_layer) for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the stage."""
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Classifier(nn.Module):
    """Two heads on ``[B, dim]`` features, the second for a teacher; both exist however a model was trained."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.distilled_training = False
        self.head = NormLinear(dim, num_classes)
        self.head_dist = NormLinear(dim, num_classes)

    def forward(self, x: torch.Tensor) -> Logits:
        """Average the heads' logits, or return both in distilled training."""
        logits, logits_dist = self.head(x), self.head_dist(x)
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return logits, logits_dist
        return (logits + logits_dist) / 2

    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        """Return the one linear layer that gives the average."""
        fused, dist = self.head.fuse(), self.head_dist.fuse()
        fused.weight.add_(dist.weight).div_(2)
        fused.bias.add_(dist.bias).div_(2)
        return fused


class RepNext(nn.Module):
    """RepNeXt classifier: ``[B, in_chans, H, W]`` images to ``[B, num_classes]`` logits.

    Parameters
    ----------
    depths, dims:
        Blocks and channels of the four stages; the channels double from stage to stage.
    drop_rate:
        Dropout before the heads.
    global_pool:
        ``"avg"``, or ``""`` for no pooling, which goes with ``num_classes=0`` only.

    Raises
    ------
    ModelError
        The channels do not double or do not split in four, or the pooling is unknown or absent before a classifier.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        mlp_ratio: int = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: type[nn.Module] = nn.GELU,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dims[0] % 4 or any(dim != 2 * before for before, dim in pairwise(dims)):
            raise ModelError(
                f"RepNeXt's channels are a multiple of 4 and double from stage to stage, not {tuple(dims)}"
            )
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 2 ** (i + 2), "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        # One place for the device serves every layer, so that the layers need not hand it on.
        with torch.device(device) if device else nullcontext():
            self.stem = Stem(in_chans, dims[0], act_layer=act_layer)
            self.stages = nn.Sequential(
                *[
                    Stage(dim, depth, mlp_ratio, downsample=i > 0, act_layer=act_layer)
                    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True))
                ]
            )
        self.head_drop = nn.Dropout(drop_rate)
        self.to(dtype=dtype)
        self._set_classifier(num_classes, global_pool)

    def _set_classifier(self, num_classes: int, global_pool: str) -> None:
        if global_pool not in ("", "avg"):
            raise ModelError(f"RepNeXt pools with 'avg' or not at all (''), not with {global_pool!r}")
        if not global_pool and num_classes:
            raise ModelError("RepNeXt without pooling has no classifier: pass num_classes=0")
        self.global_pool = global_pool
        self.num_classes = num_classes
        like = next(self.stem.parameters())
        with torch.device(like.device):
            head = Classifier(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(dtype=like.dtype).train(self.training)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names that take no weight decay besides the vectors: none."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates, in timm's form."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: recompute each block's activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' logits as a tuple in training, for a distillation loss.

        Raises
        ------
        ModelError
            The model has no pair of heads: its classifier was removed, or it was reparameterised.
        """
        if not isinstance(self.head, Classifier):
            raise ModelError("this RepNeXt has no pair of heads to train against a teacher")
        self.head.distilled_training = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier, which holds both heads."""
        return self.head

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
            Accepted for timm's interface; the architecture has no final norm.
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
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of the stages ``indices`` do not need, and return these stages' numbers."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shorter = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Turn images into the last stage's map, ``[B, num_features, H/32, W/32]``."""
        return self.stages(self.stem(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> Logits:
        """Pool the map and classify; ``pre_logits`` stops before the heads.

        Returns ``[B, num_classes]``, or a pair of them in distilled training.
        """
        if self.global_pool == "avg":
            x = x.mean(dim=(2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> Logits:
        """Classify ``[B, in_chans, H, W]`` images; see `forward_head` for what comes back."""
        return self.forward_head(self.forward_features(x))

    def fuse(self) -> RepNext:
        """Turn the model, in place, into the deployed form, and return it. Its eval-mode outputs stay the same."""
        return reparameterize_model(self, inplace=True)


# Own module names, as trained or reparameterised, to the official ones.
_OFFICIAL_NAMES = (
    (r"^stem\.conv1\.", "stem.stem.0."),
    (r"^stem\.conv2\.", "stem.stem.2."),
    (r"\.channel_mixer\.conv1\.", ".channel_mixer.0."),
    (r"\.channel_mixer\.conv2\.", ".channel_mixer.2."),
    (r"\.conv_s\.main\.", ".conv_s.conv_3_3."),
    (r"\.conv_m\.main\.", ".conv_m.conv_7_7."),
    (r"\.branches\.(?:s\d\.)?k1x(\d)\.", r".conv_\1_w."),
    (r"\.branches\.(?:s\d\.)?k(\d)x1\.", r".conv_\1_h."),
    (r"\.branches\.k(\d)x(\d)\.", r".conv_\1_\2."),
)


def official_key(key: str) -> str:
    """Name the entry of an official checkpoint that belongs to the model's ``key``."""
    for pattern, name in _OFFICIAL_NAMES:
        key = re.sub(pattern, name, key)
    return key


def _filter_checkpoint(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    # A file of the official training script holds the weights that it evaluates under "model".
    return checkpoint_filter_fn(state_dict.get("model", state_dict), model)


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    # The official evaluation resizes to 256 and crops 224.
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1.conv",
        "classifier": ("head.head.linear", "head.head_dist.linear"),
        **kwargs,
    }


_RELEASE = "https://github.com/suous/RepNeXt/releases/download/v1.0"

# Distilled weights. The accuracies without distillation that the paper prints too have no released weights.
default_cfgs = generate_default_cfgs(
    {f"repnext_m{size}.dist_300e_in1k": _cfg(url=f"{_RELEASE}/repnext_m{size}_distill_300e.pth") for size in range(6)}
)


def _create_repnext(variant: str, pretrained: bool = False, **kwargs: Any) -> RepNext:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        RepNext,
        variant,
        pretrained,
        pretrained_filter_fn=_filter_checkpoint,
        feature_cfg={"out_indices": out_indices, "flatten_sequential": True},
        **kwargs,
    )


@register_model
def repnext_m0(pretrained: bool = False, **kwargs: Any) -> RepNext:
    """RepNeXt-M0, 2.3 M parameters when reparameterised."""
    model_args = {"depths": (2, 2, 9, 1), "dims": (40, 80, 160, 320)}
    return _create_repnext("repnext_m0", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def repnext_m1(pretrained: bool = False, **kwargs: Any) -> RepNext:
    """RepNeXt-M1, 4.8 M parameters when reparameterised."""
    model_args = {"depths": (3, 3, 15, 2), "dims": (48, 96, 192, 384)}
    return _create_repnext("repnext_m1", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def repnext_m2(pretrained: bool = False, **kwargs: Any) -> RepNext:
    """RepNeXt-M2, 6.5 M parameters when reparameterised."""
    model_args = {"depths": (3, 3, 15, 2), "dims": (56, 112, 224, 448)}
    return _create_repnext("repnext_m2", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def repnext_m3(pretrained: bool = False, **kwargs: Any) -> RepNext:
    """RepNeXt-M3, 7.8 M parameters when reparameterised."""
    model_args = {"depths": (3, 3, 13, 2), "dims": (64, 128, 256, 512)}
    return _create_repnext("repnext_m3", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def repnext_m4(pretrained: bool = False, **kwargs: Any) -> RepNext:
    """RepNeXt-M4, 13.3 M parameters when reparameterised."""
    model_args = {"depths": (5, 5, 25, 4), "dims": (64, 128, 256, 512)}
    return _create_repnext("repnext_m4", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def repnext_m5(pretrained: bool = False, **kwargs: Any) -> RepNext:
    """RepNeXt-M5, 21.7 M parameters when reparameterised."""
    model_args = {"depths": (7, 7, 35, 2), "dims": (80, 160, 320, 640)}
    return _create_repnext("repnext_m5", pretrained=pretrained, **{**model_args, **kwargs})
