"""Which record of a detector or segmenter belongs into a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repro.compare.accuracy import LOCAL, FoundAccuracy
from repro.compare.records import Records
from repro.measure.needs import Need, Unmeasurable, dense_need
from repro.results.record import Record
from repro.spec.manifest import DETECTION, SEGMENTATION, Checkpoint
from repro.spec.metrics import METRICS
from repro.spec.tables import Row, Table, Variant

DATASETS = {DETECTION: "COCO 2017", SEGMENTATION: "ADE20K"}
IMAGES = {DETECTION: 5000, SEGMENTATION: 2000}
OPTIONS = {DETECTION: "--coco", SEGMENTATION: "--ade20k"}
LOCAL_OPTIONS = {DETECTION: "--detector", SEGMENTATION: "--segmenter"}
# The test pipeline of weights that no manifest lists.
PIPELINE = {DETECTION: "coco", SEGMENTATION: "ade20k"}


def dataset_of(protocol: Mapping[str, Any], task: str) -> str:
    """The data set that a cell's protocol names for its task."""
    return str(protocol.get(f"{task}_dataset", DATASETS[task]))


def label_of(name: str, task: str, images: int) -> str:
    """What a record says of its data set: a part of the validation images is not the data set."""
    return name if name != DATASETS[task] or images == IMAGES[task] else f"{name} ({images:,} images)"


def find_dense(table: Table, row: Row, metric: str, records: Records) -> FoundAccuracy | Unmeasurable:
    """The best record for a cell: the paper's own weights before another recipe's before the user's own."""
    if row.variant is None:
        return Unmeasurable(reason="no_builder", hint="no library or port builds this model")
    task = METRICS[metric].kind
    protocol = table.protocol_of(row, metric)
    dataset = dataset_of(protocol, task)
    precision = str(protocol.get("precision", "float32"))
    candidates = records.manifest.dense(row.variant.id, task)
    for item in (*candidates, None):
        if item is not None and item.pipeline is None:
            continue
        need = need_for(row.variant, metric, item, dataset=dataset, precision=precision)
        found = records.find(need)
        if found is None or (item is not None and not is_of(found.record, item)):
            continue
        reason, message = _standing(item)
        return FoundAccuracy(need=need, found=found, checkpoint=item, reason=reason, message=message)
    return _nothing(table, row.variant.id, task, candidates)


def need_for(variant: Variant, metric: str, checkpoint: Checkpoint | None, *, dataset: str, precision: str) -> Need:
    """The measurement of ``metric`` of a checkpoint, or of the user's own weights when None."""
    task = METRICS[metric].kind
    listed = checkpoint is not None and checkpoint.pipeline is not None
    return dense_need(
        variant,
        metric,
        checkpoint=checkpoint.id if checkpoint is not None else LOCAL,
        pipeline=str(checkpoint.pipeline) if checkpoint is not None and listed else PIPELINE[task],
        dataset=dataset,
        precision=precision,
    )


def is_of(record: Record, checkpoint: Checkpoint) -> bool:
    """Whether a record was made with the file that the manifest states now."""
    if record.error is not None or checkpoint.sha256 is None:
        return True
    return str(record.details.get("sha256", "")).startswith(checkpoint.sha256)


def _standing(checkpoint: Checkpoint | None) -> tuple[str | None, str]:
    """Why a checkpoint's figure is not compared, where it is not."""
    if checkpoint is None:
        return "local_weights", "weights given on the command line, which no manifest lists"
    if checkpoint.paper_row == "same":
        return None, ""
    return "different_recipe", checkpoint.reason or ""


def _nothing(table: Table, variant: str, task: str, candidates: tuple[Checkpoint, ...]) -> Unmeasurable:
    if candidates and not any(item.released for item in candidates):
        said = next((item.reason for item in candidates if item.reason), "")
        return Unmeasurable(reason="no_released_checkpoint", hint=said)
    command = f"repro evaluate {table.number} {OPTIONS[task]} DIR"
    if candidates:
        return Unmeasurable(reason="needs_dataset", hint=command)
    hint = f"{command} {LOCAL_OPTIONS[task]} {variant}=FILE; no manifest lists weights for it"
    return Unmeasurable(reason="needs_dataset", hint=hint)


def dense_record(need: Need, value: float, *, details: Mapping[str, Any], provenance: Mapping[str, Any]) -> Record:
    """The record of one metric of an evaluation, in percent."""
    return Record(
        subject=need.subject,
        metric=need.metric,
        protocol=need.protocol,
        value=value,
        unit="%",
        versions=need.versions,
        provenance=dict(provenance),
        details=dict(details),
    )
