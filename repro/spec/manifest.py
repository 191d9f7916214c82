"""Which weights were released for which variant, where, and whether they are what a paper's row was measured with.

One YAML file a family in ``checkpoints_manifest/``; docs/accuracy.md describes its keys. ``pins.lock`` beside them
keeps the hashes of files whose publisher states none, from the first download on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from repro.errors import InputError, Problem
from repro.spec.reader import Node, Reader, suggestion
from repro.spec.tables import Variant

SCHEMA = 1
LOCK = "pins.lock"
PAPER_ROWS = ("same", "different_recipe", "none_released")
BUILDERS = ("timm", "torchvision", "python")
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
CLASSIFICATION, DETECTION, SEGMENTATION = "classification", "detection", "segmentation"
HEADS = {DETECTION: "mask_rcnn", SEGMENTATION: "semantic_fpn"}
# The test pipelines of repro.models.dense.images, by task.
PIPELINES = {DETECTION: ("coco",), SEGMENTATION: ("ade20k", "ade20k_padded", "ade20k_aligned")}
FIGURES = {CLASSIFICATION: ("top1",), DETECTION: ("ap_box", "ap_mask"), SEGMENTATION: ("miou",)}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_HASH = re.compile(r"[0-9a-f]{8,64}")
_SIZE = re.compile(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a checkpoint wants its images; ``input_size`` is height and width in pixels."""

    input_size: tuple[int, int]
    crop_pct: float
    interpolation: str
    crop_mode: str = "center"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def config(self) -> dict[str, Any]:
        """The same in the keys of timm's data config."""
        return {
            "input_size": [3, *self.input_size],
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": list(self.mean),
            "std": list(self.std),
        }


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """Where a weight file is: a file of a hub repository, an address, or a page that only a person can use."""

    hub: str | None = None
    file: str = "model.safetensors"
    revision: str | None = None
    url: str | None = None
    by_hand: str | None = None  # Google Drive's pages, and others that no program can fetch from
    mirrors: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The source as a person reads it."""
        return f"hf-hub:{self.hub}/{self.file}" if self.hub else self.url or self.by_hand or ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the weights were trained, as far as their publisher says; ``None`` where nothing was found."""

    epochs: int | None = None
    distilled: bool | None = None
    resolution: int | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An accuracy that somebody else published, as printed, and where. Shown, never compared.

    ``top1`` is empty for a detector, which has ``ap_box`` and ``ap_mask``, and for a segmenter, which has ``miou``.
    """

    source: str
    top1: str
    where: str
    ap_box: str | None = None
    ap_mask: str | None = None
    miou: str | None = None
    top5: str | None = None
    protocol: str | None = None

    @property
    def text(self) -> str:
        """The figure as a list shows it: top-1, box and mask AP, or mIoU."""
        return self.top1 or self.miou or f"{self.ap_box} / {self.ap_mask}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One released weight file, or the statement that there is none."""

    id: str
    variant: str
    build: Variant | None = None  # where another model than the table's takes these weights
    source: WeightFile | None = None
    wrapper: str | None = None
    sha256: str | None = None  # in full, or the first characters where no more is published
    size: int | None = None
    licence: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    preprocessing: Preprocess | None = None
    task: str = CLASSIFICATION
    head: str | None = None  # of a detector or segmenter
    schedule: str | None = None  # how long it was trained on the task's own data
    pipeline: str | None = None  # how a detector or segmenter wants its images
    protocol_note: str | None = None
    official: Figure | None = None
    others: tuple[Figure, ...] = ()  # third parties' figures for this very file
    paper_row: str
    reason: str | None = None
    looked: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    pinned: bool = False  # the hash is this project's own, from the first download

    @property
    def released(self) -> bool:
        """Whether there is a file to evaluate."""
        return self.source is not None

    @property
    def file_name(self) -> str:
        """The name that the file has in a folder of checkpoints: the id with the source's ending."""
        assert self.source is not None
        path = self.source.file if self.source.hub else (self.source.url or "").partition("?")[0]
        known = (".safetensors", ".pth.tar", ".pth", ".pt", ".tar", ".bin")
        return self.id + next((ending for ending in known if path.endswith(ending)), ".pth")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The checkpoints of a project."""

    folder: Path
    checkpoints: tuple[Checkpoint, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, Checkpoint]:
        """Every checkpoint by its id."""
        return {checkpoint.id: checkpoint for checkpoint in self.checkpoints}

    @cached_property
    def by_variant(self) -> dict[str, tuple[Checkpoint, ...]]:
        """The classifiers of each variant, the paper's own first."""
        return self._by_variant(CLASSIFICATION)

    def dense(self, variant: str, task: str) -> tuple[Checkpoint, ...]:
        """The detectors or segmenters of a variant, the paper's own first."""
        return self._by_variant(task).get(variant, ())

    def _by_variant(self, task: str) -> dict[str, tuple[Checkpoint, ...]]:
        found: dict[str, list[Checkpoint]] = {}
        for checkpoint in self.checkpoints:
            if checkpoint.task == task:
                found.setdefault(checkpoint.variant, []).append(checkpoint)
        order = PAPER_ROWS.index
        return {name: tuple(sorted(items, key=lambda item: order(item.paper_row))) for name, items in found.items()}

    def of(self, variant: str, input_size: tuple[int, int] | None = None) -> tuple[Checkpoint, ...]:
        """The checkpoints of a variant; where some were trained for ``input_size``, only those."""
        found = self.by_variant.get(variant, ())
        fitting = [c for c in found if c.preprocessing is not None and c.preprocessing.input_size == input_size]
        return tuple(fitting) or found


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest files of a folder; a project without the folder has no checkpoints.

    Raises
    ------
    InputError
        With every mistake of every file, each as ``file:line: path: message``.
    """
    found: dict[str, Checkpoint] = {}
    problems: list[Problem] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            for checkpoint in read_manifest(path):
                if checkpoint.id in found:
                    first = found[checkpoint.id]
                    message = f"a second checkpoint {checkpoint.id!r}, first at {first.file}:{first.line}"
                    problems.append(Problem(file=str(path), line=checkpoint.line, path="id", message=message))
                found.setdefault(checkpoint.id, checkpoint)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    pins = read_pins(folder)
    return Manifest(folder=folder, checkpoints=tuple(_pinned(item, pins) for item in found.values()))


def _pinned(checkpoint: Checkpoint, pins: Mapping[str, tuple[str, int]]) -> Checkpoint:
    if checkpoint.id not in pins:
        return checkpoint
    sha256, size = pins[checkpoint.id]
    stated = checkpoint.sha256
    if stated is not None and not sha256.startswith(stated):
        return checkpoint  # the publisher's own hash moved on; the pin is of another file
    return replace(checkpoint, sha256=sha256, size=size, pinned=True)


def read_pins(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and size of each pinned file, by checkpoint id."""
    path = folder / LOCK
    if not path.exists():
        return {}
    reader, root = Reader.open(path)
    pins = {}
    for name, node in root.entries().items():
        entries = node.keys(("sha256", "size"))
        if len(entries) == 2:
            pins[name] = (_hash(entries["sha256"], full=True), entries["size"].integer(1))
    reader.finish()
    return pins


