"""``repro evaluate --coco DIR --ade20k DIR``: detectors and segmenters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repro.commands.options import OFF, OK, check_writable, files_by_name, warn
from repro.errors import ReproError, UsageError
from repro.spec.manifest import DETECTION, SEGMENTATION, Checkpoint
from repro.spec.metrics import METRICS
from repro.spec.tables import Variant

if TYPE_CHECKING:
    from repro.accuracy.dense.datasets import DenseDataset
    from repro.accuracy.dense.engine import DenseEvaluation
    from repro.accuracy.dense.worker import DenseEntry

NEEDED = {"cv2": "opencv-python-headless", "pycocotools": "pycocotools"}


@dataclass(frozen=True, kw_only=True)
class DenseRequest:
    """What the command line asks for."""

    names: tuple[str, ...]
    coco: Path | None
    ade20k: Path | None
    detectors: tuple[str, ...]
    segmenters: tuple[str, ...]
    detections: Path | None
    checkpoints: Path | None
    offline: bool
    dataset: str | None
    classes: int | None
    device: str
    jobs: int | None
    executor: str
    format: str


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    task: str
    variant: Variant
    checkpoint: Checkpoint | None
    entry: DenseEntry


def evaluate_dense(run: Any, asked: DenseRequest) -> int:
    """Evaluate detectors on COCO and segmenters on ADE20K, keep records, and print what was found.

    Raises
    ------
    UsageError
        For options that do not go together, or when nothing could be evaluated.
    ReproError
        For a data set that is not what it should be, or damaged results.
    """
    _check_installed()
    check_writable(asked.detections or Path(), asked.detections is not None)
    local = {
        DETECTION: _local(asked.detectors, "--detector", asked.coco, "--coco"),
        SEGMENTATION: _local(asked.segmenters, "--segmenter", asked.ade20k, "--ade20k"),
    }
    from repro.accuracy.dense.datasets import ADE20K_CLASSES, open_ade20k, open_coco

    # whatever is wrong with the data is said before anything is downloaded or built
    datasets: dict[str, DenseDataset] = {}
    if asked.coco is not None:
        datasets[DETECTION] = open_coco(asked.coco)
    if asked.ade20k is not None:
        datasets[SEGMENTATION] = open_ade20k(asked.ade20k, classes=asked.classes or ADE20K_CLASSES)
    chosen = _choose(run.project, asked, datasets, local)
    labels = {task: _label(run.project, asked, task, len(data)) for task, data in datasets.items()}
    shown, failures = [], {}
    for item in chosen:
        try:
            found = _run(run, asked, item, datasets[item.task])
        except (ReproError, RuntimeError, MemoryError) as error:  # torch tells a lack of memory as a RuntimeError
            if _is_damage(error) or (len(chosen) == 1 and isinstance(error, ReproError)):
                raise
            failures[item.entry.name] = " ".join(str(error).split()) or type(error).__name__
            click.echo(f"repro: {item.entry.name}: failed: {failures[item.entry.name]}", err=True)
            continue
        shown.append(_keep(run, item, datasets[item.task], labels[item.task], found, asked))
    if not shown:
        raise UsageError("every checkpoint failed")
    warn(run)
    from repro.render.dense import FORMATS

    report = {
        "schema": 1,
        "datasets": {
            task: {"name": labels[task], "path": str(data.root), "images": len(data), "classes": data.classes,
                   "fingerprint": data.fingerprint}
            for task, data in datasets.items()
        },
        "checkpoints": shown,
        "failures": failures,
    }  # fmt: skip
    click.echo(FORMATS[asked.format](report), nl=False)
    return OFF if failures else OK


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UsageError(f"--coco and --ade20k need {' and '.join(missing)}: install the extra 'dense'")


def _is_damage(error: BaseException) -> bool:
    from repro.accuracy.dense.results import DamagedResultsError

    return isinstance(error, DamagedResultsError)


def _local(given: Sequence[str], option: str, data: Path | None, needs: str) -> dict[str, Path]:
    if given and data is None:
        raise UsageError(f"{option} {given[0].partition('=')[0]}: needs {needs} DIR beside it")
    return files_by_name(given, option)


def _choose(
    project: Any, asked: DenseRequest, datasets: Mapping[str, Any], local: Mapping[str, Mapping[str, Path]]
) -> list[_Chosen]:
    """What the arguments name, with its file here."""
    from repro.accuracy.checkpoints import sha256_of
    from repro.accuracy.dense.worker import DenseEntry
    from repro.checkpoints import Folder
    from repro.compare.dense import PIPELINE

    rows = [row for table in project.tables() for row in table.rows]
    variants = {row.variant.id: row.variant for row in rows if row.variant is not None}
    listed = _listed(project, asked, tuple(datasets), local)
    place = Folder.open(asked.checkpoints)
    files, problems = place.ready(listed, offline=asked.offline)
    for problem in problems.values():
        click.echo(f"repro: {problem}", err=True)
    chosen = []
    for item in listed:
        if item.id not in files:
            continue
        entry = DenseEntry(
            name=item.id,
            task=item.task,
            backbone=item.build.model if item.build is not None else item.variant,
            path=files[item.id].resolve(),
            pipeline=str(item.pipeline),
            sha256=place.hash_of(item),
            wrapper=item.wrapper,
        )
        variant = variants.get(item.variant) or Variant(id=item.variant, builder="timm", model=item.variant)
        chosen.append(_Chosen(task=item.task, variant=variant, checkpoint=item, entry=entry))
    for task, given in local.items():
        for name, file in given.items():
            entry = DenseEntry(
                name=name,
                task=task,
                backbone=name,
                path=file.resolve(),
                pipeline=PIPELINE[task],
                sha256=sha256_of(file),
            )
            variant = variants.get(name) or Variant(id=name, builder="timm", model=name)
            chosen.append(_Chosen(task=task, variant=variant, checkpoint=None, entry=entry))
    if not chosen:
        raise UsageError("no checkpoint is here; repro checkpoints fetch says how to get one")
    return chosen


def _listed(
    project: Any, asked: DenseRequest, tasks: Sequence[str], local: Mapping[str, Mapping[str, Path]]
) -> list[Checkpoint]:
    from fnmatch import fnmatchcase

    from repro.spec.manifest import unknown

    manifest = project.manifest
    found: dict[str, Checkpoint] = {}
    for name in asked.names or (() if any(local.values()) else ("*",)):
        if name.isdigit():
            table = project.table(int(name))
            ids = {row.variant.id for row in table.rows if row.variant is not None}
            kinds = {column.kind.kind for column in table.columns}
            if not kinds & set(tasks):
                raise UsageError(f"table {name} has no column that {' or '.join(tasks)} gives")
            matching = [item for item in manifest.checkpoints if item.variant in ids and item.task in kinds]
        else:
            matching = [
                item for item in manifest.checkpoints if fnmatchcase(item.id, name) or fnmatchcase(item.variant, name)
            ]
            if not matching:
                raise UsageError(unknown(name, manifest))
        matching = [item for item in matching if item.task in tasks and item.variant not in local[item.task]]
        if len(matching) == 1 and not matching[0].released:
            raise UsageError(f"{name}: no checkpoint was released: {matching[0].reason}")
        found |= {item.id: item for item in matching if item.released}
    if not found and not any(local.values()):
        raise UsageError(f"no released checkpoint for {' or '.join(tasks)}; repro checkpoints list says why")
    return list(found.values())


def _label(project: Any, asked: DenseRequest, task: str, images: int) -> str:
    """What records call the data set: the named tables' name for it, unless it is only a part."""
    from repro.compare.dense import DATASETS, IMAGES, dataset_of, label_of

    name = asked.dataset
    if name is None:
        numbers = tuple(int(name) for name in asked.names if name.isdigit())
        metric = "ap_box" if task == DETECTION else "miou"
        known = [dataset_of(table.protocol_of(table.rows[0], metric), task) for table in project.tables(numbers)]
        name = known[0] if numbers else DATASETS[task]
    label = label_of(name, task, images)
    if label != name:
        said = f"these are {images:,} images, not {name}'s {IMAGES[task]:,}: no table shows them"
        click.echo(f"repro: {said}", err=True)
    return label


