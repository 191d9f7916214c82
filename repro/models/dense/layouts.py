"""The keys of a backbone in its family's own detection and segmentation code.

Each function takes timm's model (or this project's port of the family) and tells, for each of its keys, the key in a
released detector. They say in code what the official modules are called; the repositories are named at each.
Norms on the outputs are ``norms.0`` to ``norms.3`` here.
"""

import re
from collections.abc import Callable

from torch import nn

__all__ = [
    "Layout",
    "convnext",
    "efficientformer",
    "efficientformerv2",
    "efficientmod",
    "fastvit",
    "iformer",
    "poolformer",
    "pvtv2",
    "repvit",
    "resnet",
    "resnet_deep_stem",
    "swin",
]

Layout = Callable[[str], str]


def _renamed(key: str, *rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> str:
    """Apply regular expressions in turn."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _network(prefix: str = "") -> list[tuple[str, Callable[[re.Match[str]], str]]]:
    """A flat list of stages (even) and downsamplings (odd), as PoolFormer began it; each output has a norm."""
    return [
        (r"^norms\.(\d)", lambda m: f"norm{2 * int(m[1])}"),
        (r"^stages\.(\d)\.downsample", lambda m: f"network.{2 * int(m[1]) - 1}"),
        (r"^stages\.(\d)\.blocks", lambda m: f"network.{2 * int(m[1])}"),
    ]


def resnet(body: nn.Module) -> Layout:
    """MMDetection's ``ResNet``: torchvision's names, which timm has too."""
    return lambda key: key


def resnet_deep_stem(body: nn.Module) -> Layout:
    """MMSegmentation's ``ResNetV1c``; timm calls the stem's last norm bn1."""
    return lambda key: _renamed(key, (r"^conv1\.", "stem."), (r"^bn1\.", "stem.7."))


def poolformer(body: nn.Module) -> Layout:
    """sail-sg/poolformer, models/poolformer.py."""
    return lambda key: _renamed(
        key,
        *_network(),
        (r"^stem\.conv", "patch_embed.proj"),
        (r"^(network\.\d)\.conv", r"\1.proj"),
        (r"layer_scale(\d)\.scale", r"layer_scale_\1"),
    )


def convnext(body: nn.Module) -> Layout:
    """facebookresearch/ConvNeXt, object_detection/mmdet/models/backbones/convnext.py."""
    return lambda key: _renamed(
        key,
        (r"^norms\.(\d)", r"norm\1"),
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"^stages\.(\d)\.blocks", r"stages.\1"),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
    )


def efficientformer(body: nn.Module) -> Layout:
    """snap-research/EfficientFormer, detection/backbone.py."""
    stem = {"conv1": 0, "norm1": 1, "conv2": 3, "norm2": 4}
    return lambda key: _renamed(
        key,
        *_network(),
        (r"^stem\.(\w+)", lambda m: f"patch_embed.{stem[m[1]]}"),
        (r"^(network\.\d)\.conv", r"\1.proj"),
        (r"ls(\d)\.gamma", r"layer_scale_\1"),
        (r"\.biases\.", "."),
    )


def efficientformerv2(body: nn.Module) -> Layout:
    """snap-research/EfficientFormer, detection/backbonev2.py."""
    return lambda key: _renamed(
        key,
        (r"^stem\.conv(\d)\.(conv|bn)", lambda m: f"patch_embed.{3 * (int(m[1]) - 1) + (m[2] == 'bn')}"),
        (r"^stages\.3\.downsample\.conv\.(conv|bn)", r"network.5.\1"),  # beside attention the names are others
        (r"^(stages\.\d\.downsample)\.conv\.conv", r"\1.proj"),
        (r"^(stages\.\d\.downsample)\.conv\.bn", r"\1.norm"),
        *_network(),
        (r"(attn|token_mixer)\.proj\.(conv|bn)", lambda m: f"{m[1]}.proj.{1 + (m[2] == 'bn')}"),
        (r"\.(q|k|v|v_local|stride_conv|q\.proj)\.(conv|bn)", lambda m: f".{m[1]}.{int(m[2] == 'bn')}"),
        (r"\.q\.local\.", ".q.local.0."),
        (r"\.fc(\d)\.conv", r".fc\1"),
        (r"\.fc(\d)\.bn", r".norm\1"),
        (r"\.mid\.conv", ".mid"),
        (r"\.mid\.bn", ".mid_norm"),
        (r"ls(\d)\.gamma", r"layer_scale_\1"),
        (r"\.biases\.", "."),
    )


def repvit(body: nn.Module) -> Layout:
    """THU-MIG/RepViT, detection/repvit.py: one list of blocks, the stem first."""
    index: dict[str, int] = {}
    for i, stage in enumerate(body.stages):  # type: ignore[arg-type, var-annotated]
        if i:
            index[f"stages.{i}.downsample.pre_block"] = len(index) + 1
            index[f"stages.{i}.downsample"] = len(index) + 1
        for j in range(len(stage.blocks)):  # type: ignore[arg-type, union-attr]
            index[f"stages.{i}.blocks.{j}"] = len(index) + 1
    inside = (
        (r"^spatial_downsample", "token_mixer.0"),
        (r"^channel_downsample", "token_mixer.2"),
        (r"^ffn\.", "channel_mixer."),
        (r"^token_mixer\.(conv|conv1|bn)\.", r"token_mixer.0.\1."),
        (r"^se\.", "token_mixer.1."),
        (r"^channel_mixer\.conv1", "channel_mixer.m.0"),
        (r"^channel_mixer\.conv2", "channel_mixer.m.2"),
    )

    def layout(key: str) -> str:
        key = _renamed(key, (r"^stem\.conv1", "features.0.0"), (r"^stem\.conv2", "features.0.2"))
        match = re.match(r"(stages\.\d+\.(?:downsample\.pre_block|downsample|blocks\.\d+))\.(.*)", key)
        return f"features.{index[match[1]]}.{_renamed(match[2], *inside)}" if match else key

    return layout


def pvtv2(body: nn.Module) -> Layout:
    """whai362/PVT, detection/pvt_v2.py."""
    return lambda key: _renamed(
        key,
        (r"^patch_embed\.", "patch_embed1."),
        (r"^stages\.(\d)\.downsample", lambda m: f"patch_embed{int(m[1]) + 1}"),
        (r"^stages\.(\d)\.norm", lambda m: f"norm{int(m[1]) + 1}"),
        (r"^stages\.(\d)\.blocks", lambda m: f"block{int(m[1]) + 1}"),
        (r"dwconv", "dwconv.dwconv"),
    )


def fastvit(body: nn.Module) -> Layout:
    """apple/ml-fastvit, models/fastvit.py with ``fork_feat``; the positional encoding takes a place in the list."""
    return lambda key: _renamed(
        key,
        (r"^stages\.(\d)\.downsample", lambda m: f"network.{2 * int(m[1]) - 1}"),
        (r"^stages\.3\.pos_emb\.pos_enc", "network.6.pe"),
        (r"^stages\.3\.blocks", "network.7"),
        (r"^norms\.3", "norm7"),
        *_network(),
        (r"^stem", "patch_embed"),
        (r"conv_kxk", "rbr_conv"),
        (r"conv_scale", "rbr_scale"),
        (r"identity", "rbr_skip"),
        (r"large_conv", "lkb_origin"),
        (r"\.mlp\.", ".convffn."),
        (r"\.se\.fc1", ".se.reduce"),
        (r"\.se\.fc2", ".se.expand"),
        (r"(layer_scale(_\d)?)\.gamma", r"\1"),
    )


def efficientmod(body: nn.Module) -> Layout:
    """ma-xu/EfficientMod, detection/backbone/efficientMod.py: the names of its classification code."""
    from repro.models.efficientmod import official_key

    return official_key


def swin(body: nn.Module) -> Layout:
    """SwinTransformer/Swin-Transformer-Object-Detection, mmdet/models/backbones/swin_transformer.py."""
    return lambda key: _renamed(
        key,
        (r"^norms\.(\d)", r"norm\1"),
        (r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
    )


def iformer(body: nn.Module) -> Layout:
    """The iFormer paper's own code, detection/iformer.py."""
    from repro.models.iformer_ablations import FFN

    ffn = {name for name, module in body.named_modules() if isinstance(module, FFN)}

    def mixer(match: re.Match[str]) -> str:
        return f"{match[1]}.{'channel_mixer' if match[1] in ffn else 'token_channel_mixer'}.m."

    return lambda key: _renamed(
        key,
        (r"^stem\.conv1", "downsample_layers.0.0"),
        (r"^stem\.conv2", "downsample_layers.0.2.conv_exp_bn1"),
        (r"^stem\.conv3", "downsample_layers.0.2.conv_pwl_bn2"),
        (r"^stages\.(\d)\.downsample", r"downsample_layers.\1.0"),
        (r"^(stages\.\d\.blocks\.\d+)\.mixer\.module\.", mixer),
        (r"^(stages\.\d\.blocks\.\d+)\.cpe\.module\.", r"\1.cpe.m."),
        (r"^stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2.block."),
    )
