"""An evaluation of a segmentation model: the confusion matrix, a table, a few pictures."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flax_mnv2.metrics import SegmentationMetrics
from flax_mnv2.tasks.base import Evaluator, HostBatch
from flax_mnv2.tasks.extremes import Extremes
from flax_mnv2.visualize.plots import save_confusion_matrix, save_predictions

_MAX_EXTREMES = 4  # of the best pictures, and of the worst
_MAX_PICTURE_PX = 1024  # longer side of what is kept to be drawn, at a third of that


@dataclasses.dataclass(frozen=True)
class Picture:
    """One example with its prediction, unpadded, uint8: image (h, w, 3), label and prediction (h, w).

    Of one beyond ``_MAX_PICTURE_PX`` every second pixel is kept, every third, and so on.
    """

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


class SegmentationEvaluator(Evaluator):
    """Adds up confusion matrices (C, C) int64, pixels by truth (rows) and prediction, and keeps the first examples."""

    def __init__(self, labels: Sequence[str], *, ignore_label: int, num_pictures: int):
        """Keeps the examples at positions below ``num_pictures``; unless that is 0, a few of the best and worst too."""
        self._labels, self._ignore_label, self._limit = tuple(labels), ignore_label, num_pictures
        self.confusion = np.zeros((len(labels), len(labels)), np.int64)
        self._pictures: dict[int, Picture] = {}
        self._extremes: Extremes[tuple[Picture, str]] = Extremes(min(num_pictures, _MAX_EXTREMES))

    def needs_examples(self, batch: HostBatch) -> bool:
        """Returns whether a batch has an example to keep, which any may be where pictures are kept at all."""
        return self._limit > 0 and bool(np.any(batch["mask"]))

    def add(self, batch: HostBatch, sums: np.ndarray, examples: np.ndarray | None) -> None:
        """Takes the confusion matrix of a batch, and predictions (N, H, W)."""
        self.confusion += sums
        if examples is None:
            return
        names = ("index", "mask", "size", "image", "label")
        rows = zip(*(batch[name] for name in names), examples, strict=True)
        for index, valid, (height, width), image, label, prediction in rows:
            if not valid:
                continue
            step = -(-max(height, width) // _MAX_PICTURE_PX)
            views = [array[:height:step, :width:step] for array in (image, label, prediction)]
            if index < self._limit:
                self._pictures[int(index)] = _picture(views)
            iou = self._iou(*views[1:])
            if not np.isnan(iou):
                self._extremes.add(-iou, lambda views=views, iou=iou: (_picture(views), f"IoU {iou:.3f}"))

    @property
    def pictures(self) -> list[Picture]:
        """The kept examples in the order of the split."""
        return [self._pictures[index] for index in sorted(self._pictures)]

    @property
    def best(self) -> list[tuple[Picture, str]]:
        """The examples with the largest mean IoU of their own, which is in the caption beside; the largest first."""
        return self._extremes.best

    @property
    def worst(self) -> list[tuple[Picture, str]]:
        """Those with the smallest, the smallest first."""
        return self._extremes.worst

    def metrics(self) -> dict[str, float]:
        """Returns ``mean_iou`` and ``pixel_accuracy``."""
        computed = self._computed()
        return {"mean_iou": computed.mean_iou, "pixel_accuracy": computed.pixel_accuracy}

    def to_dict(self, *, per_class: bool) -> dict[str, Any]:
        """Returns the metrics, always with those of every class, and the names of classes that never occurred."""
        in_truth, in_predictions = self.confusion.any(axis=1), self.confusion.any(axis=0)
        return self._computed().to_dict(self._labels) | {
            "never_in_truth": self._named(~in_truth),
            "never_in_predictions": self._named(~in_predictions),
            "never_in_either": self._named(~in_truth & ~in_predictions),
        }

    def remarks(self) -> list[str]:
        """Returns which classes never occurred: in neither, the mean IoU leaves them out."""
        found, total = self.to_dict(per_class=True), len(self._labels)
        parts = (
            ("the masks", found["never_in_truth"]),
            ("the predictions", found["never_in_predictions"]),
            ("either, so not in the mean IoU", found["never_in_either"]),
        )
        said = [
            f"{len(names)} of {total} classes never in {where}: {_shortened(names)}" for where, names in parts if names
        ]
        return [f"  {line}" for line in said]

    def format_table(self, *, per_class: bool) -> str:
        """Returns an aligned table, always with every class; what is not defined for it shows a dash."""
        metrics, labels = self._computed(), self._labels
        width = max(len("mean class accuracy"), *map(len, labels))
        head = f"{'class':<{width}}  {'IoU':>6}  precision  recall"
        lines = [head, "-" * len(head)]
        for row in metrics.to_dict(labels)["iou_per_class"]:
            iou, precision, recall = (
                "-" if row[name] is None else f"{row[name]:.4f}" for name in ("iou", "precision", "recall")
            )
            lines.append(f"{row['label']:<{width}}  {iou:>6}  {precision:>9}  {recall:>6}")
        lines += [
            "-" * len(head),
            f"{'mean IoU':<{width}}  {metrics.mean_iou:.4f}",
            f"{'pixel accuracy':<{width}}  {metrics.pixel_accuracy:.4f}",
            f"{'mean class accuracy':<{width}}  {metrics.mean_class_accuracy:.4f}",
        ]
        return "\n".join(lines)

    def write_files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """Writes ``confusion_matrix.png``; where pictures were kept, ``predictions.png``, ``best.png``, ``worst.png``.

        The pictures are of process 0's part of the split.
        """
        if jax.process_index() != 0:
            return {}
        written = {"confusion": folder / "confusion_matrix.png"}
        save_confusion_matrix(written["confusion"], self.confusion, self._labels)
        if self._pictures:
            written["pictures"] = folder / "predictions.png"
            save_predictions(written["pictures"], self.pictures, self._labels, ignore_label=self._ignore_label)
        for name, kept in (("best", self.best), ("worst", self.worst)):
            if kept:
                written[name], (pictures, captions) = folder / f"{name}.png", zip(*kept, strict=True)
                save_predictions(
                    written[name], pictures, self._labels, ignore_label=self._ignore_label, captions=captions
                )
        return written

    def _iou(self, label: np.ndarray, prediction: np.ndarray) -> float:
        """Returns the mean IoU of one image, (h, w) each, over the classes in it; NaN where no pixel counts."""
        counts, count = label != self._ignore_label, len(self._labels)
        cells = label[counts].astype(np.int64) * count + prediction[counts]
        confusion = np.bincount(cells, minlength=count * count)[: count * count].reshape(count, count)
        return SegmentationMetrics.from_confusion(confusion).mean_iou

    def _named(self, chosen: np.ndarray) -> list[str]:
        return [label for label, is_chosen in zip(self._labels, chosen, strict=True) if is_chosen]

    def _computed(self) -> SegmentationMetrics:
        return SegmentationMetrics.from_confusion(self.confusion)


def _picture(views: Sequence[np.ndarray]) -> Picture:
    return Picture(*(array.copy() for array in views))


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