def pins_text(pins: Mapping[str, tuple[str, int]]) -> str:
    """The text of a lock file."""
    head = "# Hashes of downloaded files, pinned by `repro checkpoints pin`; from then on a download must match.\n"
    lines = [f"{name}: {{sha256: {sha256}, size: {size}}}\n" for name, (sha256, size) in sorted(pins.items())]
    return head + "".join(lines)


def read_manifest(path: Path) -> tuple[Checkpoint, ...]:
    """Read one family's file.

    Raises
    ------
    InputError
        With every mistake of the file.
    """
    reader, root = Reader.open(path)
    entries = root.keys(("schema", "family", "checkpoints"), ("repository", "commit", "notes"))
    if "schema" in entries and (version := entries["schema"].integer(1)) != SCHEMA:
        entries["schema"].problem(f"schema {version} is not known; this release reads schema {SCHEMA}")
    for name in ("family", "repository", "commit"):
        _text(entries, name)
    if "notes" in entries:
        _texts(entries["notes"])
    found: dict[str, Checkpoint] = {}
    for item in entries["checkpoints"].items() if "checkpoints" in entries else ():
        checkpoint = _checkpoint(item, path)
        if checkpoint is None:
            continue
        if checkpoint.id in found:
            item.problem(f"a second checkpoint {checkpoint.id!r}, first on line {found[checkpoint.id].line}")
        found.setdefault(checkpoint.id, checkpoint)
    reader.finish()
    return tuple(found.values())


