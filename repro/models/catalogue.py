"""Build the variant that a table row names, from timm, torchvision or a paper's own Python code."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from repro.errors import ModelError
from repro.spec.tables import InputSize, Variant

_RANDOM = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_}


class _WithoutInitialisation(TorchFunctionMode):
    """Leave random initialisation out: counts do not depend on weights, and drawing them takes most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RANDOM:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build models whose random weights are zeros, some ten times faster; for counting only."""
    with _WithoutInitialisation():
        yield


def build(variant: Variant, *, input_size: InputSize | None = None) -> nn.Module:
    """Build ``variant`` in eval mode, with the weights that its builder draws.

    Parameters
    ----------
    input_size
        Height and width in pixels. Only models whose parameters depend on it (position tables) are told.

    Raises
    ------
    ModelError
        When the builder does not know the model or refuses its arguments.
    """
    builders = {"timm": _timm, "torchvision": _torchvision, "python": _python}
    if variant.builder not in builders:
        raise ModelError(f"{variant.id}: unknown builder {variant.builder!r}")
    return builders[variant.builder](variant, input_size).eval()


def _timm(variant: Variant, input_size: InputSize | None) -> nn.Module:
    import timm

    import repro.models  # noqa: F401 - registers the ported families

    if not timm.is_model(variant.model):
        raise ModelError(f"{variant.id}: timm {timm.__version__} has no model {variant.model!r}")
    arguments = dict(variant.arguments)
    default = timm.get_pretrained_cfg(variant.model, allow_unregistered=True)
    if input_size is not None and default is not None and default.fixed_input_size:
        arguments.setdefault("img_size", input_size)
    model: nn.Module = timm.create_model(variant.model, **arguments)
    return model


def _torchvision(variant: Variant, input_size: InputSize | None) -> nn.Module:
    import torchvision

    if variant.model not in torchvision.models.list_models():
        raise ModelError(f"{variant.id}: torchvision {torchvision.__version__} has no model {variant.model!r}")
    model: nn.Module = torchvision.models.get_model(variant.model, **variant.arguments)
    return model


def _python(variant: Variant, input_size: InputSize | None) -> nn.Module:
    name, _, function = variant.model.partition(":")
    try:
        target: Any = importlib.import_module(name)
        for part in function.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{variant.id}: {variant.model}: {error}") from error
    model = target(**variant.arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{variant.id}: {variant.model} returned a {type(model).__name__}, not a module")
    return model
