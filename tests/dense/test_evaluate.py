"""From a trained detector to its AP in a table: saved, listed, evaluated, shown; and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from tests.dense import made, training

TABLE = """\
schema: 1
table: 1
title: Shapes
source: {paper: Shapes, document: its appendix}
protocol: {precision: float32, detection_dataset: shapes, segmentation_dataset: shapes}
columns:
  - {metric: ap_box, group: Detection}
  - {metric: ap_mask, group: Detection}
  - {metric: miou, group: Semantic}
variants:
  tiny: {builder: timm, model: test_resnet}
  never: {builder: timm, model: test_vit}
  unlisted: {builder: timm, model: test_efficientnet}
rows:
  - {model: Tiny, line: 3, variant: tiny, cells: {ap_box: "90.0", ap_mask: "1.0", miou: "99.0"}}
  - {model: Never, line: 4, variant: never, cells: {ap_box: "12.0", ap_mask: "1.0", miou: "12.0"}}
  - {model: Unlisted, line: 5, variant: unlisted, cells: {ap_box: "12.0", ap_mask: "1.0", miou: "12.0"}}
"""
MANIFEST = """\
schema: 1
family: Tiny
checkpoints:
- id: tiny_detector
  variant: tiny
  model: tests.dense.made:tiny_detector
  task: detection
  schedule: 150 steps
  pipeline: coco
  source: {url: "https://example.org/tiny_detector.pth"}
  wrapper: state_dict
  sha256: "DETECTOR"
  official: {ap_box: "90.0", ap_mask: "91.0", where: this test}
  paper_row: same
- id: tiny_segmenter
  variant: tiny
  model: tests.dense.made:tiny_segmenter
  task: segmentation
  schedule: 60 steps
  pipeline: ade20k_padded
  source: {url: "https://example.org/tiny_segmenter.pth"}
  sha256: "SEGMENTER"
  paper_row: different_recipe
  reason: Trained for another table.
- id: never_detector
  variant: never
  task: detection
  paper_row: none_released
  reason: Nobody trained it.
  looked: [everywhere]
