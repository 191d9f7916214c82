"""What a worker does with a measuring job. Runs inside a worker: it imports torch and timm."""

from __future__ import annotations

from typing import Any

from repro.measure.counts import count_variant, count_with
from repro.spec.tables import Variant


def measure(payload: dict[str, Any]) -> dict[str, Any]:
    """Build the variant of a job's payload and count it, as the job's task says."""
    height, width = payload["input_size"]
    variant = Variant(**payload["variant"])
    if payload["task"] == "architecture":
        from repro.measure.structure import walk_variant

        return walk_variant(variant, (height, width))
    if payload["task"] == "operators":
        from repro.measure.claims import operators_of

        return operators_of(variant, tuple(payload["shape"]))
    if payload["counter"] is not None:
        return count_with(payload["counter"], variant, (height, width))
    return count_variant(variant, (height, width))
