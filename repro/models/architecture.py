"""What a network is made of, read off its modules and one forward pass: the contents of an architecture table.

Nothing is taken from a variant's name or configuration. A convolution's kernel, stride and width are its own; whether
a norm and an activation follow it is what runs after it; a query's width is the number of channels that its projection
makes; an FFN's ratio is the quotient of its two widths. The pass runs on the meta device: no arithmetic, no memory.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from repro.errors import ModelError
from repro.spec.tables import Block, InputSize, Layer

_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
_ACTIVATIONS = (nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)
_NORM_NAMES = {"BatchNorm2d": "BN", "GroupNorm": "GN", "LayerNorm": "LN"}
_LEAVES = (nn.Conv2d, *_NORMS, *_ACTIVATIONS)


def describe(model: nn.Module, input_size: InputSize) -> list[dict[str, Any]]:
    """Walk a model that is a stem and stages, each a ``downsample`` and ``blocks``, as timm's iFormer is.

    Parameters
    ----------
    model
        In eval mode, on the meta device or with weights; it is not changed.
    input_size
        Height and width of the image in pixels.

    Returns
    -------
    list of dict
        One entry a stage, from input to output: ``stage``, ``output_size`` and ``downsampling`` as a paper prints
        them (``14×14``, ``16×``), and ``blocks``, each as ``repro.spec.tables.Block`` in plain data.

    Raises
    ------
    ModelError
        For a model that is not built so, or has a block of a kind that is not known.
    """
    stem, stages = getattr(model, "stem", None), getattr(model, "stages", None)
    if not isinstance(stem, nn.Module) or not isinstance(stages, nn.Sequential):
        raise ModelError(f"{type(model).__name__} is not a stem and stages; its architecture cannot be walked")
    walk = _Walk(model, input_size)
    described = [_stage("Stem", _stem(walk.layers(stem)), walk.outputs[stem], input_size)]
    for number, stage in enumerate(stages, start=1):
        blocks = [Block(layers=(layer,)) for layer in walk.layers(getattr(stage, "downsample", nn.Identity()))]
        children = getattr(stage, "blocks", None)
        if not isinstance(children, nn.Sequential):
            raise ModelError(f"stage {number} of {type(model).__name__} has no sequence of blocks")
        blocks += _repeated(_joined([_block(child, walk) for child in children]))
        described.append(_stage(f"Stage {number}", blocks, walk.outputs[stage], input_size))
    return described


class _Walk:
    """One forward pass: the order in which leaves ran, and the shape of what each module returned."""

    def __init__(self, model: nn.Module, input_size: InputSize) -> None:
        self.order: dict[nn.Module, int] = {}
        self.outputs: dict[nn.Module, torch.Size] = {}
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))

        def left(module: nn.Module, args: Any, output: Any) -> None:
            self.order.setdefault(module, len(self.order))
            if isinstance(output, torch.Tensor):
                self.outputs[module] = output.shape

        handles = [module.register_forward_hook(left) for module in model.modules()]
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, first.in_channels, *input_size, device=first.weight.device))
        finally:
            for handle in handles:
                handle.remove()

    def leaves(self, module: nn.Module) -> list[nn.Module]:
        """The convolutions, norms and activations under ``module``, as they ran."""
        found = [leaf for leaf in module.modules() if isinstance(leaf, _LEAVES) and leaf in self.order]
        return sorted(found, key=lambda leaf: self.order[leaf])

    def layers(self, module: nn.Module) -> list[Layer]:
        """Each convolution under ``module`` with what ran directly after it."""
        layers: list[Layer] = []
        for leaf in self.leaves(module):
            if isinstance(leaf, nn.Conv2d):
                layers.append(
                    Layer(op="Conv", kernel=_square(leaf), stride=int(leaf.stride[0]), width=leaf.out_channels)
                )
            elif layers:
                name = _NORM_NAMES.get(type(leaf).__name__, type(leaf).__name__)
                last = layers[-1]
                layers[-1] = Layer(op=f"{last.op}-{name}", kernel=last.kernel, stride=last.stride, width=last.width)
        return layers


def _square(conv: nn.Conv2d) -> int:
    height, width = conv.kernel_size
    if height != width:
        raise ModelError(f"a kernel of {height}x{width} has no place in an architecture table")
    return int(height)


def _stem(layers: list[Layer]) -> list[Block]:
    """A stem has no blocks of its own: each convolution that halves the map begins one."""
    blocks: list[list[Layer]] = []
    for layer in layers:
        if not blocks or (layer.stride or 1) > 1:
            blocks.append([])
        blocks[-1].append(layer)
    return [Block(layers=tuple(block)) for block in blocks]


def _block(module: nn.Module, walk: _Walk) -> tuple[Layer, ...]:
    """One residual block: attention, an FFN, a positional encoding, or convolutions."""
    attention = next((item for item in module.modules() if _is_attention(item)), None)
    if attention is not None:
        return (_attention(attention),)
    convs = [leaf for leaf in walk.leaves(module) if isinstance(leaf, nn.Conv2d)]
    if not convs:
        raise ModelError(f"a block without a convolution: {type(module).__name__}")
    depthwise = [_is_depthwise(conv) for conv in convs]
    if len(convs) == 1 and depthwise[0]:
        return (Layer(op="CPE", kernel=_square(convs[0])),)
    if not depthwise[0] and convs[0].kernel_size == (1, 1):
        inside = [Layer(op="DWConv", kernel=_square(conv)) for conv, own in zip(convs, depthwise, strict=True) if own]
        ratio, rest = divmod(convs[0].out_channels, convs[0].in_channels)
        if rest:
            raise ModelError(
                f"an FFN from {convs[0].in_channels} to {convs[0].out_channels} channels has no whole ratio"
            )
        return (Layer(op="FFN", ratio=ratio), *inside)
    return tuple(walk.layers(module))


def _is_attention(module: nn.Module) -> bool:
    return isinstance(getattr(module, "q", None), nn.Module) and isinstance(getattr(module, "k", None), nn.Module)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1


def _projection(module: nn.Module) -> nn.Conv2d:
    return next(leaf for leaf in module.modules() if isinstance(leaf, nn.Conv2d))


def _attention(module: Any) -> Layer:
    """Single-head attention: as wide as its queries; modulated when its values' projection also makes a gate."""
    query, values, output = _projection(module.q), _projection(module.v_gate), _projection(module.proj)
    gated = values.out_channels == 2 * output.in_channels
    return Layer(op="SHMA" if gated else "SHA", head_dim=query.out_channels)


