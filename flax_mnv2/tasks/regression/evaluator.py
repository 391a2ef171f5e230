"""An evaluation of a regression: R², mean absolute and root mean squared error, a line per image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flax_mnv2.tasks.judgement import Judgement
from flax_mnv2.tasks.regression.metrics import RegressionMetrics
from flax_mnv2.tasks.vectors.evaluator import VectorEvaluator, format_columns, or_none, rounded

ERROR_WORDS = "distance from the truth in standard deviations of the target, mean over targets"


class RegressionEvaluator(VectorEvaluator):
    """Compares outputs and labels target by target."""

    @functools.cached_property
    def _metrics(self) -> RegressionMetrics:
        rows = self.examples()
        return RegressionMetrics.of(rows["label"], rows["output"])

    def metrics(self) -> dict[str, float]:
        """Returns R², MAE and RMSE, means over targets."""
        return self._metrics.summary()

    def to_dict(self, *, per_class: bool) -> dict[str, Any]:
        """Returns the means, and a row for each target, which there always is."""
        del per_class
        computed = self._metrics
        columns = {"r2": computed.r2, "mae": computed.mae, "rmse": computed.rmse}
        return {
            **{name: or_none(value) for name, value in computed.summary().items()},
            "per_target": [
                {"id": at, "label": label, **{name: or_none(values[at]) for name, values in columns.items()}}
                for at, label in enumerate(self._labels)
            ],
        }

    def format_table(self, *, per_class: bool) -> str:
        """Returns an aligned table of all targets, and means where there are several."""
        del per_class
        computed = self._metrics
        lines = format_columns("target", self._labels, {"R2": computed.r2, "MAE": computed.mae, "RMSE": computed.rmse})
        if len(self._labels) > 1:
            lines += [f"mean {title}  {value:.4f}" for title, value in self._titled(computed.summary())]
        constant = [label for label, value in zip(self._labels, computed.r2, strict=True) if np.isnan(value)]
        if constant:
            lines.append(f"always the same here, so without R2: {', '.join(constant)}")
        return "\n".join(lines)

    def row(self, label: np.ndarray, output: np.ndarray) -> dict[str, Any]:
        """Returns ``values`` and ``predicted`` ones by target."""
        named = {"values": label, "predicted": output}
        return {name: dict(zip(self._labels, map(rounded, values), strict=True)) for name, values in named.items()}

    @staticmethod
    def _titled(summary: dict[str, float]) -> list[tuple[str, float]]:
        return [("R2", summary["r2"]), ("MAE", summary["mae"]), ("RMSE", summary["rmse"])]


def judged(rows: Sequence[Mapping[str, Any]]) -> list[Judgement]:
    """Returns how right each row of ``predictions.jsonl`` is; the error is what ``ERROR_WORDS`` says."""
    if not rows:
        return []
    names = list(rows[0]["values"])
    true, said = (np.array([[row[key][name] for name in names] for row in rows]) for key in ("values", "predicted"))
    deviation = true.std(axis=0)
    errors = (np.abs(said - true) / np.where(deviation > 0, deviation, 1.0)).mean(axis=1)
    return [
        Judgement(row["file_name"], _named(row["values"]), _named(row["predicted"]), float(error))
        for row, error in zip(rows, errors, strict=True)
    ]


def _named(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
