"""AP and mIoU of predictions whose values are known: the ground truth's own, and changes worked out by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from repro.accuracy.dense.datasets import open_ade20k, open_coco
from repro.accuracy.dense.metrics import areas, coco_metrics, coco_results, miou
from repro.accuracy.errors import DatasetError, EvaluationError
from tests.dense import made


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return open_coco(made.coco(tmp_path_factory.mktemp("coco")))


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory):
    return open_ade20k(made.ade20k(tmp_path_factory.mktemp("ade")), classes=4)


def truth(dataset):
    """Results that repeat the annotations."""
    from pycocotools.coco import COCO
    from pycocotools.mask import encode

    file = COCO(str(dataset.annotations))
    found = {}
    for place, image in enumerate(dataset.images):
        items = file.imgToAnns[image.key]
        found[place] = {
            "key": image.key,
            "size": list(image.size),
            "boxes": [list(map(float, item["bbox"])) for item in items],
            "scores": [0.5 + 1e-4 * item["id"] for item in items],
            "labels": [dataset.categories.index(item["category_id"]) for item in items],
            "masks": [encode(np.asfortranarray(file.annToMask(item)))["counts"].decode() for item in items],
        }
    return found


AP = ("ap_box", "ap50_box", "ap75_box", "ap_mask", "ap50_mask", "ap75_mask")


def measured(dataset, results):
    found = coco_metrics(dataset, results)
    return [round(found[name], 6) for name in AP]


def test_the_ground_truth_is_perfect(coco):
    assert len(coco) == 200
    assert coco.names == ("box", "disc", "ring")
    assert measured(coco, truth(coco)) == [100] * 6


def test_nothing_found_is_zero(coco):
    empty = {"boxes": [], "scores": [], "labels": [], "masks": []}
    results = {place: {**item, **empty} for place, item in truth(coco).items()}
    assert measured(coco, results) == [0] * 6


def test_another_category_is_wrong(coco):
    results = truth(coco)
    for item in results.values():
        item["labels"] = [(label + 1) % 3 for label in item["labels"]]
    assert max(measured(coco, results)) < 5  # what lies in one place by chance of two categories: nothing does


def test_boxes_shifted_by_a_fifth_hold_up_to_an_overlap_of_two_thirds(coco):
    """A box moved by a fifth of its width: IoU 4 / 6, so four of ten thresholds, 0.50 to 0.65."""
    results = truth(coco)
    for item in results.values():
        item["boxes"] = [[x + 0.2 * w, y, w, h] for x, y, w, h in item["boxes"]]
    found = measured(coco, results)
    assert found[:3] == [40, 100, 0]
    assert found[3:] == [100] * 3


def test_half_of_the_instances_found_is_half_of_the_recall(coco):
    """Precision 1 up to the recall that is reached: of 101 recall thresholds those at or below it count."""
    results, kept, total = truth(coco), [0] * 3, [0] * 3
    for item in results.values():
        keep = []
        for i, label in enumerate(item["labels"]):
            total[label] += 1
            if total[label] % 2 == 0:
                keep.append(i)
                kept[label] += 1
        for name in ("boxes", "scores", "labels", "masks"):
            item[name] = [item[name][i] for i in keep]
    each = [np.floor(np.round(100 * k / n, 9)) + 1 for k, n in zip(kept, total, strict=True)]
    expected = round(100 * float(np.mean(each)) / 101, 6)
    assert measured(coco, results) == [expected] * 6


def test_a_false_alarm_above_each_instance_halves_the_precision(coco):
    """As many wrong boxes as instances, all scored higher: the best precision, at full recall, is one half."""
    results = truth(coco)
    for item in results.values():
        count = len(item["labels"])
        item["boxes"] = [[0.0, 0.0, 3.0, 3.0]] * count + item["boxes"]
        corner = np.zeros(item["size"], np.uint8)
        corner[:3, :3] = 1
        item["masks"] = [made.encode(corner)] * count + item["masks"]
        item["scores"] = [0.99] * count + item["scores"]
        item["labels"] = item["labels"] * 2
    assert measured(coco, results) == [50] * 6


def test_results_are_in_cocos_format(coco):
    found = coco_results(coco, truth(coco))
    assert set(found["bbox"][0]) == {"image_id", "category_id", "score", "bbox"}
    assert set(found["segm"][0]) == {"image_id", "category_id", "score", "segmentation"}
    assert {item["category_id"] for item in found["bbox"]} == {3, 7, 90}
    assert found["bbox"][0]["image_id"] == 1000
    json.dumps(found)


def labels_of(dataset):
    for image in dataset.images:
        with Image.open(image.labels) as opened:
            yield np.asarray(opened)


def test_the_true_classes_are_perfect(ade20k):
    assert len(ade20k) == 200
    found = miou([areas(labels.astype(int) - 1, labels, 4) for labels in labels_of(ade20k)], 4)
    assert found["miou"] == found["pixel_accuracy"] == found["mean_accuracy"] == 100
    assert found["classes"] == 4


def test_one_class_for_everything_is_its_own_share(ade20k):
    """Class 3 everywhere: its IoU is its share of the pixels that count, the other three have none."""
    counts = np.sum([np.bincount(labels.ravel(), minlength=5) for labels in labels_of(ade20k)], axis=0)[1:]
    found = miou([areas(np.full(labels.shape, 3), labels, 4) for labels in labels_of(ade20k)], 4)
    assert found["miou"] == pytest.approx(100 * counts[3] / counts.sum() / 4)


def test_miou_by_hand():
    labels = np.array([[1, 1, 2, 2], [0, 0, 255, 3]], np.uint8)
    predicted = np.array([[0, 1, 1, 1], [2, 0, 1, 2]])  # the ignored pixels' predictions count nowhere
    found = miou([areas(predicted, labels, 5)], 5)
    # class 0: right 1 of 2, predicted 1: 1/2; class 1: right 2, predicted 3, true 2: 2/3; class 2: 1/1
    assert found["miou"] == pytest.approx(100 * (1 / 2 + 2 / 3 + 1) / 3)
    assert found["pixel_accuracy"] == pytest.approx(100 * 4 / 5)
    assert found["classes"] == 3  # the other two are in no image


def test_areas_are_summed_over_images_before_they_are_divided():
    ones = np.ones((1, 4), np.uint8)
    first = areas(np.zeros((1, 4), int), ones, 2)
    second = areas(np.array([[0, 1, 1, 1]]), ones, 2)
    assert miou([first, second], 2)["miou"] == pytest.approx(100 * (5 / 8 + 0) / 2)


def test_no_class_at_all():
    with pytest.raises(EvaluationError, match="no pixel of any image has a class"):
        miou([areas(np.zeros((2, 2), int), np.zeros((2, 2), np.uint8), 3)], 3)


@pytest.fixture
def small(tmp_path):
    return made.coco(tmp_path / "coco", images=3)


def change(root, function):
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    function(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda c: [i.update(file_name="x" + i["file_name"]) for i in c["images"]], "annotations of another data set"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "1 are not, gone.png first"),
        (lambda c: c.pop("images"), "not COCO annotations: no images"),
        (lambda c: c.update(annotations=[]), "no annotations to compare with"),
        (lambda c: c["annotations"][0].pop("segmentation"), "its annotations are no instances"),
        (lambda c: c["annotations"][0].update(image_id=5), "an annotation is of image 5, which is not in the file"),
        (lambda c: c["annotations"][0].update(category_id=5), "an annotation is of category 5"),
        (lambda c: c["images"][0].update(id=1003), "two of its images have the same id"),
    ],
)
def test_annotations_that_do_not_fit(small, function, message):
    change(small, function)
    with pytest.raises(DatasetError, match=message) as raised:
        open_coco(small)
    assert "\n" not in str(raised.value)


def test_folders_that_are_no_data_set(small, tmp_path):
    with pytest.raises(DatasetError, match=r"no file annotations/instances_val2017\.json"):
        open_coco(tmp_path)
    file = small / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text()[:200])
    with pytest.raises(DatasetError, match="not whole JSON"):
        open_coco(small)
    with pytest.raises(DatasetError, match="no folder images/validation"):
        open_ade20k(tmp_path)
    root = made.ade20k(tmp_path / "ade", images=2)
    next((root / "annotations" / "validation").iterdir()).unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 images have no \.png there, ADE_val_"):
        open_ade20k(root)
