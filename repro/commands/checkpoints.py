"""``repro checkpoints list | fetch | check | pin``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from repro.commands.options import OFF, OK, formats_of, project_option
from repro.errors import ReproError, UsageError
from repro.spec.manifest import DETECTION, HEADS, PAPER_ROWS, SEGMENTATION, Checkpoint, Manifest, unknown
from repro.spec.project import Project

_folder_option = click.option(
    "--checkpoints",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of downloaded checkpoints. Default: REPRO_CHECKPOINTS, else the platform's cache.",
)


@click.group()
def checkpoints() -> None:
    """Released weights: what the manifests list, what is here, and fetching the rest."""


def _choose(manifest: Manifest, names: Sequence[str]) -> list[Checkpoint]:
    chosen: dict[str, Checkpoint] = {}
    for name in names or ["*"]:
        found = [item for item in manifest.checkpoints if fnmatchcase(item.id, name) or fnmatchcase(item.variant, name)]
        if not found and names:
            raise UsageError(unknown(name, manifest))
        chosen |= {item.id: item for item in found}
    return list(chosen.values())


@checkpoints.command("list")
@click.argument("names", nargs=-1, metavar="[CHECKPOINT]...")
@click.option("--format", "formats", default="terminal", show_default=True, metavar="F", help="terminal or json.")
@_folder_option
@project_option
def list_(names: tuple[str, ...], formats: str, folder: Path | None, project: Path | None) -> None:
    """List checkpoints, or those that match: whether they are the paper's row, are here, and where they come from."""
    from tabulate import tabulate

    from repro.checkpoints import Folder

    chosen_format = formats_of(formats, ["terminal", "json"])[0]
    place = Folder.open(folder)
    chosen = _choose(Project.find(project).manifest, names)
    if chosen_format == "json":
        click.echo(json.dumps([_plain(item, place) for item in chosen], indent=1, ensure_ascii=False))
        return
    lines = []
    for item in chosen:
        here = "" if item.source is None else "yes" if place.place(item).exists() else "no"
        hashed = "pinned" if item.pinned else "" if item.sha256 is None else "published"
        by_hand = item.source is not None and item.source.by_hand is not None
        where = (item.source.place + (" (by hand)" if by_hand else "")) if item.source else item.reason or ""
        official = item.official.text if item.official else ""
        lines.append([item.id, item.paper_row.replace("_", " "), official, hashed, here, where[:90]])
    headers = ["Checkpoint", "Paper's row", "Published", "Hash", "Here", "Source, or why there is none"]
    click.echo(tabulate(lines, headers=headers, tablefmt="simple", disable_numparse=True))
    counts = ", ".join(
        f"{sum(item.paper_row == name for item in chosen)} {name.replace('_', ' ')}" for name in PAPER_ROWS
    )
    click.echo(f"\n{len(chosen)} checkpoints: {counts}. Folder: {place.path}")


def _plain(item: Checkpoint, place: Any) -> dict[str, Any]:
    from dataclasses import asdict

    data = {key: value for key, value in asdict(item).items() if value not in (None, (), [])}
    return {**data, "here": item.source is not None and place.place(item).exists()}


