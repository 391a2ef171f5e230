"""An evaluation of a detector: COCO's figures, VOC's beside them, detections, pictures, curves."""

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flax_mnv2.tasks.base import Evaluator, HostBatch
from flax_mnv2.tasks.detection.metrics import (
    COCO_FIGURES,
    CocoMetrics,
    ImageBoxes,
    coco_metrics,
    to_xywh,
    voc_average_precision,
)
from flax_mnv2.tasks.kept_examples import KeptExamples, file_name
from flax_mnv2.visualize.boxes import BoxPicture, save_box_pictures
from flax_mnv2.visualize.plots import save_curves

SHOWN_SCORE = 0.5  # boxes from this probability on are drawn
MAX_CURVES = 20  # more cannot be told apart; then only their mean is drawn
Rows = Mapping[str, np.ndarray]  # of all images, in the order of the split
_TRUTH = ("shape", "boxes", "class_labels", "ignored", "area")


class DetectionEvaluator(Evaluator):
    """Keeps what is true of every image and what was found in it; the metrics need all of them together."""

    def __init__(self, labels: Sequence[str], *, category_ids: Sequence[int], integer_ids: bool, num_pictures: int):
        """``category_ids`` are the classes' numbers in the data set's own annotations, for files of detections.

        There images have numbers with ``integer_ids``, else names. Pictures are kept of the examples at positions below
        ``num_pictures``.
        """
        self._labels, self._limit = tuple(labels), num_pictures
        self._category_ids, self._integer_ids = tuple(category_ids), integer_ids
        self._kept = KeptExamples()
        self._images: dict[int, np.ndarray] = {}

    def needs_examples(self, batch: HostBatch) -> bool:
        """Returns True: every detection counts."""
        return True

    def add(self, batch: HostBatch, sums: Any, examples: Mapping[str, np.ndarray]) -> None:
        """Takes one batch."""
        del sums
        self._kept.add(batch, {**{name: batch[name] for name in _TRUTH}, **examples})
        for index, image in zip(batch["index"], batch["image"], strict=True):
            if 0 <= index < self._limit:
                self._images[int(index)] = image

    def metrics(self) -> dict[str, float]:
        """Returns ``ap`` and ``ap50``."""
        figures = self._computed[3].figures
        return {name: figures[name] for name in ("ap", "ap50")}

    def to_dict(self, *, per_class: bool) -> dict[str, Any]:
        """Returns all figures, always with those of every class; None where one is not defined."""
        _, truth, _, coco, voc = self._computed
        counts = np.bincount(np.concatenate([one.labels for one in truth]), minlength=len(self._labels))
        return {
            **{name: _or_none(value) for name, value in coco.figures.items()},
            "voc_ap50": _or_none(_mean(voc)),
            "per_class": [
                {
                    "id": index,
                    "label": label,
                    "num_boxes": int(counts[index]),
                    "ap": _or_none(coco.per_class[index]),
                    "voc_ap50": _or_none(voc[index]),
                }
                for index, label in enumerate(self._labels)
            ],
        }

    def format_table(self, *, per_class: bool) -> str:
        """Returns an aligned table, always with every class; what is not defined shows a dash."""
        values = self.to_dict(per_class=True)
        width = max(len(title) for title in (*self._labels, *COCO_FIGURES.values(), "VOC AP50"))
        head = f"{'class':<{width}}  {'AP':>6}  VOC AP50  boxes"
        lines = [head, "-" * len(head)]
        for row in values["per_class"]:
            lines.append(
                f"{row['label']:<{width}}  {_shown(row['ap']):>6}  {_shown(row['voc_ap50']):>8}  {row['num_boxes']:>5}"
            )
        lines.append("-" * len(head))
        lines += [f"{title:<{width}}  {_shown(values[name]):>6}" for name, title in COCO_FIGURES.items()]
        return "\n".join([*lines, f"{'VOC AP50':<{width}}  {_shown(values['voc_ap50']):>6}"])

    def write_files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """Writes ``detections.json`` in COCO's result format, ``precision_recall.png`` and ``predictions.png``."""
        rows, _, detections, coco, _ = self._computed  # all processes gather
        if jax.process_index() != 0:
            return {}
        written = {"detections": folder / "detections.json", "curves": folder / "precision_recall.png"}
        written["detections"].write_text(json.dumps(self._coco_results(detections)) + "\n", encoding="utf-8")
        save_curves(written["curves"], self._curves(coco), x_label="recall")
        pictures = list(self._pictures(rows))
        if pictures:
            written["pictures"] = folder / "predictions.png"
            save_box_pictures(written["pictures"], pictures)
        return written

    @functools.cached_property
    def _computed(self) -> tuple[Rows, list[ImageBoxes], list[ImageBoxes], CocoMetrics, np.ndarray]:
        """All rows, truth and detections of them, COCO's metrics and VOC's; the same on every process."""
        rows, count = self._kept.gathered(), len(self._labels)
        every = range(len(rows["index"]))
        truth, detections = [_truth(rows, at) for at in every], [_found(rows, at) for at in every]
        return (
            rows,
            truth,
            detections,
            coco_metrics(truth, detections, count),
            voc_average_precision(truth, detections, count),
        )

    def _coco_results(self, detections: Sequence[ImageBoxes]) -> list[dict[str, Any]]:
        return [
            {
                "image_id": int(one.image_id) if self._integer_ids else one.image_id,
                "category_id": self._category_ids[label],
                "bbox": [round(side, 2) for side in box],
                "score": float(f"{score:.6g}"),
            }
            for one in detections
            for box, label, score in zip(to_xywh(one.boxes), one.labels, one.scores, strict=True)
        ]

    def _curves(self, coco: CocoMetrics) -> dict[str, list[tuple[float, float]]]:
        recall, columns = np.linspace(0, 1, len(coco.precision)), coco.precision.T
        occurs = [index for index, column in enumerate(columns) if not np.isnan(column).all()]
        if len(occurs) > MAX_CURVES:
            means = np.nanmean(columns[occurs], axis=0)
            return {f"mean of {len(occurs)} classes, IoU 0.5": list(zip(recall, means, strict=True))}
        return {f"{self._labels[at]}, IoU 0.5": list(zip(recall, columns[at], strict=True)) for at in occurs}

    def _pictures(self, rows: Rows) -> Iterator[BoxPicture]:
        for at in np.flatnonzero(np.isin(rows["index"], list(self._images))):
            image, size = self._images[int(rows["index"][at])], np.ones(4)
            truth, found = _truth(rows, at, size), _found(rows, at, size)
            keep = found.scores >= SHOWN_SCORE
            true = zip(truth.boxes, truth.labels, strict=True)
            likely = zip(found.boxes[keep], found.labels[keep], found.scores[keep], strict=True)
            yield BoxPicture(
                image=image,
                aspect=float(rows["shape"][at][1] / rows["shape"][at][0]),
                truth=[(box, self._labels[label], label) for box, label in true],
                found=[(box, f"{self._labels[label]} {score:.2f}", label) for box, label, score in likely],
            )


def _truth(rows: Rows, at: int, size: np.ndarray | None = None) -> ImageBoxes:
    real = rows["class_labels"][at] >= 0
    return ImageBoxes(
        image_id=file_name(rows["file_name"][at]),
        boxes=_in_pixels(rows, at, rows["boxes"][at][real], size),
        labels=rows["class_labels"][at][real],
        ignored=rows["ignored"][at][real],
        areas=rows["area"][at][real],
    )


def _found(rows: Rows, at: int, size: np.ndarray | None = None) -> ImageBoxes:
    real = rows["scores"][at] > 0
    return ImageBoxes(
        image_id=file_name(rows["file_name"][at]),
        boxes=_in_pixels(rows, at, rows["found"][at][real], size),
        labels=rows["labels"][at][real],
        scores=rows["scores"][at][real],
    )


def _in_pixels(rows: Rows, at: int, boxes: np.ndarray, size: np.ndarray | None) -> np.ndarray:
    """(n, 4) corners y, x, y, x as fractions → x, y, x, y in pixels of the image, or of another ``size`` (4,)."""
    height, width = rows["shape"][at]
    return boxes[:, [1, 0, 3, 2]].astype(np.float64) * (
        np.array([width, height, width, height]) if size is None else size
    )


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
