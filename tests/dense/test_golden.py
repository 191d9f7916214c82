"""Mask R-CNN and Semantic FPN against the toolkits' own outputs."""

import re

import numpy as np
import pytest
import torch

from repro.models.dense.backbones import DETECTION, _resnet, backbone
from repro.models.dense.images import ADE20K, COCO, Pipeline
from repro.models.dense.mask_rcnn import MaskRCNN, TestSettings, anchors_of, grouped_nms, paste_masks
from repro.models.dense.semantic_fpn import SemanticFPN
from repro.models.official import StateDictError, load_official
from tests.dense import golden

SMALL = Pipeline(name="small", long=160, short=96, divisor=32)


@pytest.fixture(scope="module")
def detector() -> MaskRCNN:
    data = golden.read("mask_rcnn_r50")
    return load_official(MaskRCNN(backbone("resnet50")), golden.state_dict(golden.layout(data))).eval()


@pytest.fixture(scope="module")
def segmenter() -> SemanticFPN:
    data = golden.read("semantic_fpn_r50")
    return load_official(SemanticFPN(backbone("resnet50_v1c")), golden.state_dict(golden.layout(data))).eval()


def swappable(scores: np.ndarray) -> np.ndarray:
    """Positions whose score is within a millionth of a neighbour's: their order may differ."""
    close = np.abs(np.diff(scores)) < 1e-6
    return np.concatenate([[False], close]) | np.concatenate([close, [False]])


@pytest.mark.slow
@pytest.mark.parametrize("i", range(3))
def test_detections_are_the_toolkits(detector, i):
    data = golden.read("mask_rcnn_r50")
    found = detector(COCO.prepare(golden.image(i, *golden.DETECTION_SIZES[i])))
    assert len(found) == len(data[f"boxes{i}"])
    settled = ~swappable(data[f"scores{i}"])
    assert settled.sum() > 50
    assert np.abs(found.scores.numpy() - data[f"scores{i}"]).max() < 1e-3
    np.testing.assert_array_equal(found.labels.numpy()[settled], data[f"labels{i}"][settled])
    assert np.abs(found.boxes.numpy() - data[f"boxes{i}"])[settled].max() < 0.05
    masks = list(found.pasted())
    areas = np.array([int(mask.sum()) for mask in masks])
    off = np.abs(areas - data[f"areas{i}"])[settled]
    assert (off <= 0.005 * data[f"areas{i}"][settled]).all()
    assert (np.packbits(masks[0]) != data[f"mask{i}"]).sum() <= 8


@pytest.mark.parametrize("i", range(2))
def test_classes_of_pixels_are_the_toolkits(segmenter, i):
    data = golden.read("semantic_fpn_r50")
    image = ADE20K.prepare(golden.image(i, *golden.SEGMENTATION_SIZES[i]))
    assert (segmenter(image).numpy() == data[f"pred{i}"]).mean() >= 0.999
    with torch.inference_mode():
        full = segmenter.enlarge(segmenter.logits(image.pixels), image)[0, :, ::37, ::41].numpy()
    assert np.abs(full - data[f"logits{i}"]).max() < 1e-2 * data[f"logits{i}"].std()


def test_layouts_are_the_released_ones(detector, segmenter):
    for model, name in ((detector, "mask_rcnn_r50"), (segmenter, "semantic_fpn_r50")):
        own = model.state_dict()
        layout = golden.layout(golden.read(name))
        assert {key: list(own[key_here].shape) for key, key_here in model.official_keys().items()} == layout


@pytest.mark.parametrize("wrong", ["missing", "unexpected", "shape"])
def test_a_state_dict_that_does_not_fit_is_named_in_the_released_keys(segmenter, wrong):
    given = golden.state_dict(golden.layout(golden.read("semantic_fpn_r50")))
    if wrong == "missing":
        message = "missing key backbone.stem.7.weight"
        del given["backbone.stem.7.weight"]
    elif wrong == "unexpected":
        message = "unexpected key neck.extra"
        given["neck.extra"] = torch.zeros(1)
    else:
        message = "decode_head.conv_seg.bias has shape [3]"
        given["decode_head.conv_seg.bias"] = torch.zeros(3)
    with pytest.raises(StateDictError, match=re.escape(message)):
        load_official(segmenter, given)


def test_other_depths_need_no_other_code():
    small = _resnet(DETECTION, "resnet18")
    image = SMALL.prepare(golden.image(0, 120, 160))
    torch.manual_seed(0)
    assert MaskRCNN(small, classes=3).eval()(image).height == 120
    assert SemanticFPN(small, classes=3).eval()(image).shape == (120, 160)