def _checkpoint(node: Node, path: Path) -> Checkpoint | None:
    entries = node.keys(
        ("id", "variant", "paper_row"),
        ("builder", "model", "arguments", "source", "wrapper", "sha256", "size", "licence", "recipe", "preprocessing",
         "protocol_note", "official", "others", "reason", "looked", "task", "head", "schedule", "pipeline"),
    )  # fmt: skip
    if not {"id", "variant", "paper_row"} <= set(entries):
        return None
    name, variant = entries["id"].text(), entries["variant"].text()
    if not _ID.fullmatch(name):
        entries["id"].problem(f"must be letters, digits, '.', '_', '+' and '-', not {name!r}")
    paper_row = entries["paper_row"].choice(PAPER_ROWS)
    task = entries["task"].choice((CLASSIFICATION, *HEADS)) if "task" in entries else CLASSIFICATION
    task = task if task in FIGURES else CLASSIFICATION
    dense = _dense_keys(node, entries, task, paper_row)
    if paper_row == "none_released":
        for key in ("source", "sha256", "size", "wrapper", "preprocessing", "pipeline"):
            if key in entries:
                entries[key].problem("must not be given where paper_row is none_released")
        for key in ("reason", "looked"):
            if key not in entries:
                node.problem(f"missing key {key!r}: say what was looked for, and where")
    else:
        for key in ("source", "preprocessing" if task == CLASSIFICATION else "pipeline"):
            if key not in entries:
                node.problem(f"missing key {key!r}{', or paper_row: none_released' if key == 'source' else ''}")
        if paper_row == "different_recipe" and "reason" not in entries:
            node.problem("missing key 'reason': say how the recipe differs from the row's")
    arguments = entries["arguments"].plain() if "arguments" in entries else {}
    if not isinstance(arguments, dict):
        entries["arguments"].problem("must be a mapping of keyword arguments")
        arguments = {}
    build = None
    if "model" in entries:
        builder = _read(entries, "builder", lambda item: item.choice(BUILDERS), "timm")
        build = Variant(id=variant, builder=builder, model=entries["model"].text(), arguments=arguments)
    else:
        for key in ("builder", "arguments"):
            if key in entries:
                entries[key].problem("needs a model beside it")
    return Checkpoint(
        id=name,
        variant=variant,
        build=build,
        source=_read(entries, "source", _source, None),
        wrapper=_text(entries, "wrapper"),
        sha256=_read(entries, "sha256", _hash, None),
        size=_read(entries, "size", lambda item: item.integer(1), None),
        licence=_text(entries, "licence"),
        recipe=_read(entries, "recipe", _recipe, Recipe()),
        preprocessing=_read(entries, "preprocessing", _preprocessing, None),
        protocol_note=_text(entries, "protocol_note"),
        official=_read(entries, "official", lambda item: _figure(item, "official", task), None),
        others=tuple(_figure(each, None, task) for each in entries["others"].items()) if "others" in entries else (),
        paper_row=paper_row,
        task=task,
        head=dense.get("head"),
        schedule=dense.get("schedule"),
        pipeline=dense.get("pipeline"),
        reason=_text(entries, "reason"),
        looked=_texts(entries["looked"]) if "looked" in entries else (),
        file=str(path),
        line=node.line,
    )


def _dense_keys(node: Node, entries: Mapping[str, Node], task: str, paper_row: str) -> dict[str, str | None]:
    """What only a detector or segmenter has."""
    if task == CLASSIFICATION:
        for key in ("head", "schedule", "pipeline"):
            if key in entries:
                entries[key].problem("needs a task beside it: detection or segmentation")
        return {}
    for key in ("builder", "arguments", "preprocessing"):
        if key in entries:
            entries[key].problem(f"must not be given for {task}; model names the backbone, pipeline the images")
    if paper_row != "none_released" and "schedule" not in entries:
        node.problem("missing key 'schedule': say how long it was trained")
    return {
        "head": entries["head"].choice((HEADS[task],)) if "head" in entries else HEADS[task],
        "schedule": _text(entries, "schedule"),
        "pipeline": entries["pipeline"].choice(PIPELINES[task]) if "pipeline" in entries else None,
    }


def _read(entries: Mapping[str, Node], key: str, read: Callable[[Node], T], default: T) -> T:
    return read(entries[key]) if key in entries else default


def _text(entries: Mapping[str, Node], key: str) -> str | None:
    return entries[key].text() if key in entries else None


def _texts(node: Node) -> tuple[str, ...]:
    return tuple(item.text() for item in node.items())


