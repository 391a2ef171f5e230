"""Photos → the classes that are there."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models import MobileNetV2ForImageClassification
from flax_mnv2.tasks.classification.predictor import ClassificationPredictor, ClassProbability


class MultiLabelPredictor(ClassificationPredictor):
    """Gives each class a probability of its own; those from ``threshold`` on are there, however many."""

    task = problem_type = "multi_label_classification"
    activation = staticmethod(jax.nn.sigmoid)

    def __init__(
        self,
        model: MobileNetV2ForImageClassification,
        variables: Mapping[str, Any],
        processor: MobileNetV2ImageProcessor,
        *,
        top: int = 5,
        threshold: float = 0.5,
    ):
        super().__init__(model, variables, processor, top=model.config.num_labels)
        self._listed, self._threshold = top, threshold

    def record(self, prediction: Sequence[ClassProbability], files: Mapping[str, pathlib.Path]) -> dict[str, Any]:
        """Returns ``labels``, the names of the classes that are there, the ``threshold``, and ``predictions``.

        These are as of a classifier: the ``top`` likeliest classes, and all that are there.
        """
        present = [item.label for item in prediction if item.probability >= self._threshold]
        listed = prediction[: max(self._listed, len(present))]
        return {"labels": present, "threshold": self._threshold, **super().record(listed, files)}

    def format_record(self, record: Mapping[str, Any]) -> list[str]:
        """Returns a line per class that is there, or one that says which class is the likeliest."""
        lines = super().format_record(record)
        there = len(record["labels"])
        return lines[:there] or [f"no class from {record['threshold']:g} on; the likeliest: {lines[0]}"]
