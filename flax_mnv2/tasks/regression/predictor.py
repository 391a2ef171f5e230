"""Photos → numbers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flax_mnv2.tasks.classification.predictor import ClassificationPredictor
from flax_mnv2.tasks.prediction import Example


class RegressionPredictor(ClassificationPredictor):
    """Gives the value of every target, in the units that the model was trained in."""

    task = problem_type = "regression"

    @staticmethod
    def activation(logits: jax.Array) -> jax.Array:
        """Returns the numbers as they are."""
        return logits

    def finish(self, example: Example, answer: np.ndarray) -> dict[str, float]:
        """Returns the values (C,) by the name of the target."""
        del example
        return {self._labels[index]: float(value) for index, value in enumerate(answer)}

    def record(self, prediction: Mapping[str, float], files: Mapping[str, pathlib.Path]) -> dict[str, Any]:
        """Returns ``values`` by name."""
        del files
        return {"values": dict(prediction)}

    def format_record(self, record: Mapping[str, Any]) -> list[str]:
        """Returns a line per target."""
        return [f"{value:.6g}  {name}" for name, value in record["values"].items()]
