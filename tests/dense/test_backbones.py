"""The backbones of Table 13's rows against their families' own detection and segmentation code.

``tests/data/golden_backbones/NAME-TASK.npz`` holds the official modules' state-dict layout and, for weights seeded by
their keys and one image of noise, every 7th channel and 3rd row and column of each of the four maps.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from repro.errors import ModelError
from repro.models.catalogue import without_initialisation
from repro.models.dense.backbones import BACKBONES, DETECTION, SEGMENTATION, backbone
from repro.models.dense.images import ADE20K, COCO, Pipeline
from repro.models.dense.mask_rcnn import MaskRCNN
from repro.models.dense.semantic_fpn import SemanticFPN
from repro.spec.project import Project
from tests.models.golden import weights

FOLDER = Path(__file__).parents[1] / "data" / "golden_backbones"
GOLDEN = sorted(path.stem for path in FOLDER.glob("*.npz"))
# official without a released detector or a file that runs as it stands: ResNet is held by the toolkits' own outputs,
# FastViT's file norms its positional encoding in place of the last stage
OTHERWISE = {"resnet50", "resnet50_v1c", "fastvit_sa24"}


def test_every_backbone_is_held_by_an_official_output():
    assert {name.rpartition("-")[0] for name in GOLDEN} | OTHERWISE == set(BACKBONES)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_maps_are_the_official_ones(name):
    variant, _, task = name.rpartition("-")
    with np.load(FOLDER / f"{name}.npz") as data:
        golden = {key: data[key] for key in data.files}
    with without_initialisation():
        model = backbone(variant, task)
    names = {official.removeprefix("backbone."): own for official, own in official_names(model).items()}
    own = model.state_dict()
    layout = json.loads(str(golden["keys"]))
    assert {official: list(own[key].shape) for official, key in names.items()} == layout
    given = weights(layout, {official: own[key] for official, key in names.items()})
    model.load_state_dict({names[official]: value for official, value in given.items()})
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 160, 96)).astype(np.float32))
    with torch.inference_mode():
        maps = model.eval()(image)
    assert [m.shape[1] for m in maps] == list(model.channels)
    for i, found in enumerate(maps):
        expected = golden[f"map{i}"]
        assert np.abs(found[0, ::7, ::3, ::3].numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def official_names(model):
    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = model

    return {official: key.removeprefix("backbone.") for official, key in model.official_keys_of(Detector()).items()}


SMALL = {
    DETECTION: Pipeline(name="small", long=167, short=100, divisor=32),
    SEGMENTATION: Pipeline(name="small", long=167, short=77),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_runs_in_both_heads_at_odd_sizes_and_upright(name):
    for task, head in ((DETECTION, MaskRCNN), (SEGMENTATION, SemanticFPN)):
        with without_initialisation():  # zeros: every class is as likely, so that there are detections
            model = head(backbone(name, task), classes=3).eval()
        assert len(model.official_keys()) == len(model.state_dict())
        for height, width in ((91, 123), (150, 81)):
            image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
            found = model(SMALL[task].prepare(image))
            if task == DETECTION:
                assert len(found)
                assert found.boxes[:, 2:].amax(0).tolist() <= [width, height]
                assert all(mask.shape == (height, width) for mask in found.pasted())
            else:
                assert found.shape == (height, width)


def test_every_row_of_the_table_has_a_backbone():
    table = Project.find(None).table(13)
    assert {row.variant.id for row in table.rows if row.variant} <= set(BACKBONES)


def test_an_unknown_backbone_is_told():
    with pytest.raises(ModelError, match="no backbone 'resnet51' for detection; there are resnet50"):
        backbone("resnet51")


@pytest.mark.parametrize("shape", [(1, 480), (480, 1), (1, 1)])
@pytest.mark.parametrize("pipeline", [COCO, ADE20K], ids=["coco", "ade20k"])
def test_a_line_is_refused(pipeline, shape):
    with pytest.raises(ModelError, match=r"line\.png: \d+ x \d+ px, .* at least 2 px are needed either way"):
        pipeline.prepare(np.zeros((*shape, 3), np.uint8), name="line.png")


def test_an_image_smaller_than_the_coarsest_stride_is_refused():
    image = ADE20K.prepare(np.zeros((10, 2000, 3), np.uint8))
    assert image.size[0] < 32
    with pytest.raises(ModelError, match="at least 32 px on a side are needed"):
        SemanticFPN(backbone("resnet50")).eval()(image)
