"""Load a state dict in the layout of a family's official checkpoints.

A ported family keeps its own module names, in timm's idiom, and states how they map to the official ones in a function
``official_key(key) -> key`` of its module. From that one statement follow loading, the error text (in the names that
the checkpoint's owner knows) and timm's ``checkpoint_filter_fn``.

Official code that holds one submodule under two names writes its tensors twice. Such a family states the repeats in
``official_aliases(model) -> {repeating prefix: repeated prefix}``, both official; its port has each tensor once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from repro.errors import ModelError


class StateDictError(ModelError):
    """A state dict that does not fit a model; every fault is named."""


def official_keys(model: nn.Module) -> dict[str, str]:
    """Map each official checkpoint key of ``model`` to the model's own state-dict key, in the model's order.

    Families without a mapping of their own use their module names as they stand. Keys that repeat others come last.
    Detectors and segmenters, which hold a backbone of any family, tell their mapping themselves.
    """
    own_statement: Any = getattr(model, "official_keys", None)
    if callable(own_statement):
        return dict(own_statement())
    module = sys.modules[type(model).__module__]
    rename: Callable[[str], str] = getattr(module, "official_key", lambda key: key)
    aliases: Callable[[nn.Module], Mapping[str, str]] = getattr(module, "official_aliases", lambda model: {})
    names = {rename(key): key for key in model.state_dict()}
    for alias, prefix in aliases(model).items():
        names |= {alias + key.removeprefix(prefix): own for key, own in names.items() if key.startswith(prefix)}
    return names


def checkpoint_filter_fn(state_dict: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename official keys to the model's own, for ``timm.models.build_model_with_cfg``; others pass through.

    Where a tensor is given twice the repeat counts, as in :func:`load_official`.
    """
    names = official_keys(model)
    own = {own: state_dict[key] for key, own in names.items() if key in state_dict}
    return own | {key: value for key, value in state_dict.items() if key not in names}


def load_official(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> nn.Module:
    """Load ``state_dict``, in the official checkpoint's layout, strictly into ``model`` and return the model.

    Nothing is written before every key and shape has been checked, so a model is never half loaded. Where the layout
    has a tensor twice and the two differ, the repeat counts: the official model, too, is left with what it copies last.

    Raises
    ------
    StateDictError
        Names every missing key, unexpected key and wrong shape, in the official names.
    """
    own = model.state_dict()
    names = official_keys(model)
    module = sys.modules[type(model).__module__]
    if not hasattr(module, "official_key") and hasattr(module, "checkpoint_filter_fn"):
        # timm's own models, and those built on them, state their official layout as a filter
        state_dict = module.checkpoint_filter_fn(dict(state_dict), model)
    faults = [f"missing key {key}" for key in names if key not in state_dict]
    faults += [f"unexpected key {key}" for key in state_dict if key not in names]
    for key, value in state_dict.items():
        if key not in names:
            continue
        if not isinstance(value, torch.Tensor):
            faults.append(f"{key} is a {type(value).__name__}, not a tensor")
        elif value.shape != own[names[key]].shape:
            faults.append(f"{key} has shape {list(value.shape)}, the model {list(own[names[key]].shape)}")
    if faults:
        raise StateDictError(f"the state dict does not fit {type(model).__name__}: " + "; ".join(faults))
    model.load_state_dict({own_key: state_dict[key] for key, own_key in names.items()}, strict=True)
    return model
