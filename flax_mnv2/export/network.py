"""An exported file in the place of a model and its variables, for predictions."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.export.running import ExportedModel
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models.outputs import (
    ImageClassifierOutputWithNoAttention,
    ObjectDetectionOutput,
    SemanticSegmenterOutput,
)

_LEAST = np.float32(1e-30)  # probability, so that its logarithm is finite


def as_output(task: str, outputs: Mapping[str, Any], spec: DetectionSpec) -> Any:
    """Returns what a model of a task would, for the outputs of its file by name; ``spec`` is that of a detector.

    Features of a backbone stay as they are.
    """
    if task == "backbone":
        return outputs
    if task == "detection":
        return ObjectDetectionOutput(**outputs, box_codes=None, spec=spec)
    return (SemanticSegmenterOutput if task == "segmentation" else ImageClassifierOutputWithNoAttention)(**outputs)


class ExportedNetwork:
    """Gives for normalised pixels what the model does, computed by the file's runtime.

    Attributes:
      config: of the model; ``image_size`` is the file's.
      task: of the model.
    """

    def __init__(self, path: str | pathlib.Path):
        """Opens a file of ``export``; errors as for ``ExportedModel``, and a ConfigError for one with nothing to tell.

        Label maps and detections after suppression are of the file's own size and threshold, so that no prediction
        follows from them.
        """
        self._model, self._path = ExportedModel(path), path
        metadata = self._model.metadata
        self.task, self.config = metadata.task, metadata.config
        if metadata.settings.postprocessing and self.task != "classification":
            raise ConfigError(
                f"{path} gives {', '.join(metadata.outputs)}, from which no prediction for a photo of another size "
                "follows. Export it without --with_postprocessing."
            )

    @property
    def spec(self) -> DetectionSpec:
        """Of a detector: maps, anchors and the rest."""
        return self.config.detection or DetectionSpec()

    def processor(self) -> MobileNetV2ImageProcessor:
        """Returns what prepares photos; a CheckpointError where the file does not say."""
        metadata = self._model.metadata
        if metadata.processor is None:
            raise CheckpointError(
                f"{self._path} does not say how images are prepared; export it with a processor (processor=)."
            )
        if self.task == "segmentation" and metadata.settings.size is not None:
            return dataclasses.replace(metadata.processor, do_resize=True)  # every photo to the file's size
        return metadata.processor

    def __call__(self, pixel_values: np.ndarray) -> Any:
        """Normalised pixels (N, H, W, C), float32 → the output of the model of this task, NumPy arrays."""
        metadata = self._model.metadata
        rule = metadata.settings.normalization
        outputs = self._model(np.asarray(pixel_values, np.float32) if rule is None else rule.undo(pixel_values))
        if "probabilities" in outputs:
            outputs = {"logits": self._logits(outputs["probabilities"])}
        return as_output(self.task, outputs, self.spec)

    def _logits(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns logits of which these are the probabilities."""
        logs = np.log(np.maximum(probabilities, _LEAST))
        if self.config.problem_type == "multi_label_classification":
            return logs - np.log(np.maximum(1 - probabilities, _LEAST))
        return logs
