"""Which training-time regularisers a built model has: what Table 9 claims of iFormer is checked on the model itself."""

from __future__ import annotations

from torch import nn

_SCALES = ("LayerScale", "LayerScale2d", "LearnableScale")
_SCALE_NAMES = ("gamma", "gamma_1", "gamma_2", "layer_scale", "layer_scale_1", "layer_scale_2", "ls1", "ls2")


def stochastic_depth(model: nn.Module) -> list[str]:
    """Names of the modules that drop whole paths with a probability above zero (timm's ``DropPath`` and its kin)."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("DropPath", "StochasticDepth")
        and float(getattr(module, "drop_prob", None) or getattr(module, "p", None) or 0) > 0
    ]


def layer_scales(model: nn.Module) -> list[str]:
    """Names of the modules and parameters that scale a residual branch by a learned factor a channel."""
    modules = [name for name, module in model.named_modules() if type(module).__name__ in _SCALES]
    own = [
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[2] in _SCALE_NAMES and not name.startswith(tuple(f"{module}." for module in modules))
    ]
    return modules + own
