"""``config.task`` → what belongs to that job: its data set and its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.load import ClassificationDataset, SegmentationDataset, load_classification, load_segmentation
from flax_mnv2.errors import ConfigError
from flax_mnv2.pretrained import load_processor
from flax_mnv2.tasks.classification import ClassificationTask, label_offset
from flax_mnv2.tasks.segmentation import SegmentationTask, check_labels

Dataset = SegmentationDataset | ClassificationDataset
Task = SegmentationTask | ClassificationTask


def load_dataset(task: str, data: Mapping[str, Any]) -> Dataset:
    """The data set that ``config.data`` names, for ``config.task``."""
    return {"segmentation": load_segmentation, "classification": load_classification}[task](data)


def make_eval_task(
    config: ml_collections.ConfigDict,
    model_config: MobileNetV2Config,
    dataset: Dataset,
    *,
    pretrained: str = "",
) -> Task:
    """The task of an evaluation.

    Args:
      config: the run's.
      model_config: of the weights.
      dataset: what ``load_dataset`` gave.
      pretrained: folder or hub id of the weights; empty for those of a training run.

    Raises:
      ConfigError: the classes of model and data do not match, or a classifier comes from a training run.
      CheckpointError: ``pretrained`` lacks the preprocessing that belongs to the weights.
    """
    if config.task == "segmentation":
        check_labels(model_config, dataset)
        return SegmentationTask(config, model_config)
    if not pretrained:
        check_trains(config)
    processor = load_processor(pretrained)
    offset = label_offset(model_config, dataset)
    return ClassificationTask(config, model_config, processor=processor, label_offset=offset)


def check_trains(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError for a job that this version cannot train."""
    if config.task != "segmentation":
        raise ConfigError(
            f"This version trains segmentation and only evaluates {config.task}; found config.task="
            f"{config.task!r}. Use eval.py with --pretrained, or a recipe such as configs/seg_voc.py."
        )