"""


def save(path, content) -> str:
    torch.save(content, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A project, trained weights and both data sets."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("shapes")
    made.coco(root / "coco", images=12, height=64, width=1333, count=12, seed=5)  # so wide that it is not resized
    made.ade20k(root / "ade", images=12, height=64, width=2048, seed=6)
    weights = root / "weights"
    weights.mkdir()
    save(root / "untrained.pth", made.tiny_detector(3).state_dict())
    detector = training.train_detector(made.tiny_detector(3), 150)
    segmenter = training.train_segmenter(made.tiny_segmenter(4), *_pixels(), 60)
    text = MANIFEST.replace(
        "DETECTOR", save(weights / "tiny_detector.pth", {"state_dict": detector.state_dict(), "epoch": 1})
    ).replace("SEGMENTER", save(weights / "tiny_segmenter.pth", segmenter.state_dict()))
    for folder, name, content in (("tables", "table_01.yaml", TABLE), ("checkpoints_manifest", "tiny.yaml", text)):
        (root / folder).mkdir()
        (root / folder / name).write_text(content)
    return root


def _pixels():
    draw = np.random.default_rng(42)
    pixels, labels = [], []
    for _ in range(24):
        image, _, kinds, masks = training.example(draw, 64, 192)
        truth = torch.full((64, 192), -1)
        truth[:32] = 3
        for kind, mask in zip(kinds, masks, strict=True):
            truth[mask.bool()] = kind
        pixels.append(image)
        labels.append(truth)
    return torch.cat(pixels), torch.stack(labels)


@pytest.fixture
def evaluate(repro, workshop, tmp_path):
    def run(*arguments, store=tmp_path / "store"):
        return repro(
            "evaluate", *map(str, arguments), "--project", str(workshop), "--store", str(store),
            "--checkpoints", str(workshop / "weights"), "--offline", "--jobs", "1", "--dataset", "shapes",
        )  # fmt: skip

    return run


def refused(result) -> str:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.strip().splitlines() if "images/s" not in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.slow
def test_a_trained_detector_reaches_the_table(repro, workshop, evaluate, tmp_path):
    store = tmp_path / "store"
    result = evaluate("1", "--coco", workshop / "coco", "--ade20k", workshop / "ade", "--classes", "4",
                      "--format", "json", "--detections", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = {item["checkpoint"]: item for item in json.loads(result.stdout)["checkpoints"]}
    detector, segmenter = found["tiny_detector"]["metrics"], found["tiny_segmenter"]["metrics"]
    assert detector["ap_box"] > 50  # of three classes, at ten overlaps: chance is 0
    assert detector["ap_mask"] > 50
    assert segmenter["miou"] > 50  # of four classes: chance is below 25
    before = evaluate("--coco", workshop / "coco", "--detector",
                      f"tests.dense.made:tiny_detector={workshop / 'untrained.pth'}", "--format", "json")  # fmt: skip
    assert before.exit_code == 0, before.output
    assert json.loads(before.stdout)["checkpoints"][0]["metrics"]["ap_box"] < 5

    boxes = json.loads((tmp_path / "out" / "tiny_detector.bbox.json").read_text())
    masks = json.loads((tmp_path / "out" / "tiny_detector.segm.json").read_text())
    assert len(boxes) == len(masks) > 50
    assert _by_hand(workshop, tmp_path / "out") == pytest.approx(detector["ap_box"])

    shown = repro("table", "1", "--project", str(workshop), "--store", str(store), "--no-measure", "--format", "json")
    cells = {row["model"]: row["cells"] for row in json.loads(shown.stdout)["rows"]}
    assert cells["Tiny"]["ap_box"]["measured"] == pytest.approx(detector["ap_box"])
    assert cells["Tiny"]["ap_box"]["status"] in ("match", "outside")
    assert cells["Tiny"]["ap_box"]["protocol"]["detection_dataset"] == "shapes"
    assert cells["Tiny"]["miou"]["reason"] == "different_recipe"
    assert cells["Tiny"]["miou"]["measured"] == pytest.approx(segmenter["miou"])
    assert cells["Never"]["ap_box"]["reason"] == "no_released_checkpoint"
    assert cells["Unlisted"]["miou"]["reason"] == "needs_dataset"
    story = repro("explain", "1", "Tiny", "ap_box", "--project", str(workshop), "--store", str(store)).stdout
    assert "weights   tiny_detector: same, 150 steps, https://example.org/tiny_detector.pth" in story
    assert "AP box / mask 90.0 / 91.0" in story
    assert "images    shapes, 12 images, pipeline coco" in story
    assert "repeat    repro evaluate 1 --coco DIR" in story
    again = evaluate("1", "--coco", workshop / "coco", "--format", "json")
    assert json.loads(again.stdout)["checkpoints"][0]["evaluated"] == 0
    assert "tiny_detector" in evaluate("1", "--coco", workshop / "coco").stdout


def _by_hand(workshop, folder) -> float:
    """What the published evaluator says of the exported file."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(workshop / "coco" / "annotations" / "instances_val2017.json"))
    run = COCOeval(truth, truth.loadRes(str(folder / "tiny_detector.bbox.json")), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return 100 * float(run.stats[0])


@pytest.mark.slow
def test_what_an_interrupted_run_did_is_not_done_again(workshop, evaluate, tmp_path):
    arguments = ("tiny_detector", "--coco", workshop / "coco", "--format", "json")
    whole = json.loads(evaluate(*arguments).stdout)["checkpoints"][0]
    (folder,) = (tmp_path / "store" / "results").iterdir()
    files = sorted(folder.iterdir())
    assert len(files) == 3  # of 12 images
    files[1].unlink()  # as if the run had been killed before it
    part = json.loads(evaluate(*arguments).stdout)["checkpoints"][0]
    assert part["evaluated"] == 4
    assert part["metrics"] == whole["metrics"]

    content = files[0].read_bytes()
    for damage in (content[: len(content) // 2], b"", b"\x1f\x8b not gzip", content[:-3]):
        files[0].write_bytes(damage)
        assert f"{files[0]}: a damaged result file" in refused(evaluate(*arguments))
    files[0].unlink()
    assert json.loads(evaluate(*arguments).stdout)["checkpoints"][0]["metrics"] == whole["metrics"]


@pytest.mark.slow
def test_the_files_that_are_here_are_checked(repro, workshop):
    result = repro("checkpoints", "check", "--load", "--project", str(workshop),
                   "--checkpoints", str(workshop / "weights"))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "loads into MaskRCNN" in result.stdout
    assert "loads into SemanticFPN" in result.stdout


@pytest.mark.slow
def test_several_processes_find_the_same(workshop, evaluate, tmp_path):
    one = evaluate("tiny_detector", "--coco", workshop / "coco", "--format", "json")
    two = evaluate("tiny_detector", "--coco", workshop / "coco", "--format", "json", "--jobs", "2",
                   store=tmp_path / "other")  # fmt: skip
    assert two.exit_code == 0, two.output
    first, second = (json.loads(result.stdout)["checkpoints"][0] for result in (one, two))
    assert second["evaluated"] == 12
    assert first["metrics"] == second["metrics"]


@pytest.mark.slow
def test_bad_input_is_one_line(workshop, evaluate, tmp_path):
    coco = workshop / "coco"
    classifier = tmp_path / "classifier.pth"
    torch.save({"conv1.weight": torch.zeros(2, 3, 3, 3), "fc.weight": torch.zeros(10, 2)}, classifier)
    told = refused(evaluate("--coco", coco, "--detector", f"resnet50={classifier}"))
    assert "the state dict does not fit MaskRCNN: missing key backbone.conv1.weight" in told
    assert told.endswith("more; it has no feature pyramid: a classifier's checkpoint?")
    assert len(told) < 1000
    assert "no backbone 'resnet51'" in refused(evaluate("--coco", coco, "--detector", f"resnet51={classifier}"))
    assert "no checkpoint was released: Nobody trained it" in refused(evaluate("never", "--coco", coco))
    assert "needs --ade20k DIR beside it" in refused(evaluate("--coco", coco, "--segmenter", f"tiny={classifier}"))
    assert "where the images are" in refused(evaluate("1"))
    assert "one command each" in refused(evaluate("1", "--coco", coco, "--imagenet", coco))
    assert "no file annotations/instances_val2017.json" in refused(evaluate("1", "--coco", workshop / "ade"))
    assert "no folder images/validation" in refused(evaluate("1", "--ade20k", coco))
    other = made.coco(tmp_path / "other", images=2, height=64, width=96, count=1)
    image = next((other / "val2017").iterdir())
    image.write_bytes(image.read_bytes()[:40])
    assert f"{image}: not an image that can be decoded" in refused(evaluate("tiny_detector", "--coco", other))


@pytest.mark.slow
def test_a_ray_cluster_finds_the_same(workshop, evaluate, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    one = evaluate("tiny_detector", "--coco", workshop / "coco", "--format", "json")
    two = evaluate("tiny_detector", "--coco", workshop / "coco", "--format", "json", "--executor", "ray",
                   store=tmp_path / "other")  # fmt: skip
    assert two.exit_code == 0, two.output
    first, second = (json.loads(result.stdout)["checkpoints"][0] for result in (one, two))
    assert second["evaluated"] == 12
    assert first["metrics"] == second["metrics"]


def test_a_file_of_the_toolkits_is_read_without_the_toolkits(tmp_path, monkeypatch):
    """MMDetection 3 keeps histories of losses beside the weights: objects of a package that is not here."""
    import sys
    from types import ModuleType

    from repro.models.loading import CheckpointError, read_weights

    class HistoryBuffer:
        def __init__(self):
            self.max_length = 100
            self._log_history, self._count_history = np.array([0.5, 0.25]), np.array([1, 1])

    module = "mmengine.logging.history_buffer"
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module, "HistoryBuffer"
    for name in ("mmengine", "mmengine.logging", module):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[module].HistoryBuffer = HistoryBuffer
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"iter": 3, "lr": np.float64(0.1)}}
    path = tmp_path / "epoch_12.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": {"a": torch.ones(2)}, "message_hub": hub}, path)
    for name in ("mmengine", "mmengine.logging", module):
        monkeypatch.delitem(sys.modules, name)

    weights = read_weights(path, "state_dict")
    assert torch.equal(weights.tensors["a"], torch.ones(2))
    assert "mmengine" not in sys.modules
    torch.save({"state_dict": {"a": torch.ones(2), "b": np.ones(2)}}, path)
    with pytest.raises(CheckpointError, match=r"b is a \w+, not a tensor"):
        read_weights(path)
