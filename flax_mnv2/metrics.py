"""Segmentation metrics from a confusion matrix, which adds up over batches, devices and hosts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(labels: jax.Array, predictions: jax.Array, *, num_classes: int, ignore_label: int) -> jax.Array:
    """Counts pixels by truth (rows) and prediction (columns).

    Args:
      labels: integers of any shape, in [0, num_classes) or ``ignore_label``.
      predictions: integers of the same shape, in [0, num_classes).
      num_classes: side of the matrix.
      ignore_label: pixels with this label do not count.

    Returns:
      (num_classes, num_classes) int32.
    """
    cells = num_classes * num_classes
    index = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    index = jnp.where(labels == ignore_label, cells, index)  # beyond the matrix: dropped
    return jnp.bincount(index.ravel(), length=cells + 1)[:cells].reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class SegmentationMetrics:
    """Figures of a whole evaluation.

    Attributes:
      mean_iou: mean over the classes that occur in truth or prediction, as TensorFlow's ``mean_iou``.
      iou: per class, NaN where a class occurs in neither.
      pixel_accuracy: share of the counted pixels that are right.
      mean_class_accuracy: mean over the classes that occur in the truth.
      num_pixels: pixels counted.
    """

    mean_iou: float
    iou: np.ndarray
    pixel_accuracy: float
    mean_class_accuracy: float
    num_pixels: int

    @classmethod
    def from_confusion(cls, matrix: np.ndarray) -> SegmentationMetrics:
        """Computes all figures from a (C, C) matrix of counts, truth in rows; an empty one gives NaN."""
        matrix = np.asarray(matrix, np.float64)
        right, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = right / (truth + predicted - right)
            class_accuracy = right / truth
            pixel_accuracy = right.sum() / matrix.sum()
        return cls(
            mean_iou=_mean_of_defined(iou),
            iou=iou,
            pixel_accuracy=float(pixel_accuracy),
            mean_class_accuracy=_mean_of_defined(class_accuracy),
            num_pixels=int(matrix.sum()),
        )

    def to_dict(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Plain numbers for JSON; per-class IoU by name, None where it is not defined."""
        return {
            "mean_iou": _or_none(self.mean_iou),
            "pixel_accuracy": _or_none(self.pixel_accuracy),
            "mean_class_accuracy": _or_none(self.mean_class_accuracy),
            "num_pixels": self.num_pixels,
            "iou_per_class": [
                {"id": index, "label": label, "iou": _or_none(value)}
                for index, (label, value) in enumerate(zip(labels, self.iou, strict=True))
            ],
        }


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