def test_classes_are_the_same_whatever_the_number_of_classes_at_a_time(segmenter, monkeypatch):
    image = SMALL.prepare(golden.image(1, 90, 120))
    with torch.inference_mode():
        together = segmenter.enlarge(segmenter.logits(image.pixels), image)[0].argmax(0)
    monkeypatch.setattr("repro.models.dense.semantic_fpn._BYTES", 1)
    assert torch.equal(segmenter(image), together)


def test_anchors():
    found = anchors_of((2, 3), 4)
    assert found.shape == (18, 4)
    torch.testing.assert_close(found[1], torch.tensor([-16.0, -16.0, 16.0, 16.0]))  # a square of 8 strides
    torch.testing.assert_close(found[4], torch.tensor([-12.0, -16.0, 20.0, 16.0]))  # one position to the right
    torch.testing.assert_close(found[10], torch.tensor([-16.0, -12.0, 16.0, 20.0]))  # one position down
    wide = found[0]
    torch.testing.assert_close((wide[3] - wide[1]) / (wide[2] - wide[0]), torch.tensor(0.5))


def test_suppression_keeps_groups_apart():
    draw = torch.Generator().manual_seed(0)
    boxes = torch.rand((60, 4), generator=draw) * 40
    boxes[:, 2:] += boxes[:, :2] + 10
    scores = torch.rand(60, generator=draw)
    groups = torch.randint(0, 3, (60,), generator=draw)
    together = grouped_nms(boxes, scores, groups, 0.3)
    apart = {int(i) for g in range(3) for i in _kept(boxes, scores, groups, g)}
    assert set(together.tolist()) == apart
    assert (scores[together].diff() <= 0).all()


def test_suppression_by_class_and_of_shifted_boxes_agree(monkeypatch):
    draw = torch.Generator().manual_seed(1)
    boxes = torch.rand((80, 4), generator=draw) * 40
    boxes[:, 2:] += boxes[:, :2] + 10
    scores, groups = torch.rand(80, generator=draw), torch.randint(0, 4, (80,), generator=draw)
    shifted = grouped_nms(boxes, scores, groups, 0.5)
    monkeypatch.setattr("repro.models.dense.mask_rcnn._PER_CLASS_FROM", 10)
    assert torch.equal(grouped_nms(boxes, scores, groups, 0.5), shifted)


def _kept(boxes, scores, groups, group):
    """Greedy suppression, written out."""
    order = [i for i in scores.argsort(descending=True).tolist() if groups[i] == group]
    kept: list[int] = []
    for i in order:
        if all(_iou(boxes[i], boxes[j]) <= 0.3 for j in kept):
            kept.append(i)
    return kept


def _iou(a, b):
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    shared = width * height
    return shared / (float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - shared)


def test_a_mask_fills_its_box():
    masks = torch.ones(2, 28, 28)
    boxes = torch.tensor([[10.0, 20.0, 30.0, 25.0], [-5.0, -5.0, 4.0, 3.0]])  # the second hangs over the edge
    first, second = paste_masks(masks, boxes, 40, 50, 0.5)
    expected = np.zeros((40, 50), np.uint8)
    expected[20:25, 10:30] = 1
    np.testing.assert_array_equal(first, expected)
    assert second[:3, :4].all()
    assert second.sum() == 12


def test_nothing_found_is_no_masks():
    small = _resnet(DETECTION, "resnet18")
    found = MaskRCNN(small, settings=TestSettings(score=1.0)).eval()(SMALL.prepare(golden.image(0, 64, 64)))
    assert (len(found), found.masks.shape, list(found.pasted())) == (0, (0, 28, 28), [])


def test_masks_are_pasted_one_at_a_time(monkeypatch):
    """A hundred masks of a large image: each is made when it is asked for, and only its box is ever a float image."""
    import repro.models.dense.mask_rcnn as module

    made: list[int] = []
    sample = torch.nn.functional.grid_sample

    def counted(mask, grid, **kwargs):
        made.append(grid.shape[1] * grid.shape[2])
        return sample(mask, grid, **kwargs)

    monkeypatch.setattr(module.F, "grid_sample", counted)
    boxes = torch.tensor([[100.0, 200.0, 140.0, 230.0]]).repeat(100, 1)
    pasted = paste_masks(torch.ones(100, 28, 28), boxes, 3000, 4000, 0.5)
    assert not made
    for count in range(1, 4):
        assert next(pasted).dtype == np.uint8
        assert len(made) == count
    assert max(made) == 42 * 32
