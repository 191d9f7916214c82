"""Packages that are broken, too new, too old or hostile: one line and exit code 2 from every command that takes one."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from repro.coreml import _proto
from tests.coreml.tamper import MODEL, WEIGHTS, tampered


def _truncated(package: Path, folder: Path) -> Path:
    shutil.copytree(package, folder / "bad.mlpackage")
    path = folder / "bad.mlpackage" / MODEL
    path.write_bytes(path.read_bytes()[:200])
    return folder / "bad.mlpackage"


def _weightless(package: Path, folder: Path) -> Path:
    shutil.copytree(package, folder / "bad.mlpackage")
    path = folder / "bad.mlpackage" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    return folder / "bad.mlpackage"


def _newer(package: Path, folder: Path) -> Path:
    return tampered(package, folder / "bad.mlpackage", lambda spec: setattr(spec, "specificationVersion", 99))


def _old(package: Path, folder: Path) -> Path:
    spec = _proto.model_message()
    spec.specificationVersion = 4
    spec.neuralNetwork.SetInParent()
    (folder / "bad.mlmodel").write_bytes(spec.SerializeToString())
    return folder / "bad.mlmodel"


def _hostile(package: Path, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bad.zip", "w") as archive:
        archive.writestr("../outside.txt", "x")
    return folder / "bad.zip"


BAD: list[tuple[Callable[[Path, Path], Path], str]] = [
    (_truncated, "is truncated"),
    (_weightless, "is truncated"),
    (_newer, "specification version 99 is newer than 10 (iOS26)"),
    (_old, "is a model of the old kind (neuralNetwork), not an ML program"),
    (_hostile, "the zip names a path outside itself: ../outside.txt"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[make.__name__[1:] for make, _ in BAD])
def test_it_is_one_line_and_exit_code_2(
    repro: Callable[..., Result],
    package: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], Path],
    message: str,
) -> None:
    bad = make(package, tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    commands = [["run-package", bad, tmp_path / "image.png"]]
    if make is not _weightless:  # whose constants are read when they are wanted
        commands.append(["export", "--check", bad, "--against", "iformer_m"])
    for command in commands:
        result = repro(*command)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
        assert message in result.stderr
        assert not (tmp_path.parent / "outside.txt").exists()
