"""An evaluation of a multi-label classifier: average precision, F1, precision and recall, a line per image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flax_mnv2.tasks.judgement import Judgement
from flax_mnv2.tasks.multi_label.metrics import MultiLabelMetrics
from flax_mnv2.tasks.vectors.evaluator import VectorEvaluator, format_columns, or_none, rounded

ERROR_WORDS = "mean distance of the probabilities from 0 or 1, whichever is true"
_SHOWN = 12  # classes without a positive, by name


class MultiLabelEvaluator(VectorEvaluator):
    """Ranks by logits, of which large ones still differ where their probabilities are all 1."""

    def __init__(self, labels: Sequence[str], *, threshold: float):
        """A class is predicted where its probability is at least ``threshold``."""
        super().__init__(labels)
        self._threshold = threshold

    @functools.cached_property
    def _metrics(self) -> MultiLabelMetrics:
        rows = self.examples()
        predicted = probability(rows["output"]) >= self._threshold
        return MultiLabelMetrics.of(rows["label"] > 0.5, rows["output"], predicted)

    def metrics(self) -> dict[str, float]:
        """Returns the mean average precision, micro and macro F1."""
        summary = self._metrics.summary()
        return {name: summary[name] for name in ("mean_average_precision", "micro_f1", "macro_f1")}

    def to_dict(self, *, per_class: bool) -> dict[str, Any]:
        """Returns all averages, and the classes without a positive; with ``per_class`` a row for each class."""
        computed = self._metrics
        values: dict[str, Any] = {name: or_none(value) for name, value in computed.summary().items()}
        values |= {"threshold": self._threshold, "without_positives": self._absent()}
        if per_class:
            values["per_class"] = [
                {
                    "id": index,
                    "label": label,
                    "num_positives": int(computed.positives[index]),
                    "num_predicted": int(computed.predicted[index]),
                    "average_precision": or_none(computed.average_precision[index]),
                    "precision": float(computed.precision[index]),
                    "recall": float(computed.recall[index]),
                    "f1": float(computed.f1[index]),
                }
                for index, label in enumerate(self._labels)
            ]
        return values

    def format_table(self, *, per_class: bool) -> str:
        """Returns an aligned table; ``per_class`` puts a row for each class above."""
        computed, summary = self._metrics, self._metrics.summary()
        columns = {
            "AP": computed.average_precision,
            "precision": computed.precision,
            "recall": computed.recall,
            "F1": computed.f1,
            "images": computed.positives,
        }
        lines = format_columns("class", self._labels, columns) if per_class else []
        lines.append(f"mean average precision  {summary['mean_average_precision']:.4f}")
        for kind in ("micro", "macro"):
            parts = [f"{name} {summary[f'{kind}_{name}']:.4f}" for name in ("f1", "precision", "recall")]
            lines.append(f"{kind}                   {', '.join(parts).replace('f1', 'F1')} at {self._threshold:g}")
        absent = self._absent()
        if absent:
            more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
            lines.append(
                f"{len(absent)} of {len(self._labels)} classes have no image here and are in no mean: "
                f"{', '.join(absent[:_SHOWN])}{more}"
            )
        return "\n".join(lines)

    def row(self, label: np.ndarray, output: np.ndarray) -> dict[str, Any]:
        """Returns ``labels``, ``predicted`` ones, and the ``probability`` of each class by name."""
        likely = probability(output)
        return {
            "labels": [self._labels[at] for at in np.flatnonzero(label > 0.5)],
            "predicted": [self._labels[at] for at in np.flatnonzero(likely >= self._threshold)],
            "probability": dict(zip(self._labels, map(rounded, likely), strict=True)),
        }

    def _absent(self) -> list[str]:
        return [self._labels[at] for at in np.flatnonzero(~self._metrics.occurs)]


def probability(logits: np.ndarray) -> np.ndarray:
    """Returns the sigmoid, float64."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))


def judged(rows: Sequence[Mapping[str, Any]]) -> list[Judgement]:
    """Returns how right each row of ``predictions.jsonl`` is; the error is what ``ERROR_WORDS`` says."""
    found = []
    for row in rows:
        true = set(row["labels"])
        distances = [abs((name in true) - value) for name, value in row["probability"].items()]
        truth, said = (", ".join(row[key]) or "none of the classes" for key in ("labels", "predicted"))
        found.append(Judgement(row["file_name"], truth, said, float(np.mean(distances))))
    return found
