"""Exporting from the command line: converted in workers, kept by content, checked, and every mistake one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from repro.coreml.package import Package
from tests.conftest import MODELS, TABLE
from tests.coreml.tamper import WEIGHTS

BROKEN = """
  broken: {builder: python, model: "second_models:raises"}
rows:
  - model: Broken
    line: 2
    variant: broken
    cells: {latency: "1.00"}
"""


def invoke(*arguments: Any) -> Result:
    from repro.cli import main

    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two networks that convert and one that cannot be built."""
    project = tmp_path_factory.mktemp("paper")
    (project / "tables").mkdir()
    (project / "tables" / "table_01.yaml").write_text(TABLE.replace("\nrows:\n", BROKEN))
    (project / "second_models.py").write_text(textwrap.dedent(MODELS))
    return project


@pytest.fixture(scope="module")
def exported(paper: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The table's packages, made and checked, and what the command said."""
    folder = tmp_path_factory.mktemp("packages")
    return folder, invoke(
        "export", "1", "--check", "--project", paper, "--output", folder, "--jobs", 1, "--format", "json"
    )


def named(folder: Path, variant: str) -> Path:
    (found,) = folder.glob(f"{variant}_*.mlpackage")
    return found


def test_a_table_is_converted_and_checked_and_a_failure_stays_alone(exported: tuple[Path, Result]) -> None:
    _, result = exported
    data = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [(item["variant"], item["check"]["verdict"]) for item in data["packages"]] == [
        ("line_8", "passed"),
        ("line_16", "passed"),
    ]
    assert [item["check"]["exact"] for item in data["packages"]] == [True, True]
    (failure,) = data["failures"].items()
    assert failure[0].startswith("broken_16_float16_iOS15-")
    assert failure[1] == {"reason": "raised", "message": "RuntimeError: this variant is broken"}
    assert "[1/3]" in result.stderr


def test_a_package_says_what_it_is(exported: tuple[Path, Result]) -> None:
    _, result = exported
    item = json.loads(result.stdout)["packages"][0]
    package = Package.open(item["path"])
    assert package.content_hash() == item["content_hash"]
    said = {key.removeprefix("repro."): value for key, value in package.metadata.items() if key.startswith("repro.")}
    assert {name: said[name] for name in ("variant", "form", "weights", "precision", "target", "input")} == {
        "variant": "line_8", "form": "folded", "weights": "seeded 0", "precision": "float16", "target": "iOS15",
        "input": "tensor",
    }  # fmt: skip
    assert package.inputs[0].shape == (1, 3, 16, 16)
    assert [op.type for op in package.function().block.operations].count("batch_norm") == 0


def test_cached_is_quick_because_nothing_heavy_is_imported(paper: Path, exported: tuple[Path, Result]) -> None:
    code = (
        "import sys\nfrom repro.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(sorted({'torch', 'coremltools', 'timm'} & set(sys.modules)), file=sys.stderr)\n"
    )
    command = ["export", "line_8", "line_16", "--check", "--project", str(paper), "--output", str(exported[0])]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "2 packages, 2 passed" in done.stdout


def test_a_package_that_somebody_touched_is_made_again(
    paper: Path, exported: tuple[Path, Result], tmp_path: Path
) -> None:
    folder = tmp_path / "packages"
    shutil.copytree(exported[0], folder)
    weights = named(folder, "line_8") / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-64])
    command = ["export", "line_8", "--project", paper, "--output", folder, "--format", "json"]
    result = invoke(*command)
    assert json.loads(result.stdout)["packages"][0]["cached"] is False
    assert json.loads(invoke(*command).stdout)["packages"][0]["cached"] is True
    assert (
        Package.open(named(folder, "line_8")).content_hash() == json.loads(result.stdout)["packages"][0]["content_hash"]
    )


def test_seeded_weights_do_not_depend_on_the_number_of_threads() -> None:
    from repro.coreml.exporting import deployed
    from repro.spec.tables import Variant

    variant = Variant(id="v", builder="timm", model="mobilenetv4_conv_small", arguments={"num_classes": 5})
    made = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            made.append(deployed(variant, (64, 64), {"path": None, "seed": 0, "sha256": None, "wrapper": None}))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    first, *others = (network.state_dict() for network in made)
    assert all(torch.equal(value, other[name]) for other in others for name, value in first.items())


