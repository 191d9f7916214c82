"""Which record of an accuracy belongs into a cell, and what the manifest says of the weights behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repro.compare.records import Records
from repro.measure.needs import IMAGENET, Need, Unmeasurable, accuracy_need, input_size_of
from repro.results.record import Record
from repro.results.store import Found
from repro.spec.manifest import Checkpoint
from repro.spec.tables import InputSize, Row, Table, Variant

if TYPE_CHECKING:
    from repro.accuracy.predictions import Predictions

LOCAL = "local"
IMAGENET_IMAGES = 50_000


@dataclass(frozen=True, kw_only=True)
class FoundAccuracy:
    """The accuracy of a cell's variant; ``reason`` says why it is not compared, where it is not."""

    need: Need
    found: Found
    checkpoint: Checkpoint | None
    reason: str | None = None
    message: str = ""


def find_accuracy(table: Table, row: Row, metric: str, records: Records) -> FoundAccuracy | Unmeasurable:
    """The best record for a cell: the paper's own weights before another recipe's before the user's own."""
    if row.variant is None:
        return Unmeasurable(reason="no_builder", hint="no library or port builds this model")
    protocol = table.protocol_of(row, metric)
    size = input_size_of(protocol)
    candidates = records.manifest.of(row.variant.id, size)
    for checkpoint in candidates:
        if checkpoint.preprocessing is None:
            continue
        need = accuracy_need(row.variant, checkpoint.id, checkpoint.preprocessing.input_size, protocol)
        found = records.find(need)
        if found is None or not is_of(found.record, checkpoint):
            continue
        same = checkpoint.paper_row == "same"
        message = "" if same else checkpoint.reason or ""
        reason = None if same else "different_recipe"
        return FoundAccuracy(need=need, found=found, checkpoint=checkpoint, reason=reason, message=message)
    need = accuracy_need(row.variant, LOCAL, size, protocol)
    if (found := records.find(need)) is not None:
        message = "weights given with --weights, which no manifest lists"
        return FoundAccuracy(need=need, found=found, checkpoint=None, reason="local_weights", message=message)
    return _nothing(table, row, candidates)


def is_of(record: Record, checkpoint: Checkpoint) -> bool:
    """Whether a record was made with the file and the preprocessing that the manifest states now."""
    details = record.details
    if record.error is not None or checkpoint.preprocessing is None:
        return record.error is not None
    same_file = checkpoint.sha256 is None or str(details.get("sha256", "")).startswith(checkpoint.sha256)
    return same_file and details.get("preprocessing") == checkpoint.preprocessing.config()


def _nothing(table: Table, row: Row, candidates: tuple[Checkpoint, ...]) -> Unmeasurable:
    if candidates and not any(checkpoint.released for checkpoint in candidates):
        said = next((checkpoint.reason for checkpoint in candidates if checkpoint.reason), "")
        return Unmeasurable(reason="no_released_checkpoint", hint=said)
    if not candidates:
        option = f"--imagenet DIR --weights {row.variant.id if row.variant else ''}=FILE"
        return Unmeasurable(reason="needs_dataset", hint=f"repro evaluate {option}; no manifest lists weights for it")
    return Unmeasurable(reason="needs_dataset", hint=f"repro evaluate {table.number} --imagenet DIR")


def dataset_label(name: str, images: int) -> str:
    """What a record says of its data set: a part of ImageNet's validation images is not ImageNet."""
    return name if name != IMAGENET or images == IMAGENET_IMAGES else f"{name} ({images:,} images)"


def accuracy_record(
    variant: Variant,
    predictions: Predictions,
    *,
    checkpoint: str,
    input_size: InputSize,
    protocol: Mapping[str, Any],
    details: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Record:
    """The record of one evaluation: top-1 in percent, with top-5 and both Wilson intervals in its details.

    Raises
    ------
    EvaluationError
        When there are no predictions.
    """
    from repro.accuracy.statistics import accuracy

    need = accuracy_need(variant, checkpoint, input_size, protocol)
    shares = {f"top{k}": accuracy(predictions, k) for k in (1, 5)}
    return Record(
        subject=need.subject,
        metric=need.metric,
        protocol=need.protocol,
        value=shares["top1"].percent,
        unit="%",
        versions=need.versions,
        provenance=dict(provenance),
        details={
            **{name: share.percent for name, share in shares.items()},
            "correct": {name: share.correct for name, share in shares.items()},
            "interval": {name: [100 * share.low, 100 * share.high] for name, share in shares.items()},
            "images": shares["top1"].total,
            "skipped": len(predictions.skipped),
            **details,
        },
    )