def _hash(node: Node, full: bool = False) -> str:
    text = node.text()
    if not _HASH.fullmatch(text) or (full and len(text) != 64):
        node.problem(f"must be {'64' if full else '8 to 64'} hexadecimal digits of a SHA-256, not {text!r}")
    return text


def _source(node: Node) -> WeightFile:
    entries = node.keys((), ("hub", "file", "revision", "url", "by_hand", "mirrors"))
    given = [key for key in ("hub", "url", "by_hand") if key in entries]
    if len(given) != 1:
        node.problem(f"needs exactly one of hub, url and by_hand, not {', '.join(given) or 'none of them'}")
    if "hub" in entries and not re.fullmatch(r"[\w.-]+/[\w.-]+", entries["hub"].text()):
        entries["hub"].problem(f"must be OWNER/NAME, not {entries['hub'].text()!r}")
    for item in [entries[key] for key in ("url", "by_hand") if key in entries]:
        _address(item)
    mirrors = tuple(_address(each) for each in entries["mirrors"].items()) if "mirrors" in entries else ()
    return WeightFile(
        hub=_text(entries, "hub"),
        file=_read(entries, "file", Node.text, "model.safetensors"),
        revision=_text(entries, "revision"),
        url=_text(entries, "url"),
        by_hand=_text(entries, "by_hand"),
        mirrors=mirrors,
    )


def _address(node: Node) -> str:
    text = node.text()
    if not re.fullmatch(r"https?://\S+", text):
        node.problem(f"must be an http or https address, not {text!r}")
    return text


def _recipe(node: Node) -> Recipe:
    entries = node.keys((), ("epochs", "distilled", "resolution"))
    return Recipe(
        epochs=_read(entries, "epochs", lambda item: item.integer(1), None),
        distilled=_read(entries, "distilled", Node.truth, None),
        resolution=_read(entries, "resolution", lambda item: item.integer(1), None),
    )


def _preprocessing(node: Node) -> Preprocess:
    entries = node.keys(("input_size", "crop_pct", "interpolation"), ("crop_mode", "mean", "std"))
    crop = float(_read(entries, "crop_pct", Node.number, "1"))
    if not 0 < crop <= 10:
        entries["crop_pct"].problem(f"must be above 0, 1 for no crop, not {crop}")
    default = Preprocess(input_size=(224, 224), crop_pct=1.0, interpolation="bicubic")
    return Preprocess(
        input_size=_read(entries, "input_size", _input_size, (224, 224)),
        crop_pct=crop,
        interpolation=_read(entries, "interpolation", lambda item: item.choice(INTERPOLATIONS), "bicubic"),
        crop_mode=_read(entries, "crop_mode", lambda item: item.choice(CROP_MODES), "center"),
        mean=_read(entries, "mean", _three, default.mean),
        std=_read(entries, "std", _three, default.std),
    )


def _input_size(node: Node) -> tuple[int, int]:
    text = node.text()
    match = _SIZE.fullmatch(text)
    if match is None:
        node.problem(f"must be pixels, 224 or 224x256 (height x width), not {text!r}")
        return (224, 224)
    return (int(match[1]), int(match[2] or match[1]))


def _three(node: Node) -> tuple[float, ...]:
    values = tuple(float(item.number()) for item in node.items())
    if len(values) != 3:
        node.problem(f"must have three numbers, one a channel, not {len(values)}")
        return (0.5, 0.5, 0.5)
    return values


def _figure(node: Node, source: str | None, task: str) -> Figure:
    required = (*FIGURES[task], "where") if source else ("source", *FIGURES[task], "where")
    entries = node.keys(required, ("top5", "protocol") if task == CLASSIFICATION else ("protocol",))
    return Figure(
        source=source or _text(entries, "source") or "?",
        top1=_read(entries, "top1", Node.number, "0" if task == CLASSIFICATION else ""),
        ap_box=_read(entries, "ap_box", Node.number, None),
        ap_mask=_read(entries, "ap_mask", Node.number, None),
        miou=_read(entries, "miou", Node.number, None),
        where=_text(entries, "where") or "?",
        top5=_read(entries, "top5", Node.number, None),
        protocol=_text(entries, "protocol"),
    )


def unknown(name: str, manifest: Manifest) -> str:
    """What to say of a checkpoint that no manifest lists."""
    known = [*manifest.by_id, *manifest.by_variant]
    return f"no checkpoint {name!r} in {manifest.folder}{suggestion(name, known)}; repro checkpoints list names all"
