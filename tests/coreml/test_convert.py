"""Conversion: what a package is called, holds and hashes to, and that nothing reaches the screen."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repro import __version__
from repro.coreml.convert import INPUT, OUTPUT, convert
from repro.coreml.errors import ConversionError
from repro.coreml.interpreter import Program
from repro.coreml.package import Package, content_hash
from repro.coreml.quiet import import_coremltools, muffled
from repro.coreml.weights import randomise
from repro.errors import UsageError
from tests.coreml.nets import SIZE, Net
from tests.coreml.programs import coremltools


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return randomise(Net(), input_size=SIZE)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17", "iOS18"])
def test_names_and_types_at_every_target(net: nn.Module, tmp_path: Path, target: str, precision: Any) -> None:
    path = convert(net, tmp_path / "net.mlpackage", input_size=32, precision=precision, target=target)
    package = Package.open(path)
    assert path == tmp_path / "net.mlpackage"
    assert package.target == target
    assert [(item.name, item.shape) for item in package.inputs] == [(INPUT, (1, *SIZE))]
    assert [(item.name, item.shape) for item in package.outputs] == [(OUTPUT, (1, 10))]
    weights = {op.value.type.dtype.name for op in package.function().block.operations if op.value and op.value.blob}
    assert weights == {"fp32" if precision == "float32" else "fp16"}
    x = torch.randn(1, *SIZE)
    with torch.no_grad():
        want = net(x).numpy()
    np.testing.assert_allclose(
        Program.load(path).run({INPUT: x})[OUTPUT], want, atol=1e-4 if precision == "float32" else 3e-2
    )


def test_metadata_says_what_and_by_which_versions(net: nn.Module, tmp_path: Path) -> None:
    path = convert(
        net,
        tmp_path / "net.mlpackage",
        input_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.2, 0.1),
        metadata={"variant": "net_small", "checkpoint": "sha256:00ff"},
    )
    own = {key.removeprefix("repro."): value for key, value in Package.open(path).metadata.items() if "repro." in key}
    assert own == {
        "checkpoint": "sha256:00ff",
        "coremltools": coremltools().__version__,
        "input": "tensor",
        "mean": "0.5, 0.5, 0.5",
        "precision": "float16",
        "std": "0.25, 0.2, 0.1",
        "target": "iOS15",
        "torch": torch.__version__,
        "variant": "net_small",
        "version": __version__,
    }


_MAKE = """
import sys, torch
from repro.coreml.convert import convert
from repro.coreml.package import content_hash
from repro.coreml.weights import randomise
from tests.coreml.nets import SIZE, Net
path = convert(randomise(Net(), input_size=SIZE), sys.argv[1], input_size=SIZE)
print(content_hash(path))
"""


def test_the_same_conversion_has_the_same_hash_in_any_process(net: nn.Module, tmp_path: Path) -> None:
    hashes = {content_hash(convert(net, tmp_path / "here.mlpackage", input_size=SIZE))}
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", _MAKE, str(tmp_path / f"{seed}.mlpackage")],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.stderr == ""
        (line,) = done.stdout.splitlines()  # nothing else is printed
        hashes.add(line)
    assert len(hashes) == 1
    other = convert(randomise(Net(), input_size=SIZE, seed=1), tmp_path / "other.mlpackage", input_size=SIZE)
    assert content_hash(other) not in hashes


def test_nothing_is_printed(net: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    convert(net, tmp_path / "net.mlpackage", input_size=SIZE)
    assert capfd.readouterr() == ("", "")


def test_muffled_keeps_every_way_to_the_screen_quiet_and_says_what_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    import logging
    import os
    import warnings

    with muffled() as noise:
        print("printed")
        print("complained", file=sys.stderr)
        os.write(1, b"written\n")
        os.write(2, b"  1/3 [00:00<?, ? passes/s]\n")
        logging.getLogger("coremltools").warning("logged")
        warnings.warn("warned", stacklevel=1)
    print("after")
    assert capfd.readouterr() == ("after\n", "")
    assert all(word in noise.text for word in ("printed", "complained", "written"))
    assert "warned" not in noise.text
    assert noise.last_words() == "complained"


def test_importing_coremltools_is_quiet(tmp_path: Path) -> None:
    code = "from repro.coreml.quiet import import_coremltools; import_coremltools(); print('ready')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("ready\n", "")
    assert import_coremltools() is sys.modules["coremltools"]


def test_an_existing_package_is_replaced_whole(net: nn.Module, tmp_path: Path) -> None:
    path = convert(net, tmp_path / "net.mlpackage", input_size=SIZE)
    before = content_hash(path)
    (path / "left over.txt").write_text("old")
    with pytest.raises(ConversionError):
        convert(_Loses(), path, input_size=SIZE)
    assert content_hash(path) == before
    convert(net, path, input_size=SIZE, precision="float32")
    assert content_hash(path) != before
    assert not (path / "left over.txt").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["net.mlpackage"]


class _Loses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this network is broken\nand says so at length")


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class _Exotic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (_Loses(), "_Loses cannot be converted: this network is broken"),
        (_Pair(), "_Pair cannot be converted: it returns a tuple, not one tensor"),
        (_Exotic(), "_Exotic cannot be converted: .*bessel_j0"),
    ],
)
def test_what_cannot_be_converted_is_one_clear_line(tmp_path: Path, module: nn.Module, message: str) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        convert(module, tmp_path / "x.mlpackage", input_size=SIZE)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_exist(net: nn.Module, tmp_path: Path) -> None:
    def attempt(name: str = "x.mlpackage", **options: Any) -> None:
        convert(net, tmp_path / name, **({"input_size": SIZE} | options))

    with pytest.raises(UsageError, match="no precision 'int8': one of float16, float32"):
        attempt(precision="int8")
    with pytest.raises(UsageError, match="no target 'iOS13': one of iOS15, iOS16, iOS17, iOS18"):
        attempt(target="iOS13")
    with pytest.raises(UsageError, match="no input kind 'film'"):
        attempt(input_kind="film")
    with pytest.raises(UsageError, match=r"x.mlmodel: a package's name ends in \.mlpackage"):
        attempt(name="x.mlmodel")
    with pytest.raises(UsageError, match="an image input needs a normalisation"):
        attempt(input_kind="image")
    with pytest.raises(UsageError, match="a normalisation needs mean and std"):
        attempt(mean=(0, 0, 0))
    with pytest.raises(UsageError, match="with a mean and std for each channel"):
        attempt(mean=(0,), std=(1,))
    with pytest.raises(UsageError, match="an image input has 3 channels, not 1"):
        attempt(input_size=(1, 8, 8), input_kind="image", mean=(0,), std=(1,))
    with pytest.raises(ConversionError, match="2 labels for 10 outputs"):
        attempt(class_labels=["a", "b"])


def test_the_module_is_left_as_it_was(net: nn.Module, tmp_path: Path) -> None:
    def digest() -> str:
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in net.state_dict().values())).hexdigest()

    before = digest(), list(net.state_dict())
    convert(net, tmp_path / "net.mlpackage", input_size=SIZE, input_kind="image", mean=(0, 0, 0), std=(1, 1, 1))
    assert (digest(), list(net.state_dict())) == before
