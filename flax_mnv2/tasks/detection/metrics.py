"""COCO's twelve figures, by pycocotools, and PASCAL VOC's average precision, of the same detections."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

from flax_mnv2.errors import UserError

COCO_FIGURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar_1": "AR, 1 box",
    "ar_10": "AR, 10 boxes",
    "ar_100": "AR, 100 boxes",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}
VOC_IOU = 0.5


@dataclasses.dataclass(frozen=True)
class ImageBoxes:
    """Boxes of one image in its own pixels: (n, 4) corners (x_min, y_min, x_max, y_max), and their labels (n,).

    What is true has ``ignored`` (n,) and ``areas`` (n,) beside them, what was found ``scores`` (n,).
    """

    image_id: str
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    ignored: np.ndarray | None = None
    areas: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class CocoMetrics:
    """COCO's metrics; NaN where nothing of the kind occurs.

    ``figures`` has the twelve by name, ``per_class`` (C,) the AP of each class, ``precision`` (101, C) is at an IoU of
    0.5 by recall from 0 to 1.
    """

    figures: Mapping[str, float]
    per_class: np.ndarray
    precision: np.ndarray


def coco_metrics(truth: Sequence[ImageBoxes], detections: Sequence[ImageBoxes], num_labels: int) -> CocoMetrics:
    """Computes the metrics of detections of the images in ``truth``, in the same order.

    What is ignored counts as COCO's crowds do: neither missed nor falsely found.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UserError(
            "Evaluating a detector needs the package pycocotools; pip install 'flax-mnv2[train]'."
        ) from None

    annotations, results = [], []
    for number, (true, found) in enumerate(zip(truth, detections, strict=True)):
        for row, (x, y, width, height) in enumerate(to_xywh(true.boxes)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(true.labels[row]),
                    "bbox": [x, y, width, height],
                    "area": float(true.areas[row]),
                    "iscrowd": int(true.ignored[row]),
                }
            )
        for row, (x, y, width, height) in enumerate(to_xywh(found.boxes)):
            score = float(found.scores[row])
            results.append(
                {
                    "id": len(results) + 1,
                    "image_id": number,
                    "category_id": int(found.labels[row]),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    images = [{"id": number} for number in range(len(truth))]
    categories = [{"id": index} for index in range(num_labels)]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for rows in (annotations, results):
            side = COCO()
            side.dataset = {"images": images, "categories": categories, "annotations": rows}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (thresholds, recalls, classes, sizes of boxes, limits of their number), -1 where there is nothing
    precision = np.where(evaluation.eval["precision"] > -1, evaluation.eval["precision"], np.nan)[:, :, :, 0, -1]
    stats = np.where(evaluation.stats > -1, evaluation.stats, np.nan)
    per_class = [_mean_of_defined(precision[:, :, label]) for label in range(num_labels)]
    return CocoMetrics(dict(zip(COCO_FIGURES, stats.tolist(), strict=True)), np.array(per_class), precision[0])


def voc_average_precision(truth: Sequence[ImageBoxes], detections: Sequence[ImageBoxes], num_labels: int) -> np.ndarray:
    """Returns the average precision of each class (C,) at an IoU of 0.5, as the VOC development kit since 2010 has it.

    It is the area below the precision, made to fall with recall. A detection belongs to the box that it overlaps most;
    that of an ignored (difficult) box does not count. NaN where a class has no box.
    """
    result = np.full(num_labels, np.nan)
    for label in range(num_labels):
        hits, count = [], 0
        for true, found in zip(truth, detections, strict=True):
            rows = true.labels == label
            boxes, ignored = true.boxes[rows], true.ignored[rows].astype(bool)
            count += int((~ignored).sum())
            taken = np.zeros(len(boxes), bool)
            mine = found.labels == label
            order = np.argsort(-found.scores[mine], kind="stable")
            for box, score in zip(found.boxes[mine][order], found.scores[mine][order], strict=True):
                overlaps = _overlaps(box, boxes)
                best = int(np.argmax(overlaps)) if len(boxes) else -1
                hit = best >= 0 and overlaps[best] >= VOC_IOU
                if hit and ignored[best]:
                    continue
                hits.append((float(score), hit and not taken[best]))
                if hit:
                    taken[best] = True
        if count:
            result[label] = _area_below(np.array([hit for _, hit in sorted(hits, key=lambda row: -row[0])]), count)
    return result


def to_xywh(boxes: np.ndarray) -> list[list[float]]:
    """Corners (n, 4) in pixels → COCO's x, y, width, height."""
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _mean_of_defined(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - common
    return common / np.maximum(union, 1e-12)


def _area_below(hits: np.ndarray, count: int) -> float:
    right = np.cumsum(hits) if len(hits) else np.zeros(0)
    recall = np.concatenate([[0.0], right / count, [1.0]])
    precision = np.concatenate([[0.0], right / np.arange(1, len(hits) + 1), [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * precision[1:]))
