"""Per-image predictions: kept while an evaluation runs, found again by the next one, and given to the user.

Everything is written to a temporary name beside its place and renamed, so that a file is whole or absent whatever
kills the process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repro.accuracy.errors import EvaluationError
from repro.files import write_atomically

PENDING, DONE, SKIPPED = 0, 1, 2
_FORMAT = 1
Array = np.ndarray[Any, np.dtype[Any]]


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an npz file that is there in full or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model said about each image.

    Attributes
    ----------
    image
        Paths relative to the data set, str, shape (N,).
    target
        Class indices, int16, shape (N,).
    top5
        The five likeliest classes, likeliest first, int16, shape (N, 5); -1 where a model has fewer classes.
    skipped
        Names of images that could not be decoded and are in none of the others.
    """

    image: Array
    target: Array
    top5: Array
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``image``, ``target``, ``top5`` and ``skipped`` as a compressed npz file, without pickles."""
        _write(
            Path(path),
            {
                "image": np.asarray(self.image, dtype=np.str_),
                "target": np.asarray(self.target, dtype=np.int16),
                "top5": np.asarray(self.top5, dtype=np.int16),
                "skipped": np.asarray(self.skipped, dtype=np.str_),
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read what ``save`` wrote.

        Raises
        ------
        EvaluationError
            When the file is no such file.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as arrays:
                made = cls(
                    image=arrays["image"],
                    target=arrays["target"],
                    top5=arrays["top5"],
                    skipped=tuple(arrays["skipped"].tolist()) if "skipped" in arrays else (),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise EvaluationError(f"{path}: not a predictions file ({' '.join(str(error).split())})") from error
        if made.top5.shape != (len(made), 5) or made.target.shape != (len(made),):
            raise EvaluationError(f"{path}: not a predictions file (its arrays do not fit together)")
        return made


@dataclass
class Partial:
    """The predictions of one model so far.

    Attributes
    ----------
    top5
        int16, shape (N, 5), -1 where nothing is known yet.
    state
        uint8, shape (N,): ``PENDING``, ``DONE`` or ``SKIPPED`` (a corrupt image).
    """

    top5: Array
    state: Array
    dirty: bool = field(default=False, compare=False)

    @classmethod
    def empty(cls, images: int) -> Partial:
        """Nothing done."""
        return cls(np.full((images, 5), -1, dtype=np.int16), np.full(images, PENDING, dtype=np.uint8))

    def put(self, start: int, top5: Array, skipped: Mapping[int, str]) -> None:
        """Take in the predictions of the images from ``start`` on; keys of ``skipped`` are positions in them."""
        stop = start + len(top5)
        self.top5[start:stop] = top5
        self.state[start:stop] = DONE
        for position in skipped:
            self.top5[start + position] = -1
            self.state[start + position] = SKIPPED
        self.dirty = True

    def finished(self) -> bool:
        """Whether every image was evaluated or skipped."""
        return bool((self.state != PENDING).all())


class PredictionStore:
    """Predictions by what they depend on: images, checkpoint and protocol.

    A run that is killed finds its own work again; a run on other images, with other weights or another protocol does
    not, because it has another key.

    Parameters
    ----------
    folder
        Made when the first predictions are saved.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, name: str, key: Mapping[str, Any]) -> Path:
        """The file of one model under one key."""
        digest = hashlib.sha256(_canonical(key).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}-{digest[:20]}.npz"

    def load(self, name: str, key: Mapping[str, Any], images: int) -> Partial:
        """What is known already; nothing, when there is no file or it is not what its name says."""
        try:
            with np.load(self.path(name, key), allow_pickle=False) as arrays:
                partial = Partial(arrays["top5"], arrays["state"])
                same = int(arrays["format"]) == _FORMAT and str(arrays["key"]) == _canonical(key)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return Partial.empty(images)
        fits = partial.top5.shape == (images, 5) and partial.state.shape == (images,)
        return partial if same and fits else Partial.empty(images)

    def save(self, name: str, key: Mapping[str, Any], partial: Partial) -> None:
        """Keep what is known, if it changed since the last time."""
        if partial.dirty:
            _write(
                self.path(name, key),
                {"top5": partial.top5, "state": partial.state, "key": _canonical(key), "format": _FORMAT},
            )
            partial.dirty = False


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, default=list)
