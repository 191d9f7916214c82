"""A small saved package that any test may read, and must not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.coreml.programs import floats, save_program


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution with a bias, then GELU: float32, two blobs in its weight file."""
    weight, bias = floats(4, 3, 3, 3), floats(16, 4, 1, 1, seed=1)

    def build(mb, x):
        x = mb.conv(x=x, weight=weight, pad_type="same", name="first")
        x = mb.gelu(x=x, mode="EXACT", name="middle")
        return mb.conv(x=x, weight=bias, name="last")

    return save_program(build, (floats(1, 3, 8, 8),), tmp_path_factory.mktemp("package") / "small.mlpackage")
