"""Multi-label classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from flax_mnv2.losses import binary_cross_entropies
from flax_mnv2.tasks.multi_label.evaluator import ERROR_WORDS, MultiLabelEvaluator, judged
from flax_mnv2.tasks.multi_label.predictor import MultiLabelPredictor
from flax_mnv2.tasks.rules import FRACTION, Rule
from flax_mnv2.tasks.vectors import config as shared_config
from flax_mnv2.tasks.vectors.task import VectorTask
from flax_mnv2.visualize.legend import percent

if TYPE_CHECKING:
    import ml_collections


class MultiLabelTask(VectorTask):
    """A sigmoid for each class; the loss is the mean binary cross-entropy."""

    name = problem_type = "multi_label_classification"
    best_metric = "mean_average_precision"
    titles: Mapping[str, str] = {
        "mean_average_precision": "mAP",
        "micro_f1": "micro F1",
        "macro_f1": "macro F1",
    }
    rules: Mapping[str, Rule] = {**VectorTask.rules, "eval.threshold": FRACTION}
    dataset_kind = "MultiLabelDataset"
    predictor = MultiLabelPredictor
    judged, error_words = staticmethod(judged), ERROR_WORDS

    @staticmethod
    def add_defaults(config: ml_collections.ConfigDict) -> None:
        """Adds the fields that only this job has, with their defaults and meanings."""
        shared_config.add_defaults(config, "image_table/multi_label")
        config.eval.threshold = 0.5  # a class is predicted from this probability on; mAP does not depend on it

    def losses(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the binary cross-entropy of every class, (N, C) float32."""
        return binary_cross_entropies(logits, targets)

    def evaluator(self, *, report: bool) -> MultiLabelEvaluator:
        """Returns what keeps every output of an evaluation."""
        del report
        return MultiLabelEvaluator(self.labels, threshold=self.config.eval.threshold)

    def caption(self, truth: Any, target: np.ndarray) -> tuple[str, ...]:
        """Returns the classes of an example; of a mixed one with what is left of each."""
        present = [(self.labels[at], target[at]) for at in np.flatnonzero(target)]
        lines = (label if fraction == 1 else f"{percent(fraction)} {label}" for label, fraction in present)
        return tuple(lines) or ("none of the classes",)
