"""``config.task`` → what belongs to that job: its data set and its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.datasets.load import (
    ClassificationDataset,
    SegmentationDataset,
    load_classification,
    load_segmentation,
)
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.tasks.classification import task as classification
from flax_mnv2.tasks.classification.task import ClassificationTask
from flax_mnv2.tasks.segmentation import task as segmentation
from flax_mnv2.tasks.segmentation.task import SegmentationTask
from flax_mnv2.weights.pretrained import load_processor
from flax_mnv2.weights.source import Source

Dataset = SegmentationDataset | ClassificationDataset
Task = SegmentationTask | ClassificationTask


def load_dataset(task: str, data: Mapping[str, Any]) -> Dataset:
    """The data set that ``config.data`` names, for ``config.task``."""
    return {"segmentation": load_segmentation, "classification": load_classification}[task](data)


def make_train_task(
    config: ml_collections.ConfigDict, labels: tuple[str, ...], *, axis_name: str | None = None
) -> Task:
    """The task of a training run.

    Args:
      config: the run's.
      labels: of the data set, by index.
      axis_name: the mapped axis under ``pmap``.
    """
    if config.task == "segmentation":
        return SegmentationTask(config, segmentation.make_model_config(config, labels), axis_name=axis_name)
    return ClassificationTask(
        config,
        classification.make_model_config(config, labels),
        processor=classification.make_processor(config.data),
        axis_name=axis_name,
    )


def make_eval_task(
    config: ml_collections.ConfigDict,
    model_config: MobileNetV2Config,
    dataset: Dataset,
    *,
    processor: MobileNetV2ImageProcessor | None = None,
) -> Task:
    """The task of an evaluation.

    Args:
      config: the run's.
      model_config: of the weights.
      dataset: what ``load_dataset`` gave.
      processor: what prepares images for the weights; None for weights of a training run, which ``config.data``
        describes, and for segmentation, where images keep their size.

    Raises:
      ConfigError: the classes of model and data do not match.
    """
    if config.task == "segmentation":
        segmentation.check_labels(model_config, dataset)
        return SegmentationTask(config, model_config)
    return ClassificationTask(
        config,
        model_config,
        processor=processor or classification.make_processor(config.data),
        label_offset=classification.label_offset(model_config, dataset),
    )


def processor_of(pretrained: str | Source, task: str) -> MobileNetV2ImageProcessor | None:
    """The processor that belongs to pretrained weights, where ``task`` needs one.

    Raises:
      CheckpointError: the weights of a classifier lack it.
    """
    return load_processor(pretrained) if task == "classification" else None