@pytest.mark.slow
def test_weights_of_ones_own_are_held_against_a_package(
    paper: Path, exported: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(paper))
    import second_models

    torch.manual_seed(1)
    torch.save(second_models.line(8).state_dict(), tmp_path / "mine.pth")
    common = ["--project", paper, "--weights", tmp_path / "mine.pth"]
    made = invoke("export", "line_8", "--output", tmp_path / "out", "--input", "image", *common)
    assert made.exit_code == 0, made.stderr
    package = named(tmp_path / "out", "line_8")
    assert Package.open(package).metadata["repro.weights"].startswith("mine.pth ")
    right = invoke("export", "--check", package, "--against", "line_8", *common)
    assert (right.exit_code, "passed" in right.stdout) == (0, True)
    stale = invoke("export", "--check", named(exported[0], "line_8"), "--against", "line_8", *common)
    assert stale.exit_code == 1
    assert "is not" in stale.stdout


def test_a_package_of_unknown_weights_is_not_guessed_at(paper: Path, package: Path) -> None:
    result = invoke("export", "--check", package, "--against", "line_8", "--project", paper)
    assert result.exit_code == 2
    assert "whose weights does it hold?" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere_8"], "no variant 'nowhere_8' in the tables with latencies"),
        (["line_9"], "did you mean line_8"),
        (["7"], "no table 7"),
        (["1", "--weights", "w.pth"], "--weights FILE goes with one VARIANT"),
        (["line_8", "--weights", "w.pth"], "--weights w.pth: no such file"),
        (["line_8", "--size", "big"], "--size big: expected pixels, as 224 or 384x512"),
        (["line_8", "--format", "html"], "--format: unknown format 'html'"),
        (["line_8", "--precision", "int8"], "Invalid value for '--precision'"),
        (["x.mlpackage", "--check"], "say which variant it should be"),
        (["x.mlpackage", "--check", "--against", "line_8"], "x.mlpackage: no such package"),
        (["x.mlpackage", "--against", "line_8"], "--against goes with --check and one PACKAGE"),
        (["SMALL", "--check", "--against", "1"], "a variant's name is wanted, not a table's number"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    repro: Callable[..., Result], paper: Path, package: Path, arguments: list[str], message: str
) -> None:
    arguments = [str(package) if argument == "SMALL" else argument for argument in arguments]
    result = repro("export", *arguments, "--project", paper)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("kind", ["tensor", "image"])
def test_the_top_five_are_those_of_pytorch(
    repro: Callable[..., Result], tmp_path: Path, picture: Path, kind: Any
) -> None:
    from repro.coreml.convert import convert
    from repro.coreml.weights import randomise
    from tests.coreml.nets import Net

    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    net = randomise(Net(), input_size=(3, 32, 32))
    package = convert(net, tmp_path / "n.mlpackage", input_size=32, precision="float32", input_kind=kind, mean=mean,
                      std=std)  # fmt: skip
    result = repro("run-package", package, picture, "--crop", "1.0", "--format", "json")
    found = json.loads(result.stdout)["top"]
    with Image.open(picture) as image:
        pixels = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32)), dtype=np.float32)
    x = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - torch.tensor(mean).reshape(1, 3, 1, 1)) / torch.tensor(
        std
    ).reshape(1, 3, 1, 1)
    with torch.inference_mode():
        want = net(x).softmax(-1)[0].topk(5)
    assert [item["class"] for item in found] == want.indices.tolist()
    assert [item["probability"] for item in found] == pytest.approx(want.values.tolist(), rel=1e-3)
    assert "Probability" in repro("run-package", package, picture).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SMALL", "none.png"], "none.png: cannot be read as an image"),
        (["none.mlpackage", "PICTURE"], "none.mlpackage: no such package"),
        (["SMALL", "PICTURE"], "gives no single row of class scores"),
        (["PICTURE", "PICTURE"], "picture.png"),
    ],
)
def test_a_wrong_package_or_image_is_one_line(
    repro: Callable[..., Result], package: Path, picture: Path, arguments: list[str], message: str
) -> None:
    places = {"SMALL": package, "PICTURE": picture}
    result = repro("run-package", *(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
