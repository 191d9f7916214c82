"""Networks as their official code holds them where that changes another program's count.

ptflops adds up what it finds under every name. The official SBCFormer holds its stem and its last stage under a second
name each, and ptflops counts both twice; the printed GMACs are that count. The port holds each once.
"""

from __future__ import annotations

import timm
from torch import nn

import repro.models  # noqa: F401 - registers the ports
from repro.errors import ModelError


def sbcformer(name: str) -> nn.Module:
    """Build an SBCFormer whose stem and last stage are also found under second names, as in the official code.

    Raises
    ------
    ModelError
        For another model.
    """
    if not name.startswith("sbcformer_"):
        raise ModelError(f"{name} is no SBCFormer")
    model: nn.Module = timm.create_model(name)
    # In a list of their own, because a module's children are told apart by identity, its descendants are not.
    model.second_names = nn.ModuleList(
        [model.get_submodule("stem"), list(model.get_submodule("stages").children())[-1]]
    )
    return model
