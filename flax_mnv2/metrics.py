"""Metrics from counts, which add up over batches, devices and hosts: confusion matrix, hits among the top five."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(labels: jax.Array, predictions: jax.Array, *, num_classes: int, ignore_label: int) -> jax.Array:
    """Counts pixels by truth (rows) and prediction (columns): (num_classes, num_classes) int32.

    Labels and predictions are integers of one shape in [0, num_classes); pixels labelled ``ignore_label`` do not count.
    """
    cells = num_classes * num_classes
    index = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    index = jnp.where(labels == ignore_label, cells, index)  # beyond the matrix: dropped
    return jnp.bincount(index.ravel(), length=cells + 1)[:cells].reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class SegmentationMetrics:
    """Metrics of a whole evaluation."""

    mean_iou: float  # over the classes that occur in truth or prediction, as TensorFlow's mean_iou
    iou: np.ndarray  # per class, NaN where a class occurs in neither
    pixel_accuracy: float  # fraction of the counted pixels that are right
    mean_class_accuracy: float  # over the classes that occur in the truth
    num_pixels: int  # that count
    class_pixels: np.ndarray  # (C,) by true class
    class_predicted: np.ndarray  # (C,) by predicted class
    class_right: np.ndarray  # (C,) both

    @classmethod
    def from_confusion(cls, matrix: np.ndarray) -> SegmentationMetrics:
        """Computes all metrics from a (C, C) matrix of counts, truth in rows; an empty one gives NaN."""
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
            class_pixels=truth,
            class_predicted=predicted,
            class_right=right,
        )

    def to_dict(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Returns plain numbers for JSON; those of a class, by pixels, are None where they are not defined."""
        columns = (self.class_right, self.class_pixels, self.class_predicted)
        classes = zip(labels, self.iou, *(column.tolist() for column in columns), strict=True)
        return {
            "mean_iou": _or_none(self.mean_iou),
            "pixel_accuracy": _or_none(self.pixel_accuracy),
            "mean_class_accuracy": _or_none(self.mean_class_accuracy),
            "num_pixels": self.num_pixels,
            "iou_per_class": [
                {"id": index, "label": label, "iou": _or_none(iou), **precision_and_recall(right, truth, predicted)}
                for index, (label, iou, right, truth, predicted) in enumerate(classes)
            ],
        }


def top_k_counts(labels: jax.Array, top: jax.Array, mask: jax.Array, *, num_classes: int) -> dict[str, jax.Array]:
    """Counts ``examples``, ``top1`` and ``top5`` (among all k columns) by true class, each (num_classes,) int32.

    ``predicted`` counts by the class that is predicted. ``labels`` (N,) are in [0, num_classes), ``top`` (N, k) the
    predicted classes, the most probable first; examples where ``mask`` (N,) is False do not count.
    """
    hits = top == labels[:, None]

    def count(rows: jax.Array, classes: jax.Array) -> jax.Array:
        return jnp.bincount(jnp.where(rows, classes, num_classes), length=num_classes + 1)[:num_classes]

    return {
        "examples": count(mask, labels),
        "predicted": count(mask, top[:, 0]),
        "top1": count(mask & hits[:, 0], labels),
        "top5": count(mask & hits.any(axis=1), labels),
    }


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics:
    """Metrics of a whole evaluation of a classifier; fractions are NaN where there are no examples."""

    top1: float  # fraction of the examples whose most probable class is right
    top5: float  # fraction of those whose class is among the five most probable
    num_examples: int
    class_examples: np.ndarray  # (C,) by true class
    class_predicted: np.ndarray  # (C,) by predicted class
    class_top1: np.ndarray  # (C,) of these, how many have the right class first
    class_top5: np.ndarray  # (C,) of these, how many have it among the first five

    @classmethod
    def from_counts(cls, counts: Mapping[str, np.ndarray]) -> ClassificationMetrics:
        """Computes all metrics from the summed counts of ``top_k_counts``."""
        names = ("examples", "predicted", "top1", "top5")
        examples, predicted, top1, top5 = (np.asarray(counts[name], np.int64) for name in names)
        total = int(examples.sum())
        fractions = [int(hits.sum()) / total if total else float("nan") for hits in (top1, top5)]
        return cls(*fractions, total, examples, predicted, top1, top5)

    def to_dict(self, labels: tuple[str, ...], *, per_class: bool = False) -> dict[str, Any]:
        """Returns plain numbers for JSON; ``per_class`` adds a row for every class that occurs or is predicted.

        A row's precision, recall and F1 score are of the most probable class, None where they are not defined.
        """
        metrics = {
            "top1": _or_none(self.top1),
            "top5": _or_none(self.top5),
            "num_top1": int(self.class_top1.sum()),
            "num_top5": int(self.class_top5.sum()),
        }
        if per_class:
            columns = (self.class_examples, self.class_predicted, self.class_top1, self.class_top5)
            counts = zip(labels, *(column.tolist() for column in columns), strict=True)
            metrics["per_class"] = [
                {
                    "id": index,
                    "label": label,
                    "num_examples": number,
                    "num_predicted": predicted,
                    **precision_and_recall(right, number, predicted),
                    "top5": _fraction(among_five, number),
                }
                for index, (label, number, predicted, right, among_five) in enumerate(counts)
                if number or predicted
            ]
        return metrics


def precision_and_recall(right: int, truth: int, predicted: int) -> dict[str, float | None]:
    """Returns ``precision``, ``recall`` and ``f1`` of a class, None where one is not defined.

    ``right`` of what is truly of the class, ``truth``, and of what is taken for it, ``predicted``, are both.
    """
    return {
        "precision": _fraction(right, predicted),
        "recall": _fraction(right, truth),
        "f1": _fraction(2 * right, truth + predicted),
    }


def _fraction(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
