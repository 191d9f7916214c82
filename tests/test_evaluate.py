"""From a trained model to its accuracy in a table: saved, listed, served, fetched, evaluated, shown."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from repro.exclusive import alone
from tests.accuracy.made import image_folder

TABLE = """\
schema: 1
table: 1
title: Digits
source: {paper: Digits, document: its appendix}
protocol: {input_size: 32, precision: float32, dataset: digits, split: validation}
columns:
  - {metric: top1, decimals: 1}
variants:
  tiny: {builder: timm, model: test_resnet, arguments: {num_classes: 10}}
  tiny_b: {builder: timm, model: test_resnet, arguments: {num_classes: 10}}
  never: {builder: timm, model: test_vit}
  unlisted: {builder: timm, model: test_efficientnet}
rows:
  - {model: Tiny, line: 3, variant: tiny, cells: {top1: "PRINTED"}}
  - {model: Tiny-B, line: 4, variant: tiny_b, cells: {top1: "50.0"}}
  - {model: Never, line: 5, variant: never, cells: {top1: "12.0"}}
  - {model: Unlisted, line: 6, variant: unlisted, cells: {top1: "12.0"}}
"""
MANIFEST = """\
schema: 1
family: Tiny
checkpoints:
- id: tiny.ours
  variant: tiny
  source: {url: "URL"}
  sha256: "SHA256"
  preprocessing: {input_size: 32, crop_pct: 1, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
  paper_row: same
- id: tiny_b.longer
  variant: tiny_b
  source: {url: "URL"}
  sha256: "SHA256"
  preprocessing: {input_size: 32, crop_pct: 1, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
  paper_row: different_recipe
  reason: Trained longer.
- {id: never.none, variant: never, paper_row: none_released, reason: Nobody has it., looked: [everywhere]}
"""


def digits():
    """The 1,797 handwritten digits of the UCI set that scikit-learn ships, as 32 px RGB images; training and test."""
    data = load_digits()
    images = np.kron(data.images * 15.9, np.ones((4, 4))).astype(np.uint8)
    return images, data.target, np.arange(len(images)) % 4 == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network trained on the digits, its file in the layout of official checkpoints, and its test images."""
    import timm

    folder = tmp_path_factory.mktemp("trained")
    images, targets, test = digits()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = timm.create_model("test_resnet", num_classes=10)
    x = torch.from_numpy(images[~test]).float().div(255).sub(0.5).div(0.5)[:, None].expand(-1, 3, -1, -1)
    y = torch.from_numpy(targets[~test])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(4):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    torch.save({"model": model.state_dict(), "epoch": 4}, folder / "tiny.pth")
    for number, (image, target) in enumerate(zip(images[test], targets[test], strict=True)):
        place = folder / "val" / f"digit_{target}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:04d}.png")
    return folder


@pytest.fixture
def project(tmp_path, trained, monkeypatch):
    """A paper about digits, whose manifest points at a server that has the file."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("REPRO_CHECKPOINTS", str(tmp_path / "checkpoints"))
    handler = functools.partial(Quiet, directory=str(trained))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = tmp_path / "paper"
        (folder / "tables").mkdir(parents=True)
        (folder / "checkpoints_manifest").mkdir()
        sha256 = hashlib.sha256((trained / "tiny.pth").read_bytes()).hexdigest()
        text = MANIFEST.replace("URL", f"http://127.0.0.1:{server.server_address[1]}/tiny.pth")
        (folder / "checkpoints_manifest" / "tiny.yaml").write_text(text.replace("SHA256", sha256))
        (folder / "tables" / "table_01.yaml").write_text(TABLE.replace("PRINTED", "99.9"))
        yield folder
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def evaluate(repro, project, *arguments):
    return repro("evaluate", *arguments, "--project", project, "--classes", "10", "--jobs", "1")


def truth(trained, model_file):
    """Top-1 by a plain loop over the same files."""
    import timm

    model = timm.create_model("test_resnet", num_classes=10).eval()
    model.load_state_dict(torch.load(model_file, weights_only=True)["model"])
    right = total = 0
    for folder in sorted((trained / "val").iterdir()):
        files = sorted(folder.iterdir())
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
        with torch.no_grad():
            right += int((model(x).argmax(1) == int(folder.name[-1])).sum())
        total += len(files)
    return right, total


@pytest.mark.slow
def test_a_trained_model_reaches_the_table(repro, project, trained, tmp_path):
    result = evaluate(repro, project, "1", "--imagenet", trained / "val", "--format", "json",
                      "--predictions", tmp_path / "p.npz")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = {item["checkpoint"]: item for item in json.loads(result.stdout)["checkpoints"]}
    right, total = truth(trained, trained / "tiny.pth")
    assert right / total > 0.8  # it did learn
    assert (found["tiny.ours"]["correct"]["top1"], found["tiny.ours"]["images"]) == (right, total)
    low, high = found["tiny.ours"]["interval"]["top1"]
    assert low < 100 * right / total < high
    with np.load(tmp_path / "p.npz") as arrays:
        assert set(arrays) == {f"{n}/{k}" for n in ("tiny.ours", "tiny_b.longer") for k in ("image", "target", "top5")}
        assert arrays["tiny.ours/top5"].dtype == np.int16
        assert arrays["tiny.ours/top5"].shape == (total, 5)
        hits = (arrays["tiny.ours/top5"][:, 0] == arrays["tiny.ours/target"]).sum()
        assert hits == right

    printed = f"{100 * right / total:.1f}"
    (project / "tables" / "table_01.yaml").write_text(TABLE.replace("PRINTED", printed))
    shown = repro("table", "1", "--project", project, "--no-measure", "--format", "json")
    cells = [row["cells"]["top1"] for row in json.loads(shown.stdout)["rows"]]
    assert [(cell["status"], cell["reason"]) for cell in cells] == [
        ("match", None),
        ("not_measured", "different_recipe"),
        ("not_measured", "no_released_checkpoint"),
        ("not_measured", "needs_dataset"),
    ]
    assert cells[0]["measured"] == cells[1]["measured"] == pytest.approx(100 * right / total)
    assert printed in repro("table", "1", "--project", project, "--no-measure").stdout
    assert repro("verify", "--project", project, "--no-measure").exit_code == 0
    story = repro("explain", "1", "Tiny", "top1", "--project", project, "--no-measure").stdout
    assert "95% interval" in story
    assert "tiny.ours: same" in story

    # other preprocessing in the manifest than what was measured: the record is no longer this checkpoint's
    manifest = project / "checkpoints_manifest" / "tiny.yaml"
    manifest.write_text(manifest.read_text().replace("crop_pct: 1", "crop_pct: 0.9"))
    shown = repro("table", "1", "--project", project, "--no-measure", "--format", "json")
    assert json.loads(shown.stdout)["rows"][0]["cells"]["top1"]["reason"] == "needs_dataset"


@pytest.mark.slow
def test_local_weights_are_shown_and_not_compared(repro, project, trained, tmp_path):
    arguments = ("--imagenet", trained / "val", "--weights", f"tiny={trained / 'tiny.pth'}")
    result = evaluate(repro, project, *arguments, "--predictions", tmp_path / "p.npz", "--format", "json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["checkpoints"][0]["checkpoint"] == "tiny"
    assert report["run"]["evaluated"] == report["dataset"]["images"]
    with np.load(tmp_path / "p.npz") as arrays:
        assert set(arrays) == {"image", "target", "top5"}
        assert (trained / "val" / str(arrays["image"][0])).is_file()
    again = json.loads(evaluate(repro, project, *arguments, "--format", "json").stdout)
    assert again["run"]["evaluated"] == 0  # what is known is not computed again
    assert again["checkpoints"][0]["top1"] == report["checkpoints"][0]["top1"]


def refused(result):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("repro: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


@pytest.mark.slow
def test_weights_of_another_architecture_are_refused(repro, project, trained, tmp_path):
    torch.save({"some.weight": torch.ones(3)}, tmp_path / "other.pth")
    result = evaluate(repro, project, "--imagenet", trained / "val", "--weights", f"tiny={tmp_path / 'other.pth'}",
                      "--predictions", tmp_path / "p.npz")  # fmt: skip
    message = refused(result)
    assert "unexpected key some.weight" in message
    assert "missing key" in message
    assert not (tmp_path / "p.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "tiny"], "expected VARIANT=FILE"),
        (["--weights", "tiny=absent.pth"], "no such file"),
        (["tinny.ours"], "did you mean tiny.ours"),
        (["never"], "no checkpoint was released: Nobody has it."),
        (["7"], "no table 7"),
        (["tiny", "--format", "xml"], "unknown format"),
    ],
)
def test_mistakes_are_one_line(repro, project, trained, arguments, message):
    assert message in refused(evaluate(repro, project, *arguments, "--imagenet", trained / "val"))


def test_class_folders_are_checked_before_anything_is_fetched(repro, project, tmp_path):
    nine = image_folder(tmp_path / "nine", classes=9)
    assert "9 class folders, expected 10" in refused(evaluate(repro, project, "tiny", "--imagenet", nine))
    (nine / "n99999999").mkdir()
    assert "class folder without images" in refused(evaluate(repro, project, "tiny", "--imagenet", nine))
    (nine / "n99999999" / "notes.txt").write_text("no image")
    assert "is no image" in refused(evaluate(repro, project, "tiny", "--imagenet", nine))
    assert not (tmp_path / "checkpoints").exists()


def test_a_part_of_imagenet_is_not_called_imagenet():
    from repro.compare.accuracy import dataset_label

    assert dataset_label("ImageNet-1k", 50_000) == "ImageNet-1k"
    assert dataset_label("ImageNet-1k", 1_000) == "ImageNet-1k (1,000 images)"
    assert dataset_label("digits", 450) == "digits"


@pytest.mark.parametrize("option", ["--imagenet", "--coco"])
def test_nothing_is_evaluated_while_a_latency_is_measured(repro, project, trained, own_store, tmp_path, option):
    with alone(own_store):
        done = evaluate(repro, project, option, trained / "val" if option == "--imagenet" else tmp_path)
    assert done.exit_code == 2
    assert "a latency is being measured" in done.stderr
