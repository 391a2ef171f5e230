"""What an evaluation of a segmentation model shows: a table, a few pictures, the confusion matrix."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from flax_mnv2.metrics import SegmentationMetrics


@dataclasses.dataclass(frozen=True)
class Picture:
    """One example with its prediction, unpadded.

    Attributes:
      image: (h, w, 3) uint8.
      label: (h, w) uint8.
      prediction: (h, w) uint8.
    """

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


class Pictures:
    """Keeps the first examples of a split (those that this process holds)."""

    def __init__(self, limit: int):
        """Keeps the examples at positions below ``limit``."""
        self._limit = limit
        self._pictures: dict[int, Picture] = {}

    def wants(self, batch: dict[str, np.ndarray]) -> bool:
        """Whether a batch has an example to keep."""
        return bool(np.any(batch["mask"] & (batch["index"] < self._limit)))

    def add(self, batch: dict[str, np.ndarray], predictions: np.ndarray) -> None:
        """Takes what is wanted from a batch and its predictions (N, H, W)."""
        names = ("index", "mask", "size", "image", "label")
        rows = zip(*(batch[name] for name in names), predictions, strict=True)
        for index, valid, (height, width), image, label, prediction in rows:
            if valid and index < self._limit:
                window = np.s_[:height, :width]
                self._pictures[int(index)] = Picture(image[window], label[window], prediction[window])

    def result(self) -> list[Picture]:
        """The pictures in the order of the split."""
        return [self._pictures[index] for index in sorted(self._pictures)]


def format_table(metrics: SegmentationMetrics, labels: Sequence[str]) -> str:
    """The figures as an aligned table for a terminal; a class that does not occur shows a dash."""
    width = max(len("mean class accuracy"), *map(len, labels))
    rows = [
        *((label, "-" if value != value else f"{value:.4f}") for label, value in zip(labels, metrics.iou, strict=True)),
        ("mean IoU", f"{metrics.mean_iou:.4f}"),
        ("pixel accuracy", f"{metrics.pixel_accuracy:.4f}"),
        ("mean class accuracy", f"{metrics.mean_class_accuracy:.4f}"),
    ]
    lines = [f"{name:<{width}}  {value:>6}" for name, value in rows]
    rule = "-" * (width + 8)
    return "\n".join([f"{'class':<{width}}  {'IoU':>6}", rule, *lines[: len(labels)], rule, *lines[len(labels) :]])


def write_files(
    folder: pathlib.Path,
    matrix: np.ndarray,
    pictures: Sequence[Picture],
    labels: Sequence[str],
    *,
    ignore_label: int,
) -> dict[str, pathlib.Path]:
    """Writes ``confusion_matrix.png`` and, where there are pictures, ``predictions.png``; returns what and where."""
    from flax_mnv2.visualize import save_confusion_matrix, save_predictions

    written = {"confusion": folder / "confusion_matrix.png"}
    save_confusion_matrix(written["confusion"], matrix, labels)
    if pictures:
        written["pictures"] = folder / "predictions.png"
        save_predictions(written["pictures"], pictures, labels, ignore_label=ignore_label)
    return written