@checkpoints.command()
@click.argument("names", nargs=-1, metavar="[CHECKPOINT]...")
@click.option("--from", "source", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Take the files from a local folder.")  # fmt: skip
@click.option("--offline", is_flag=True, help="Download nothing; say what is missing.")
@click.option("--refresh", is_flag=True, help="Fetch also what is here.")
@click.option("--jobs", type=click.IntRange(min=1), default=4, show_default=True, help="Downloads at a time.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              help="Seconds without a byte that end an attempt.")  # fmt: skip
@click.option("--retries", type=click.IntRange(min=0), default=3, show_default=True, help="Further attempts.")
@click.option("--no-pin", is_flag=True, help="Do not keep the hashes of files whose publisher states none.")
@_folder_option
@project_option
def fetch(
    names: tuple[str, ...],
    source: Path | None,
    offline: bool,
    refresh: bool,
    jobs: int,
    timeout: float,
    retries: int,
    no_pin: bool,
    folder: Path | None,
    project: Path | None,
) -> int:
    """Fetch checkpoints (default: all released ones), check their hashes, and pin those that had none.

    Exit codes: 0 all are here, 2 some could not be had or is not what the manifest says.
    """
    from repro.checkpoints import Folder, Options, pin

    manifest = Project.find(project).manifest
    chosen = _choose(manifest, names)
    wanted = [item for item in chosen if item.released or names]
    place = Folder.open(folder)
    options = Options(offline=offline, source=source, seconds=timeout, retries=retries, jobs=jobs, refresh=refresh)
    problems: list[str] = []
    got: dict[str, tuple[str, int]] = {}
    with _bytes_progress() as tell:
        for item, outcome in place.fetch(wanted, options, tell):
            if isinstance(outcome, ReproError):
                problems.append(str(outcome))
                click.echo(f"repro: {outcome}", err=True)
                continue
            click.echo(f"{item.id}: {outcome}")
            if not item.pinned and (item.sha256 is None or len(item.sha256) < 64):
                got[item.id] = (place.hash_of(item), outcome.stat().st_size)
    if got and not no_pin:
        for name in pin(manifest, got):
            click.echo(f"repro: {name}: pinned", err=True)
    return 2 if problems else OK


@checkpoints.command()
@click.argument("names", nargs=-1, metavar="[CHECKPOINT]...")
@click.option("--load", is_flag=True, help="Also build each model and load its weights strictly.")
@_folder_option
@project_option
def check(names: tuple[str, ...], load: bool, folder: Path | None, project: Path | None) -> int:
    """Check the files that are here: hash, and that they hold weights and nothing else.

    Exit codes: 0 all that are here are right, 1 some is not.
    """
    from repro.checkpoints import Folder
    from repro.models.loading import read_weights

    found = Project.find(project)
    place = Folder.open(folder)
    wrong = 0
    here = [item for item in _choose(found.manifest, names) if item.source and place.place(item).exists()]
    variants = {row.variant.id: row.variant for table in found.tables() for row in table.rows if row.variant}
    for item in here:
        path = place.place(item)
        try:
            sha256 = place.hash_of(item)
            weights = read_weights(path, item.wrapper)
            said = f"{len(weights.tensors)} tensors"
            if load and item.task in HEADS:
                said += f", {_load_dense(item, path, sha256, weights.tensors)}"
            elif load and item.preprocessing is not None:
                said += f", {_load(item, variants, path)}"
            click.echo(f"{item.id}: right, {sha256[:12]}, {said}")
        except ReproError as error:
            wrong += 1
            click.echo(f"repro: {error}", err=True)
    if not here:
        click.echo(f"no checkpoint is in {place.path}")
    return OFF if wrong else OK


def _load(item: Checkpoint, variants: Any, path: Path) -> str:
    from repro.models.catalogue import build
    from repro.models.loading import load_weights
    from repro.spec.tables import Variant

    variant = item.build or variants.get(item.variant) or Variant(id=item.variant, builder="timm", model=item.variant)
    assert item.preprocessing is not None
    model = load_weights(build(variant, input_size=item.preprocessing.input_size), path, item.wrapper)
    return f"loads into {type(model).__name__}"


def _load_dense(item: Checkpoint, path: Path, sha256: str, tensors: Mapping[str, Any]) -> str:
    from repro.accuracy.dense.worker import DenseEntry, build

    entry = DenseEntry(
        name=item.id,
        task=item.task,
        backbone=item.build.model if item.build is not None else item.variant,
        path=path,
        pipeline=str(item.pipeline),
        sha256=sha256,
        wrapper=item.wrapper,
    )
    # how many classes it has is the file's to say: a detector's last one is the background
    names = {DETECTION: "roi_head.bbox_head.fc_cls.bias", SEGMENTATION: "decode_head.conv_seg.bias"}
    classifier = tensors.get(names[item.task])
    classes = 1 if classifier is None else len(classifier) - (item.task == DETECTION)
    model = build(entry, classes)
    return f"loads into {type(model).__name__}"


@checkpoints.command("pin")
@click.argument("names", nargs=-1, metavar="[CHECKPOINT]...")
@_folder_option
@project_option
def pin_(names: tuple[str, ...], folder: Path | None, project: Path | None) -> None:
    """Keep the hashes of the files that are here in the project's lock file; from then on a download must match."""
    from repro.checkpoints import Folder, pin

    manifest = Project.find(project).manifest
    place = Folder.open(folder)
    here = [item for item in _choose(manifest, names) if item.source and place.place(item).exists()]
    if not here:
        raise UsageError(f"no checkpoint to pin in {place.path}")
    new = pin(manifest, {item.id: (place.hash_of(item), place.place(item).stat().st_size) for item in here})
    click.echo(f"{len(new)} pinned, {len(here) - len(new)} were")


@contextmanager
def _bytes_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Report downloads on standard error."""
    if not sys.stderr.isatty():
        last: dict[str, float] = {}

        def lines(name: str, done: int, total: int | None) -> None:
            if time.monotonic() - last.setdefault(name, time.monotonic()) >= 10:
                last[name] = time.monotonic()
                of = f" of {total / 2**20:.0f}" if total else ""
                click.echo(f"{name}: {done / 2**20:.0f}{of} MiB", err=True)

        yield lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield show
