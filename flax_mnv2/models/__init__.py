"""Linen modules: arrays in, arrays out; no files and no logging."""

from flax_mnv2.models.fold import fold_batch_norm
from flax_mnv2.models.mobilenet_v2 import (
    MobileNetV2Backbone,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
)
from flax_mnv2.models.object_detection import MobileNetV2ForObjectDetection
from flax_mnv2.models.outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    ObjectDetectionOutput,
    SemanticSegmenterOutput,
)

__all__ = [
    "BaseModelOutputWithPoolingAndNoAttention",
    "ImageClassifierOutputWithNoAttention",
    "MobileNetV2Backbone",
    "MobileNetV2ForImageClassification",
    "MobileNetV2ForObjectDetection",
    "MobileNetV2ForSemanticSegmentation",
    "MobileNetV2Model",
    "ObjectDetectionOutput",
    "SemanticSegmenterOutput",
    "fold_batch_norm",
]
