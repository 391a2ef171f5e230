"""Linen modules: arrays in, arrays out; no files and no logging."""

from flax_mnv2.models.mobilenet_v2 import (
    BackboneOutput,
    HeadOutput,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
)

__all__ = [
    "BackboneOutput",
    "HeadOutput",
    "MobileNetV2ForImageClassification",
    "MobileNetV2ForSemanticSegmentation",
    "MobileNetV2Model",
]
