"""Count whole search spaces of configurations, fast: no weights, no arithmetic, and no part counted twice.

A space is a module with two functions: ``configuration(base, changes)`` makes a hashable configuration, and
``parts(configuration, height, width)`` takes its model apart into hashable parts with ``build(device=...)`` and
``shape``. A model costs what its parts cost together, and the configurations of a search share most of theirs, so each
distinct part is built once, on the meta device, and counted there.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from repro.errors import ModelError
from repro.measure.macs import second_count
from repro.models.reparam import apply_folds, find_folds, reparameterise
from repro.spec.tables import InputSize

Knobs = Mapping[str, Any]
Counts = tuple[int, int]  # parameters, multiply-adds


class Space:
    """A search space: configurations by their knobs, and what each costs.

    Parameters
    ----------
    module
        Name of the module that makes the configurations.
    base
        Name of the configuration that knobs change.
    input_size
        Height and width of the image in pixels.
    form
        As in a protocol: which branches and norms are merged before parameters are counted.

    Raises
    ------
    ModelError
        When the module is no search space.
    """

    def __init__(self, module: str, base: str, input_size: InputSize, form: str = "folded") -> None:
        try:
            self._module: Any = importlib.import_module(module)
            self._make, self._parts = self._module.configuration, self._module.parts
        except (ImportError, AttributeError) as error:
            raise ModelError(f"{module} is no search space: {error}") from error
        if form not in ("as_trained", "reparameterised", "folded"):
            raise ModelError(f"a search counts as_trained, reparameterised or folded, not {form!r}")
        self.base, self.input_size, self.form = base, input_size, form
        self._of_part: dict[Any, Counts] = {}
        self._of_configuration: dict[Any, Counts] = {}
        self._make(base, {})  # a base that does not exist is said before anything is counted

    @property
    def counted(self) -> int:
        """How many distinct configurations were counted."""
        return len(self._of_configuration)

    def count(self, knobs: Knobs) -> Counts | None:
        """Parameters and multiply-adds (attention's products counted, norms not); ``None`` where knobs make no model.

        Raises
        ------
        ModelError
            For a knob that does not exist.
        """
        try:
            configuration = self._make(self.base, knobs)
        except ModelError as error:
            if "knob" in str(error):
                raise
            return None
        if configuration not in self._of_configuration:
            found = [self._part(part) for part in self._parts(configuration, *self.input_size)]
            self._of_configuration[configuration] = (sum(one[0] for one in found), sum(one[1] for one in found))
        return self._of_configuration[configuration]

    def _part(self, part: Any) -> Counts:
        known = self._of_part.get(part)
        if known is None:
            known = self._of_part[part] = _count(part, self.form)
        return known


def _count(part: Any, form: str) -> Counts:
    model = nn.Sequential(part.build(device="meta")).eval()  # a part that is itself replaced needs a parent
    example = torch.zeros(part.shape, device="meta")
    if form != "as_trained":
        reparameterise(model)
    if form == "folded":
        apply_folds(model, find_folds(model, example))
    return sum(parameter.numel() for parameter in model.parameters()), second_count(model, example)
