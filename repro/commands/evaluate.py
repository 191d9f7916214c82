"""``repro evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from repro.commands.options import (
    OFF,
    OK,
    check_writable,
    files_by_name,
    formats_of,
    open_run,
    options,
    project_option,
    store_option,
    warn,
)
from repro.errors import ReproError, UsageError
from repro.exclusive import beside_others
from repro.results.store import default_folder
from repro.spec.manifest import Checkpoint
from repro.spec.tables import Variant

DEVICES = ("cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16", "amp-bfloat16", "amp-float16")

_dataset_options = options(
    click.option("--imagenet", type=click.Path(path_type=Path), metavar="DIR",
                 help="The validation images: class folders, the flat ILSVRC folder, tar shards or parquet."),
    click.option("--coco", type=click.Path(path_type=Path), metavar="DIR",
                 help="COCO: annotations/instances_val2017.json and val2017/. Evaluates detectors."),
    click.option("--ade20k", type=click.Path(path_type=Path), metavar="DIR",
                 help="ADE20K: images/validation and annotations/validation. Evaluates segmenters."),
    click.option("--layout", type=click.Choice(["imagefolder", "flat", "tar", "parquet"]),
                 help="How the images lie there. Default: found out."),
    click.option("--labels", type=click.Path(path_type=Path), help="Labels of flat images, where not beside them."),
    click.option("--dataset", metavar="NAME", help="What the images are. Default: the tables' data set."),
    click.option("--classes", type=click.IntRange(min=1), help="Number of classes. Default: 1000; of ADE20K 150."),
)  # fmt: skip
_running_options = options(
    click.option("--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True,
                 help="Other precisions than float32 are labelled and never compared."),
    click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True),
    click.option("--batch-size", type=click.IntRange(min=1), help="Images a batch. Default: 16 on the CPU, else 128."),
    click.option("--jobs", type=click.IntRange(min=0), help="Worker processes. Default: one for each processor."),
    click.option("--memory", type=click.FloatRange(min=0.1), help="GiB for models and workers. Default: 60% of what "
                 "is free; models that do not fit together take turns."),
    click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Where the work runs."),
    click.option("--no-fold", is_flag=True, help="Run the models as trained: nothing merged, no BatchNorm folded."),
    click.option("--skip-corrupt", is_flag=True, help="Leave images out that cannot be decoded, and count them."),
)  # fmt: skip
_weights_options = options(
    click.option("--weights", multiple=True, metavar="VARIANT=FILE",
                 help="Evaluate a local state dict; VARIANT is a table's variant, a checkpoint or a timm model."),
    click.option("--detector", "detectors", multiple=True, metavar="VARIANT=FILE",
                 help="Evaluate a local Mask R-CNN; VARIANT is its backbone."),
    click.option("--segmenter", "segmenters", multiple=True, metavar="VARIANT=FILE",
                 help="Evaluate a local Semantic FPN; VARIANT is its backbone."),
    click.option("--checkpoints", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                 help="Folder of downloaded checkpoints. Default: REPRO_CHECKPOINTS, else the platform's cache."),
    click.option("--offline", is_flag=True, help="Download nothing."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """One thing to evaluate."""

    name: str
    variant: Variant  # the table's
    build: Variant
    file: Path
    checkpoint: Checkpoint | None


@click.command()
@click.argument("names", nargs=-1, metavar="[N | CHECKPOINT]...")
@_dataset_options
@_weights_options
@click.option("--format", "formats", default="terminal", show_default=True, metavar="F", help="terminal or json.")
@click.option("--predictions", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.npz",
              help="Write each image's path, target and top5; of several checkpoints as ID/image.")  # fmt: skip
@click.option("--detections", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write each detector's boxes and masks in COCO's result format.")  # fmt: skip
@_running_options
@project_option
@store_option
def evaluate(
    names: tuple[str, ...],
    imagenet: Path | None,
    coco: Path | None,
    ade20k: Path | None,
    layout: str | None,
    labels: Path | None,
    dataset: str | None,
    classes: int | None,
    weights: tuple[str, ...],
    detectors: tuple[str, ...],
    segmenters: tuple[str, ...],
    checkpoints: Path | None,
    offline: bool,
    formats: str,
    predictions: Path | None,
    detections: Path | None,
    precision: str,
    device: str,
    batch_size: int | None,
    jobs: int | None,
    memory: float | None,
    executor: str,
    no_fold: bool,
    skip_corrupt: bool,
    project: Path | None,
    store: Path | None,
) -> int:
    """Evaluate checkpoints: tables' numbers, checkpoints, variants or patterns.

    With --imagenet classifiers, in one pass over the images; with --coco detectors, with --ade20k segmenters.

    Without a name and without --weights, every released checkpoint. What an earlier run with the same images, weights
    and protocol did is not done again, also when that run was killed.

    Exit codes: 0 done, 1 a checkpoint failed, 2 bad usage or input.
    """
    chosen_formats = formats_of(formats, ["terminal", "json"])
    if len(chosen_formats) > 1:
        raise UsageError("--format: one format, terminal or json")
    if imagenet is None or coco is not None or ade20k is not None:
        _only_dense(imagenet, coco, ade20k, weights, predictions, precision)
        from repro.commands.evaluate_dense import DenseRequest, evaluate_dense

        asked = DenseRequest(
            names=names, coco=coco, ade20k=ade20k, detectors=detectors, segmenters=segmenters, detections=detections,
            checkpoints=checkpoints, offline=offline, dataset=dataset, classes=classes, device=device, jobs=jobs,
            executor=executor, format=chosen_formats[0],
        )  # fmt: skip
        with beside_others(default_folder()):
            return evaluate_dense(open_run(project, store), asked)
    if detectors or segmenters or detections:
        raise UsageError("--detector and --detections need --coco DIR, --segmenter needs --ade20k DIR")
    check_writable(predictions.parent if predictions else Path(), predictions is not None)
    classes = classes or 1000
    run = open_run(project, store)
    local = files_by_name(weights, "--weights")

    from repro.accuracy.datasets import open_dataset
    from repro.accuracy.engine import evaluate as evaluate_all
    from repro.accuracy.job import Options
    from repro.accuracy.predictions import PredictionStore
    from repro.progress import images_progress

    variants = _variants(run.project)
    # whatever is wrong with the files or the images is said before anything is downloaded or built
    images = open_dataset(imagenet, layout=layout, labels=labels, classes=classes)
    selected = _select(run.project, names, local)
    chosen = _locate(selected, local, variants, checkpoints, offline)
    settings = Options(
        device=device,
        precision=precision,
        batch_size=batch_size,
        fold=not no_fold,
        skip_corrupt=skip_corrupt,
        workers=jobs,
        memory=int(memory * 2**30) if memory else None,
    )
    entries, hashes = [], {}
    for item in chosen:
        made, hashes[item.name] = _entry(item, classes, run.project)
        entries.append(made)
    with beside_others(default_folder()), images_progress() as report:
        result = evaluate_all(
            images,
            entries,
            options=settings,
            store=PredictionStore(run.store.folder / "predictions"),
            progress=report,
            executor=_executor(executor),
        )
    for name, reason in result.failures.items():
        if len(result.failures) == len(entries) and len(entries) == 1:
            raise UsageError(f"{name}: {reason}")
        click.echo(f"repro: {name}: failed: {reason}", err=True)
    if not result.predictions:
        raise UsageError("every checkpoint failed")
    for name, reason in result.skipped.items():
        click.echo(f"repro: {name}: skipped: {reason or 'cannot be decoded'}", err=True)

    from repro.compare.accuracy import dataset_label

    label = dataset_label(dataset or _dataset_name(run.project, names), len(images))
    if label != (dataset or _dataset_name(run.project, names)):
        click.echo(f"repro: these are {len(images):,} images, not ImageNet-1k's 50,000: no table shows them", err=True)
    report_data = _keep(run, images, label, chosen, entries, hashes, result, settings)
    if predictions is not None:
        _write_predictions(predictions, result.predictions)
        click.echo(f"repro: wrote {predictions}", err=True)
    warn(run)
    from repro.render.accuracy import FORMATS

    click.echo(FORMATS[chosen_formats[0]](report_data), nl=False)
    return OFF if result.failures else OK


def _only_dense(
    imagenet: Path | None,
    coco: Path | None,
    ade20k: Path | None,
    weights: Sequence[str],
    predictions: Path | None,
    precision: str,
) -> None:
    """Refuse what does not go with detectors and segmenters."""
    if coco is None and ade20k is None:
        raise UsageError("Missing option '--imagenet', '--coco' or '--ade20k': where the images are")
    if imagenet is not None:
        raise UsageError("--imagenet evaluates classifiers, --coco and --ade20k others: one command each")
    for option, given in (("--weights", weights), ("--predictions", predictions)):
        if given:
            raise UsageError(f"{option} is of classifiers; there are --detector, --segmenter and --detections")
    if precision != "float32":
        raise UsageError("--precision: detectors and segmenters are evaluated in float32")


def _variants(project: Any) -> dict[str, Variant]:
    rows = [row for table in project.tables() for row in table.rows]
    return {row.variant.id: row.variant for row in rows if row.variant is not None}


def _dataset_name(project: Any, names: Sequence[str]) -> str:
    """The data set of the named tables, or of the first table that has one."""
    numbers = tuple(int(name) for name in names if name.isdigit())
    known = [
        name for table in project.tables(numbers) if (name := table.protocol_of(table.rows[0], "top1").get("dataset"))
    ]
    from repro.measure.needs import IMAGENET

    return str(known[0]) if known else IMAGENET


def _select(project: Any, names: Sequence[str], local: Mapping[str, Path]) -> list[Checkpoint | str]:
    """The checkpoints that the arguments name, and the names of local weights that are none of them."""
    from fnmatch import fnmatchcase

    from repro.measure.needs import input_size_of
    from repro.spec.manifest import CLASSIFICATION, unknown

    manifest = project.manifest
    found: dict[str, Checkpoint | str] = {}
    patterns = list(names) or ([] if local else ["*"])
    for name in patterns:
        if name.isdigit():
            table = project.table(int(name))
            for row in table.rows:
                if row.variant is None or row.variant.id in local or not table.column("top1"):
                    continue
                size = input_size_of(table.protocol_of(row, "top1"))
                found |= {item.id: item for item in manifest.of(row.variant.id, size) if item.released}
            continue
        matching = [
            item
            for item in manifest.checkpoints
            if item.task == CLASSIFICATION and (fnmatchcase(item.id, name) or fnmatchcase(item.variant, name))
        ]
        if not matching:
            raise UsageError(unknown(name, manifest))
        released = [item for item in matching if item.released]
        if not released:
            raise UsageError(f"{name}: no checkpoint was released: {matching[0].reason}")
        found |= {item.id: item for item in released if item.variant not in local}
    for name in local:
        found[name] = manifest.by_id.get(name, name)
    if not found:
        raise UsageError("no released checkpoint to evaluate; repro checkpoints list says why")
    return list(found.values())


def _locate(
    selected: Sequence[Checkpoint | str],
    local: Mapping[str, Path],
    variants: Mapping[str, Variant],
    folder: Path | None,
    offline: bool,
) -> list[_Chosen]:
    """Find or fetch the file of each, and how to build its model."""
    from repro.checkpoints import Folder

    chosen = []
    place = Folder.open(folder)
    wanted = [item for item in selected if isinstance(item, Checkpoint) and item.id not in local]
    files, problems = place.ready(wanted, offline=offline)
    for problem in problems.values():
        click.echo(f"repro: {problem}", err=True)
    for item in selected:
        if isinstance(item, Checkpoint):
            file = local.get(item.id) or files.get(item.id)
            if file is None:
                continue
            variant = variants.get(item.variant) or Variant(id=item.variant, builder="timm", model=item.variant)
            build = item.build or variant
            chosen.append(_Chosen(name=item.id, variant=variant, build=build, file=file, checkpoint=item))
        else:
            variant = variants.get(item) or Variant(id=item, builder="timm", model=item)
            chosen.append(_Chosen(name=item, variant=variant, build=variant, file=local[item], checkpoint=None))
    if not chosen:
        raise UsageError("no checkpoint is here; repro checkpoints fetch says how to get one")
    return chosen


def _entry(item: _Chosen, classes: int, project: Any) -> tuple[Any, str]:
    from repro.accuracy.checkpoints import default_preprocessing, entry
    from repro.accuracy.preprocess import Preprocessing

    if item.checkpoint is not None and item.checkpoint.preprocessing is not None:
        preprocessing = Preprocessing.from_config(item.checkpoint.preprocessing.config())
        wrapper = item.checkpoint.wrapper
    else:
        try:
            preprocessing, wrapper = default_preprocessing(item.build), None
        except ReproError as error:
            raise UsageError(f"--weights {item.name}: no variant of a table, and {error}") from error
    return entry(item.name, item.build, item.file, preprocessing, classes=classes, wrapper=wrapper)


def _executor(name: str) -> Any:
    if name == "local":
        return None
    from repro.accuracy.ray_executor import RayExecutor

    return RayExecutor()


def _keep(
    run: Any,
    images: Any,
    label: str,
    chosen: Sequence[_Chosen],
    entries: Sequence[Any],
    hashes: Mapping[str, str],
    result: Any,
    settings: Any,
) -> dict[str, Any]:
    """Put a record of each accuracy into the store, and gather what is shown."""
    from repro.accuracy.statistics import difference
    from repro.compare.accuracy import LOCAL, accuracy_record
    from repro.results.provenance import provenance
    from repro.results.sources import version

    made = provenance({name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")})
    shown = []
    for item, entry in zip(chosen, entries, strict=True):
        if item.name not in result.predictions:
            continue
        size = (entry.preprocessing.input_size[1], entry.preprocessing.input_size[2])
        config = entry.preprocessing.to_dict()
        stated = item.checkpoint.preprocessing.config() if item.checkpoint and item.checkpoint.preprocessing else None
        record = accuracy_record(
            item.variant,
            result.predictions[item.name],
            checkpoint=item.checkpoint.id if item.checkpoint else LOCAL,
            input_size=size,
            protocol={"dataset": label, "split": "validation", "precision": settings.precision},
            details={
                "sha256": hashes[item.name],
                "preprocessing": stated or {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()},
                "fingerprint": images.fingerprint,
                "layout": images.layout,
                "device": settings.device,
                "batch_size": settings.batch,
                "form": "folded" if settings.fold else "as_trained",
            },
            provenance=made,
        )
        run.store.put(record)
        details = record.details
        shown.append(
            {
                "checkpoint": item.name,
                "variant": item.variant.id,
                "paper_row": item.checkpoint.paper_row if item.checkpoint else None,
                "top1": record.value,
                "top5": details["top5"],
                "interval": details["interval"],
                "correct": details["correct"],
                "images": details["images"],
                "skipped": details["skipped"],
                "sha256": details["sha256"],
                "preprocessing": details["preprocessing"],
                "official": item.checkpoint.official.top1 if item.checkpoint and item.checkpoint.official else None,
                "record": record.id,
            }
        )
    pairs = []
    kept = list(result.predictions)
    for position, first in enumerate(kept if len(kept) <= 12 else ()):
        for second in kept[position + 1 :]:
            found = difference(result.predictions[first], result.predictions[second])
            pairs.append(
                {
                    "first": first,
                    "second": second,
                    "points": found.points,
                    "only_first": found.only_first,
                    "only_second": found.only_second,
                    "p_value": found.p_value,
                }
            )
    return {
        "schema": 1,
        "dataset": {
            "name": label,
            "path": str(images.root),
            "layout": images.layout,
            "images": len(images),
            "classes": images.classes,
            "fingerprint": images.fingerprint,
        },
        "protocol": {
            "precision": settings.precision,
            "device": settings.device,
            "batch_size": settings.batch,
            "form": "folded" if settings.fold else "as_trained",
        },
        "checkpoints": shown,
        "differences": pairs,
        "failures": dict(result.failures),
        "skipped": dict(result.skipped),
        "run": {"passes": result.passes, "evaluated": result.evaluated, "seconds": result.seconds},
    }


def _write_predictions(path: Path, found: Mapping[str, Any]) -> None:
    """Keys ``image``, ``target`` and ``top5`` of one checkpoint; behind ``ID/`` of several."""
    import io

    import numpy as np

    from repro.files import write_atomically

    arrays: dict[str, Any] = {}
    for name, predictions in found.items():
        prefix = f"{name}/" if len(found) > 1 else ""
        arrays[f"{prefix}image"] = np.asarray(predictions.image, dtype=np.str_)
        arrays[f"{prefix}target"] = np.asarray(predictions.target, dtype=np.int16)
        arrays[f"{prefix}top5"] = np.asarray(predictions.top5, dtype=np.int16)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
