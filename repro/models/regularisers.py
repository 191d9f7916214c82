"""Which training-time regularisers a built model has: what Table 9 claims of iFormer is checked on the model itself."""

from __future__ import annotations

import re

from torch import nn

# By class, or by the names that families give the scales of their branches.
_CLASSES = ("LayerScale", "LayerScale2d", "LearnableScale")
_NAME = re.compile(r"(layer_?scale_?\w*|ls_?\d*|gamma_?\d*)")


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
    modules = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in _CLASSES or (_named_so(name) and not isinstance(module, nn.Identity))
    ]
    inside = tuple(f"{name}." for name in modules)
    return modules + [name for name, _ in model.named_parameters() if _named_so(name) and not name.startswith(inside)]


def _named_so(name: str) -> bool:
    return _NAME.fullmatch(name.rpartition(".")[2]) is not None
