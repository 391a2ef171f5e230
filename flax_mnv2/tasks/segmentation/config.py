"""The part of a run's config that only segmentation has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flax_mnv2.config.checks import OUTPUT_STRIDES
from flax_mnv2.tasks import class_weights, rules
from flax_mnv2.tasks.rules import Rule
from flax_mnv2.tasks.segmentation import head

if TYPE_CHECKING:
    import ml_collections


def add_defaults(config: ml_collections.ConfigDict) -> None:
    """Adds the fields with their defaults and meanings."""
    config.focal_gamma = 0.0  # of the focal loss (arXiv 1708.02002); 0: cross-entropy
    data = config.data
    data.dataset = "voc_segmentation/2012"
    data.sbd_archive = ""  # Semantic Boundaries Dataset, for voc_segmentation/2012_aug
    data.ignore_label = 255  # value in masks of pixels that count nowhere
    data.class_weights = ""  # in the loss: balanced (by their pixels), or numbers with commas
    data.label_map = ""  # of voc_segmentation/custom: what values in masks mean, such as 0:0,255:1; as_is: classes
    data.reduce_labels = False  # of voc_segmentation/custom: 0 in masks has no class, and others count from 1
    data.crop_size = (513, 513)  # height, width
    data.min_scale = 0.5  # smallest random factor of an image before the crop
    data.max_scale = 2.0  # largest
    data.scale_step = 0.25  # 0: any scale between
    data.image_mean = (0.5, 0.5, 0.5)  # pixels are normalised by these fractions of 255; TF's and Hugging Face's
    data.image_std = (0.5, 0.5, 0.5)  # the same, divided by
    data.eval_size = (0, 0)  # images are padded to this; (0, 0): the largest image of the split

    config.eval.output_stride = 0  # 0: as in training
    config.eval.scales = (1.0,)  # several: softmax averaged over them, as in the DeepLab papers
    config.eval.flip = False  # average with the mirrored image
    config.eval.num_pictures = 8  # examples in predictions.png
    head.add_defaults(config)


def check_config(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> None:
    """Raises a ConfigError where fields contradict each other."""
    smallest = config.data.min_scale
    rule = (lambda value: smallest <= value < math.inf), f"at least data.min_scale = {smallest}"
    rules.check_field(fields, "data.max_scale", rule)
    spec = head.spec_of(config)
    for stride in {config.model.output_stride, config.eval.output_stride or config.model.output_stride}:
        spec.rates_at(stride)


def describe_augmentation(config: ml_collections.ConfigDict) -> str:
    """Returns the settings that change training images, in words."""
    data = config.data
    height, width = data.crop_size
    how = f"in steps of {data.scale_step:g}" if data.scale_step else "any between"
    scale = f"scale {data.min_scale:g} to {data.max_scale:g}, {how}"
    return " · ".join([scale, f"crop {height}×{width}", "flip" if data.flip else "no flip"])


RULES: Mapping[str, Rule] = {
    "focal_gamma": rules.at_least(0),
    "data.class_weights": class_weights.RULE,
    "data.crop_size": rules.pair_from(32),
    "data.min_scale": rules.POSITIVE,
    "data.scale_step": rules.at_least(0),
    "data.eval_size": rules.pair_from(0),
    "data.image_mean": rules.numbers(3, lambda value: 0 <= value <= 1, "from 0 to 1"),
    "data.image_std": rules.numbers(3, lambda value: 0 < value <= 1, "above 0, at most 1"),
    "eval.scales": (lambda value: bool(value) and all(scale > 0 for scale in value), "positive numbers"),
    "eval.num_pictures": rules.at_least(0),
    "eval.output_stride": rules.one_of(0, *OUTPUT_STRIDES),
}
