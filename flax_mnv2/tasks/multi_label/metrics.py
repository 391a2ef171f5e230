"""Metrics of a whole evaluation of a multi-label classifier."""

from __future__ import annotations

import dataclasses

import numpy as np


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Returns the area under the steps of precision over recall; NaN without a positive.

    ``truth`` is (N,) bool, ``scores`` (N,), more is likelier. As scikit-learn's ``average_precision_score``: the sum of
    precision times the gain in recall over all thresholds, equal scores being one.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order], dtype=np.int64)
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]), 1.0))
    hits = hits[last_of_ties]
    if not hits.size or not hits[-1]:
        return float("nan")
    precision = hits / (last_of_ties + 1)
    return float(np.sum(precision * np.diff(hits, prepend=0)) / hits[-1])


@dataclasses.dataclass(frozen=True)
class MultiLabelMetrics:
    """By class (C,): average precision (NaN without a positive), and counts at the threshold; means of them."""

    average_precision: np.ndarray
    positives: np.ndarray  # images that have the class
    predicted: np.ndarray  # images for which it is predicted
    hits: np.ndarray  # images for which both hold
    num_examples: int

    @classmethod
    def of(cls, truth: np.ndarray, scores: np.ndarray, predicted: np.ndarray) -> MultiLabelMetrics:
        """Computes all from (N, C): truth and prediction bool, scores of which only the order counts."""
        columns = range(truth.shape[1])
        return cls(
            average_precision=np.array([average_precision(truth[:, at], scores[:, at]) for at in columns]),
            positives=truth.sum(0),
            predicted=predicted.sum(0),
            hits=(truth & predicted).sum(0),
            num_examples=len(truth),
        )

    @property
    def occurs(self) -> np.ndarray:
        """Which classes (C,) have a positive; the means by class are over these."""
        return self.positives > 0

    @property
    def precision(self) -> np.ndarray:
        """By class (C,); 0 where it is never predicted, as in scikit-learn."""
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """By class (C,); 0 where it never occurs."""
        return _ratio(self.hits, self.positives)

    @property
    def f1(self) -> np.ndarray:
        """By class (C,); 0 where it is neither there nor predicted."""
        return _ratio(2 * self.hits, self.predicted + self.positives)

    def summary(self) -> dict[str, float]:
        """Returns mAP, and micro (over all cells) and macro (mean over classes that occur) averages; NaN for none."""
        hits, predicted, positives = (int(each.sum()) for each in (self.hits, self.predicted, self.positives))
        by_class = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {
            "mean_average_precision": _mean(self.average_precision[self.occurs]),
            "micro_f1": float(_ratio(2 * hits, predicted + positives)),
            "macro_f1": _mean(by_class["f1"][self.occurs]),
            "micro_precision": float(_ratio(hits, predicted)),
            "micro_recall": float(_ratio(hits, positives)),
            "macro_precision": _mean(by_class["precision"][self.occurs]),
            "macro_recall": _mean(by_class["recall"][self.occurs]),
        }


def _ratio(part: np.ndarray | int, whole: np.ndarray | int) -> np.ndarray:
    return np.asarray(part) / np.maximum(whole, 1)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
