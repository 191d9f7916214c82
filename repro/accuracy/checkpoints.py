"""Turns a variant and a weight file into an entry of an evaluation."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from repro.accuracy.errors import EvaluationError
from repro.accuracy.job import ModelEntry
from repro.accuracy.preprocess import Preprocessing
from repro.spec.tables import InputSize, Variant

_CHUNK = 2**20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises
    ------
    EvaluationError
        When the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def build(variant: Variant, path: str, wrapper: str | None, input_size: InputSize, classes: int) -> Any:
    """Build a variant for ``classes`` classes and load its weights. Runs in the evaluation's process.

    Raises
    ------
    ModelError
        When the variant cannot be built, or the weights do not fit in every key and shape.
    """
    from dataclasses import replace

    from repro.models.catalogue import build as build_variant
    from repro.models.loading import load_weights

    if variant.builder in ("timm", "torchvision"):
        variant = replace(variant, arguments={"num_classes": classes, **variant.arguments})
    return load_weights(build_variant(variant, input_size=input_size), Path(path), wrapper)


def entry(
    name: str, variant: Variant, path: Path, preprocessing: Preprocessing, *, classes: int, wrapper: str | None = None
) -> tuple[ModelEntry, str]:
    """One checkpoint to evaluate, and its file's SHA-256.

    Raises
    ------
    EvaluationError
        When the file cannot be read.
    """
    sha256 = sha256_of(path)
    size = (preprocessing.input_size[1], preprocessing.input_size[2])
    arguments = sorted(f"{key}={value!r}" for key, value in variant.arguments.items())
    identity = " ".join([variant.builder, variant.model, *arguments, wrapper or "", sha256])
    made = partial(build, variant, str(path.resolve()), wrapper, size, classes)
    return ModelEntry(name=name, identity=identity, build=made, preprocessing=preprocessing), sha256


def default_preprocessing(variant: Variant) -> Preprocessing:
    """What the variant's library evaluates it with, for weights that no manifest lists.

    timm's own rule (``validate.py``) for timm's models. torchvision's weights resize to 256 px with bilinear
    interpolation and crop 224. Of Python's own models nothing is known but ImageNet's usual 224 px.
    """
    if variant.builder == "timm":
        import timm
        from timm.data import resolve_data_config

        import repro.models  # noqa: F401 - registers the ported families

        if not timm.is_model(variant.model):
            raise EvaluationError(f"timm {timm.__version__} has no model {variant.model!r}")
        config = timm.get_pretrained_cfg(variant.model)
        known = config.to_dict() if config is not None else {}
        return Preprocessing.from_config(resolve_data_config({}, pretrained_cfg=known, use_test_size=True))
    return Preprocessing(interpolation="bilinear") if variant.builder == "torchvision" else Preprocessing()
