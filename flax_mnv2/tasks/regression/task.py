"""Regression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.losses import squared_errors
from flax_mnv2.tasks.classification import config as classifier_config
from flax_mnv2.tasks.regression.evaluator import ERROR_WORDS, RegressionEvaluator, judged
from flax_mnv2.tasks.regression.predictor import RegressionPredictor
from flax_mnv2.tasks.rules import Rule
from flax_mnv2.tasks.vectors import config as shared_config
from flax_mnv2.tasks.vectors.task import VectorTask
from flax_mnv2.weights.target_units import noted, target_units

if TYPE_CHECKING:
    import ml_collections

    from flax_mnv2.data.datasets.records import RegressionDataset

STANDARDIZED = "standardized"


def _holds(value: str) -> bool:
    return value in ("", STANDARDIZED) or len(_numbers(value)) % 2 == 0


class RegressionTask(VectorTask):
    """A number for each target, in the units of the data; the loss is the mean squared error.

    It is of targets less their mean, by their standard deviation, where ``config.data.target_units`` says so: what is
    trained are then ``logits`` of that kind, and everything reported is in the units of the data.
    """

    name = problem_type = "regression"
    best_metric = "r2"
    titles: Mapping[str, str] = {"r2": "R2", "mae": "MAE", "rmse": "RMSE"}
    rules: Mapping[str, Rule] = {
        **VectorTask.rules,
        "data.target_units": (
            _holds,
            f"'', {STANDARDIZED!r}, or mean and standard deviation of each target, with commas",
        ),
    }
    dataset_kind = "RegressionDataset"
    predictor = RegressionPredictor
    judged, error_words = staticmethod(judged), ERROR_WORDS

    def __init__(self, config: ml_collections.ConfigDict, model_config: MobileNetV2Config, **kwargs: Any):
        """As of a classifier; ``model_config`` notes the units of the targets."""
        super().__init__(config, model_config, **kwargs)
        self._mean, self._std = (values[None] for values in target_units(model_config))

    @staticmethod
    def add_defaults(config: ml_collections.ConfigDict) -> None:
        """Adds the fields that only this job has, with their defaults and meanings."""
        shared_config.add_defaults(config, "image_table/regression")
        # What the loss sees: standardized, by mean and standard deviation of the training split, or by given ones with
        # commas, mean,std,mean,std,…; empty: the numbers as they are, as in Hugging Face's.
        config.data.target_units = STANDARDIZED

    @staticmethod
    def check_config(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> None:
        """Raises a ConfigError where fields contradict each other."""
        classifier_config.check_config(config, fields)
        if config.init_from and config.init_scope == "all" and config.data.target_units:
            raise ConfigError(
                "config.init_scope='all' takes a last layer that gives targets as they are, and "
                "config.data.target_units would have it learn others. Set --config.data.target_units='', or take the "
                "backbone."
            )

    @classmethod
    def filled_in(cls, config: ml_collections.ConfigDict, dataset: RegressionDataset) -> ml_collections.ConfigDict:
        """Returns the config with numbers in place of ``standardized``, of the training split."""
        if config.data.target_units != STANDARDIZED:
            return config
        moments = (dataset.mean[config.data.train_split], dataset.std[config.data.train_split])
        config = config.copy_and_resolve_references()
        numbers = [f"{mean:.9g},{std or 1.0:.9g}" for mean, std in zip(*moments, strict=True)]
        config.data.target_units = ",".join(numbers)
        return config

    @classmethod
    def extra(cls, config: ml_collections.ConfigDict, num_targets: int) -> dict[str, Any]:
        """Returns the units of the targets as the model's config notes them; nothing where no data was looked at."""
        text = config.data.target_units
        if text in ("", STANDARDIZED):
            return {}
        numbers = _numbers(text)
        mean, std = numbers[::2], numbers[1::2]
        if len(mean) != num_targets or not min(std) > 0:
            raise ConfigError(
                f"config.data.target_units must be a mean and a standard deviation above 0 for each of {num_targets} "
                f"targets; found {text!r}."
            )
        return noted(mean, std)

    def losses(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the squared error of every target, (N, C) float32."""
        return squared_errors(logits, (targets - self._mean) / self._std)

    def outputs(self, logits: jax.Array) -> jax.Array:
        """Returns the targets (N, C) float32 in the units of the data."""
        return logits.astype(jnp.float32) * self._std + self._mean

    def evaluator(self, *, report: bool) -> RegressionEvaluator:
        """Returns what keeps every output of an evaluation."""
        del report
        return RegressionEvaluator(self.labels)

    def caption(self, truth: Any, target: np.ndarray) -> tuple[str, ...]:
        """Returns the targets of an example with their values; of a mixed one, the mixed values."""
        return tuple(f"{label} {value:.4g}" for label, value in zip(self.labels, target, strict=True))


def _numbers(text: str) -> list[float]:
    """Returns numbers with commas between them; one of them where it is something else, which is no pair."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return [math.nan]
