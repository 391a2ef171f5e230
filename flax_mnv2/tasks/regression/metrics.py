"""Metrics of a whole evaluation of a regression."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class RegressionMetrics:
    """By target (C,), in its units; ``r2`` is the part of the variance that is explained, NaN where there is none."""

    mae: np.ndarray  # mean absolute error
    rmse: np.ndarray  # root of the mean squared error
    r2: np.ndarray
    num_examples: int

    @classmethod
    def of(cls, truth: np.ndarray, predicted: np.ndarray) -> RegressionMetrics:
        """Computes all from (N, C), in float64."""
        truth, errors = truth.astype(np.float64), predicted.astype(np.float64) - truth
        spread = np.square(truth - truth.mean(0)).sum(0)
        varies = np.ptp(truth, axis=0) > 0
        return cls(
            mae=np.abs(errors).mean(0),
            rmse=np.sqrt(np.square(errors).mean(0)),
            r2=np.where(varies, 1 - np.square(errors).sum(0) / np.where(varies, spread, 1.0), np.nan),
            num_examples=len(truth),
        )

    def summary(self) -> dict[str, float]:
        """Returns the means over targets; of R² over those that vary, NaN where none does."""
        varying = self.r2[~np.isnan(self.r2)]
        return {
            "r2": float(varying.mean()) if varying.size else float("nan"),
            "mae": float(self.mae.mean()),
            "rmse": float(self.rmse.mean()),
        }
