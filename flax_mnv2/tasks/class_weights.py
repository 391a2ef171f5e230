"""How much each class counts in the loss: as given, or balanced by how often it occurs in the training split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks.rules import Rule

if TYPE_CHECKING:
    import ml_collections

    from flax_mnv2.data.datasets.records import Dataset

BALANCED = "balanced"


def _holds(value: str) -> bool:
    return value in ("", BALANCED) or all(0 <= weight < np.inf for weight in map(_number, value.split(",")))


RULE: Rule = _holds, f"numbers of at least 0 with commas, one for each class, or {BALANCED!r}"


def filled_in(config: ml_collections.ConfigDict, dataset: Dataset) -> ml_collections.ConfigDict:
    """Returns the config of a run with numbers in place of ``balanced``, from the labels of the training split."""
    if config.data.class_weights != BALANCED:
        return config
    weights = balanced(dataset.class_counts(config.data.train_split))
    config = config.copy_and_resolve_references()
    config.data.class_weights = ",".join(f"{weight:.6g}" for weight in weights)
    return config


def balanced(counts: Sequence[int]) -> np.ndarray:
    """Returns weights (C,) inversely proportional to counts (C,), so that each class that occurs weighs as much.

    As scikit-learn's ``class_weight="balanced"``: all examples over the number of classes times those of the class; a
    class that does not occur has 0.
    """
    counts = np.asarray(counts, np.float64)
    occurs = counts > 0
    return np.where(occurs, counts.sum() / (occurs.sum() * np.maximum(counts, 1)), 0.0)


def parse(config: ml_collections.ConfigDict, labels: Sequence[str]) -> np.ndarray | None:
    """Returns the weights of the classes (C,) float32, or None where all count alike.

    ``balanced``, where no data was looked at, is taken for 1 each.
    """
    text = config.data.class_weights
    if not text:
        return None
    if text == BALANCED:
        return np.ones(len(labels), np.float32)
    weights = np.array([_number(part) for part in text.split(",")], np.float32)
    if len(weights) != len(labels):
        raise ConfigError(
            f"config.data.class_weights has {len(weights)} numbers and the data {len(labels)} classes "
            f"({', '.join(labels[:5])}{', …' if len(labels) > 5 else ''}). Give one for each, in their order."
        )
    if not weights.any():
        raise ConfigError("config.data.class_weights are all 0; nothing would be learned. Give one class more.")
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