def _joined(units: list[tuple[Layer, ...]]) -> list[tuple[Layer, ...]]:
    """Positional encoding, attention and FFN are one block of an architecture table: an FFN ends it."""
    joined: list[tuple[Layer, ...]] = []
    is_open = False
    for unit in units:
        belongs = unit[0].op in ("CPE", "SHMA", "SHA", "FFN")
        joined[-1:] = [joined[-1] + unit] if is_open and belongs else [*joined[-1:], unit]
        is_open = belongs and unit[0].op != "FFN"
    return joined


def _repeated(units: list[tuple[Layer, ...]]) -> list[Block]:
    blocks: list[Block] = []
    for unit in units:
        if blocks and blocks[-1].layers == unit:
            blocks[-1] = Block(layers=unit, repeat=blocks[-1].repeat + 1)
        else:
            blocks.append(Block(layers=unit))
    return blocks


def _stage(name: str, blocks: list[Block], shape: torch.Size, input_size: InputSize) -> dict[str, Any]:
    height, width = shape[-2:]
    return {
        "stage": name,
        "output_size": f"{height}×{width}",
        "downsampling": f"{round(input_size[0] / height)}×",
        "blocks": [{"layers": [asdict(layer) for layer in block.layers], "repeat": block.repeat} for block in blocks],
    }