def _run(run: Any, asked: DenseRequest, item: _Chosen, dataset: DenseDataset) -> DenseEvaluation:
    from repro.accuracy.dense.engine import InProcess, Processes, Ray, evaluate
    from repro.accuracy.job import processors
    from repro.progress import images_progress

    count = processors() if asked.jobs is None else asked.jobs
    executor: Any = Ray() if asked.executor == "ray" else InProcess()
    if asked.executor == "local" and asked.device == "cpu" and count > 1:
        executor = Processes(count)
    with images_progress() as report:
        return evaluate(
            dataset,
            item.entry,
            folder=run.store.folder / "results",
            device=asked.device,
            executor=executor,
            progress=report,
        )


def _keep(
    run: Any, item: _Chosen, dataset: DenseDataset, label: str, found: DenseEvaluation, asked: DenseRequest
) -> dict[str, Any]:
    """Put a record of each metric into the store, write detections where asked, and gather what is shown."""
    from repro.accuracy.dense.metrics import coco_results
    from repro.compare.dense import dense_record, need_for
    from repro.files import write_atomically
    from repro.results.provenance import provenance
    from repro.results.sources import version

    packages = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pycocotools")
    made = provenance({name: version(name) for name in packages})
    details = {
        **found.metrics,
        "sha256": item.entry.sha256,
        "backbone": item.entry.backbone,
        "device": asked.device,
        "images": len(dataset),
        "fingerprint": dataset.fingerprint,
        "schedule": item.checkpoint.schedule if item.checkpoint else None,
    }
    records = {}
    for metric in (name for name in found.metrics if name in METRICS):
        need = need_for(item.variant, metric, item.checkpoint, dataset=label, precision="float32")
        record = dense_record(need, float(found.metrics[metric]), details=details, provenance=made)
        run.store.put(record)
        records[metric] = record.id
    if asked.detections is not None and item.task == DETECTION:
        for kind, content in coco_results(dataset, found.results).items():
            path = asked.detections / f"{item.entry.name}.{kind}.json"
            write_atomically(path, json.dumps(content, separators=(",", ":")))
            click.echo(f"repro: wrote {path}", err=True)
    official = item.checkpoint.official if item.checkpoint else None
    return {
        "checkpoint": item.entry.name,
        "task": item.task,
        "variant": item.variant.id,
        "backbone": item.entry.backbone,
        "pipeline": item.entry.pipeline,
        "schedule": item.checkpoint.schedule if item.checkpoint else None,
        "paper_row": item.checkpoint.paper_row if item.checkpoint else None,
        "metrics": found.metrics,
        "official": official.text if official else None,
        "sha256": item.entry.sha256,
        "images": len(dataset),
        "evaluated": found.evaluated,
        "seconds": found.seconds,
        "records": records,
    }
