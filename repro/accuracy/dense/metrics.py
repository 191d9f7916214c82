"""Box and mask AP of COCO, by the evaluator that COCO publishes, and mIoU as MMSegmentation computes it.

pycocotools is what the toolkits' own figures were computed with, and it is still released; faster-coco-eval is quicker
but says of itself that it reinterprets the original.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repro.accuracy.dense.datasets import DenseDataset
from repro.accuracy.errors import DatasetError, EvaluationError

Array = np.ndarray[Any, np.dtype[Any]]
AP_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the evaluator's first six numbers
IGNORED = 255  # ADE20K's class 0, "other", becomes this; the other classes move down by one


def coco_results(dataset: DenseDataset, results: Mapping[int, Any]) -> dict[str, list[dict[str, Any]]]:
    """COCO's result format, boxes and masks apart: what the published evaluator and the test server take.

    A mask's entry has no box, so that its area is the mask's.
    """
    found: dict[str, list[dict[str, Any]]] = {"bbox": [], "segm": []}
    for place in sorted(results):
        image, result = dataset.images[place], results[place]
        height, width = result["size"]
        for box, score, label, counts in zip(
            result["boxes"], result["scores"], result["labels"], result["masks"], strict=True
        ):
            same = {"image_id": image.key, "category_id": dataset.categories[label], "score": score}
            found["bbox"].append({**same, "bbox": box})
            found["segm"].append({**same, "segmentation": {"size": [height, width], "counts": counts}})
    return found


def coco_metrics(dataset: DenseDataset, results: Mapping[int, Any]) -> dict[str, float]:
    """AP in percent: ``ap_box``, ``ap50_box``, ``ap75_box``, the same of masks, and by size.

    Raises
    ------
    DatasetError
        For annotations that the evaluator refuses.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    detections = coco_results(dataset, results)
    measured: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluator's own report; the same numbers are kept
        try:
            truth = COCO(str(dataset.annotations))
            for kind, suffix in (("bbox", "box"), ("segm", "mask")):
                if not detections[kind]:  # the evaluator cannot read an empty list
                    measured |= {f"{name}_{suffix}": 0.0 for name in AP_NAMES}
                    continue
                run = COCOeval(truth, truth.loadRes(detections[kind]), kind)
                run.params.imgIds = [dataset.images[place].key for place in sorted(results)]
                run.params.catIds = list(dataset.categories)
                run.evaluate()
                run.accumulate()
                run.summarize()
                stats = [float(value) for value in run.stats[: len(AP_NAMES)]]
                # -1 where no instance has the size
                measured |= {
                    f"{n}_{suffix}": 100 * value for n, value in zip(AP_NAMES, stats, strict=True) if value >= 0
                }
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise DatasetError(f"{dataset.annotations}: the evaluator refuses them: {error!r}") from error
    return measured


def areas(predicted: Array, labels: Array, classes: int) -> dict[str, list[list[int]]]:
    """One image's pixels by class: predicted right, predicted, and true, where the truth is not ignored.

    Parameters
    ----------
    predicted
        Class of each pixel, int, (height, width).
    labels
        ADE20K's values, uint8, (height, width): 0 is ignored, class ``c`` is stored as ``c + 1``.

    Returns
    -------
    dict
        Lists of (class, pixels), classes without pixels left out.
    """
    truth = labels.astype(np.int64) - 1
    kept = (labels != 0) & (labels != IGNORED)
    predicted, truth = predicted[kept], truth[kept]
    counted = {
        "right": np.bincount(predicted[predicted == truth], minlength=classes)[:classes],
        "predicted": np.bincount(predicted, minlength=classes)[:classes],
        "true": np.bincount(truth, minlength=classes)[:classes],
    }
    return {name: [[int(i), int(n[i])] for i in np.flatnonzero(n)] for name, n in counted.items()}


def miou(results: Sequence[Mapping[str, Any]], classes: int) -> dict[str, Any]:
    """Mean over classes of intersection over union, in percent, summed over all images first.

    A class that is neither predicted nor true in any image has no IoU and is left out of the mean.

    Raises
    ------
    EvaluationError
        When no pixel has a class.
    """
    total = {name: np.zeros(classes, dtype=np.int64) for name in ("right", "predicted", "true")}
    for result in results:
        for name, sums in total.items():
            for i, pixels in result[name]:
                sums[i] += pixels
    union = total["predicted"] + total["true"] - total["right"]
    seen = union > 0
    if not seen.any():
        raise EvaluationError("no pixel of any image has a class")
    iou = total["right"][seen] / union[seen]
    of_true = total["true"] > 0
    return {
        "miou": 100 * float(iou.mean()),
        "pixel_accuracy": 100 * float(total["right"].sum() / max(1, total["true"].sum())),
        "mean_accuracy": 100 * float((total["right"][of_true] / total["true"][of_true]).mean()),
        "classes": int(seen.sum()),
        "iou": {int(i): 100 * float(value) for i, value in zip(np.flatnonzero(seen), iou, strict=True)},
    }
