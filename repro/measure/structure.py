"""The walk over one variant's modules. Runs inside a worker: it imports torch."""

from __future__ import annotations

from typing import Any

from repro.models.architecture import describe
from repro.models.catalogue import build, without_initialisation
from repro.spec.tables import InputSize, Variant


def walk_variant(variant: Variant, input_size: InputSize) -> dict[str, Any]:
    """Build ``variant`` as trained and say what it is made of, for an image of ``input_size`` (height, width).

    Returns
    -------
    dict
        ``stages``: see ``repro.models.architecture.describe``.
    """
    with without_initialisation():
        model = build(variant, input_size=input_size)
    return {"stages": describe(model.to("meta"), input_size)}
