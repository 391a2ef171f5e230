"""Regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flax_mnv2.losses import squared_errors
from flax_mnv2.tasks.regression.evaluator import RegressionEvaluator
from flax_mnv2.tasks.regression.predictor import RegressionPredictor
from flax_mnv2.tasks.vectors import config as shared_config
from flax_mnv2.tasks.vectors.task import VectorTask

if TYPE_CHECKING:
    import ml_collections

    from flax_mnv2.data.datasets.records import RegressionDataset

_USUAL = 0.05, 50.0  # standard deviations of targets that plain settings learn, and the largest mean


class RegressionTask(VectorTask):
    """A number for each target, in the units of the data; the loss is the mean squared error."""

    name = problem_type = "regression"
    best_metric = "r2"
    titles: Mapping[str, str] = {"r2": "R2", "mae": "MAE", "rmse": "RMSE"}
    dataset_kind = "RegressionDataset"
    losses = staticmethod(squared_errors)
    predictor = RegressionPredictor

    @classmethod
    def load_dataset(cls, data: Mapping[str, Any]) -> RegressionDataset:
        """Opens the data set; a note names targets of another order of magnitude than a network's outputs begin in."""
        from absl import logging

        dataset, split = super().load_dataset(data), data["train_split"]
        moments = dataset.mean.get(split, ()), dataset.std.get(split, ())
        for name, mean, std in zip(dataset.labels, *moments, strict=False):
            if abs(mean) > _USUAL[1] or not _USUAL[0] <= std <= _USUAL[1]:
                logging.warning(
                    "The target %s has mean %.4g and standard deviation %.4g in %s, and the loss is on numbers as they "
                    "are. Write it in another unit, or from another zero, so that it varies by about one around zero.",
                    *(name, mean, std, split),
                )
        return dataset

    @staticmethod
    def add_defaults(config: ml_collections.ConfigDict) -> None:
        """Adds the fields that only this job has, with their defaults and meanings."""
        shared_config.add_defaults(config, "image_table/regression")

    def evaluator(self, *, report: bool) -> RegressionEvaluator:
        """Returns what keeps every output of an evaluation."""
        del report
        return RegressionEvaluator(self.labels)

    def caption(self, truth: Any, target: np.ndarray) -> tuple[str, ...]:
        """Returns the targets of an example with their values; of a mixed one, the mixed values."""
        return tuple(f"{label} {value:.4g}" for label, value in zip(self.labels, target, strict=True))
