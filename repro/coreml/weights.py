"""Seeded weights under which every branch of a network shows in its output.

A conversion checked with default weights is hardly checked: a layer scale of 1e-6 hides a whole block, BatchNorm at
its start values hides its statistics, zero biases hide a dropped one. Trained weights exist for few variants. So the
checks draw their own, and scale each layer on a seeded input so that activations stay near one: nothing dies out on
the way and float16 does not overflow for want of training.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_FACTOR = re.compile(r"gamma|scale|alpha|temperature|\bls\d*\b", re.IGNORECASE)


def randomise(module: nn.Module, *, input_size: tuple[int, int, int], seed: int = 0) -> nn.Module:
    """Fill a module with seeded, non-trivial weights and statistics, in place.

    Layers are drawn by fan-in and then scaled so that on seeded inputs each gives outputs of variance one;
    normalisation gets factors from 0.6 to 1.4 and biases, BatchNorm statistics near those of the inputs but not equal
    to them; other factors (layer scales, temperatures) are drawn from 0.5 to 1.2 of one, or of what a single number
    was; everything else (position embeddings, bias tables, tokens) is drawn with a deviation of 0.2.

    Parameters
    ----------
    module
        Any image network; it is left in evaluation mode.
    input_size
        Channels, height and width of its input.
    seed
        The same seed gives the same weights.

    Returns
    -------
    nn.Module
        The module itself.
    """
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    with torch.no_grad():
        for name, child in module.named_modules():
            for key, parameter in child.named_parameters(recurse=False):
                parameter.copy_(_draw(f"{name}.{key}", child, key, parameter, generator))
        _scale(module, input_size, seed, generator)
    return module


def sample_inputs(input_size: tuple[int, int, int], *, count: int, seed: int) -> Tensor:
    """Seeded inputs (count, C, H, W) with a deviation about one: smooth shapes and noise, each in its own mixture.

    Pure noise would look the same to a network each time: what it averages over space hardly differs.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = input_size
    coarse = torch.randn((count, channels, 5, 5), generator=generator)
    smooth: Tensor = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    noise = torch.randn((count, channels, height, width), generator=generator)
    weight = torch.rand((count, 1, 1, 1), generator=generator) * 0.6 + 0.2
    mixture: Tensor = smooth * weight.sqrt() + noise * (1 - weight).sqrt()
    return mixture


def _normal(like: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator) * std


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator) * (high - low) + low


def _draw(name: str, owner: nn.Module, key: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if isinstance(owner, _LAYERS) and key == "weight":
        return _normal(parameter, parameter[0].numel() ** -0.5, generator)
    if key.endswith("bias") and parameter.ndim <= 1:
        return _normal(parameter, 0.2, generator)
    constant = bool(parameter.min() == parameter.max())
    if isinstance(owner, _BATCH_NORMS | nn.LayerNorm | nn.GroupNorm) or (key == "weight" and parameter.ndim == 1):
        return _uniform(parameter, 0.6, 1.4, generator)
    if parameter.numel() == 1 and float(parameter) != 0:
        return parameter * _uniform(parameter, 0.8, 1.2, generator)
    if _FACTOR.search(name) or (constant and float(parameter.max()) != 0):
        return _uniform(parameter, 0.5, 1.2, generator)
    return _normal(parameter, 0.2, generator)


def _scale(module: nn.Module, input_size: tuple[int, int, int], seed: int, generator: torch.Generator) -> None:
    """Scale each layer, and give each BatchNorm statistics, in the order in which seeded inputs reach them.

    The statistics of a few inputs overfit: in a deep network the next input would blow up. Further batches widen each
    variance to what they bring.
    """
    scaled: set[int] = set()
    measured: set[int] = set()

    def layer(owner: Any, inputs: Any, output: Tensor) -> Tensor:
        if id(owner.weight) in scaled:
            return output
        scaled.add(id(owner.weight))
        trailing = 0 if isinstance(owner, nn.Linear) else output.ndim - 2
        bias = 0 if owner.bias is None else owner.bias.reshape([-1] + [1] * trailing)
        plain = output - bias
        factor = float(plain.std().clamp(min=1e-6).reciprocal())
        owner.weight.mul_(factor)
        return plain * factor + bias

    def norm(owner: Any, inputs: tuple[Tensor, ...]) -> None:
        if owner.running_mean is None:
            return
        x = inputs[0]
        dims = [i for i in range(x.ndim) if i != 1]
        if id(owner) in measured:
            away = x - owner.running_mean.reshape([1, -1] + [1] * (x.ndim - 2))
            owner.running_var.copy_(torch.maximum(owner.running_var, away.square().mean(dims)))
            return
        measured.add(id(owner))
        variance, mean = torch.var_mean(x, dims, correction=0)
        variance = variance.clamp(min=max(0.2 * float(variance.mean()), 1e-3))
        owner.running_mean.copy_(mean + variance.sqrt() * _normal(mean, 0.2, generator))
        owner.running_var.copy_(variance * _uniform(variance, 0.6, 1.6, generator))

    hooks = [child.register_forward_hook(layer) for child in module.modules() if isinstance(child, _LAYERS)]
    norms = [child for child in module.modules() if isinstance(child, _BATCH_NORMS)]
    hooks += [child.register_forward_pre_hook(norm) for child in norms]
    try:
        for batch in range(4 if norms else 1):
            module(sample_inputs(input_size, count=4, seed=seed + 1000 * batch))
    finally:
        for hook in hooks:
            hook.remove()
