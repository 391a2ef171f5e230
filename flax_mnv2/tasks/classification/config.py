"""The part of a run's config that only classification has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks import class_weights, rules
from flax_mnv2.tasks.rules import Rule

if TYPE_CHECKING:
    import ml_collections


def add_defaults(config: ml_collections.ConfigDict) -> None:
    """Adds the fields with their defaults and meanings."""
    config.label_smoothing = 0.0  # fraction of a label that all classes share
    config.focal_gamma = 0.0  # of the focal loss (arXiv 1708.02002); 0: cross-entropy
    config.data.dataset = "imagenet2012"
    config.data.class_weights = ""  # in the loss: balanced (by their examples), or numbers with commas
    add_image_defaults(config.data)


def add_image_defaults(data: ml_collections.ConfigDict) -> None:
    """Adds what is done to images in training and evaluation, which multi-label and regression share."""
    data.holdout = 0.1  # of your own data: fraction of the training images kept as val where there is no such split
    data.image_mean = (0.5, 0.5, 0.5)  # pixels are normalised by these fractions of 255; TF's and Hugging Face's
    data.image_std = (0.5, 0.5, 0.5)  # the same, divided by
    data.train_size = 224  # side that images are trained at
    data.train_crop = (
        "inception"  # a random area and aspect; or pad: resize, pad, crop anywhere; or whole: all, squashed
    )
    data.crop_area = (0.08, 1.0)  # of inception: smallest and largest fraction of the image
    data.crop_aspect = (3 / 4, 4 / 3)  # of inception: width / height
    data.crop_padding = 0  # of pad: black pixels on each side of the resized image
    data.color_jitter = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue, as in torchvision
    data.auto_augment = ""  # trivial_augment_wide, randaugment (torchvision's) or timm_randaugment
    data.randaugment_ops = 2  # operations on an image, of both RandAugments
    data.randaugment_magnitude = 9.0  # of 30, torchvision's, or of 10, timm's
    data.randaugment_magnitude_std = 0.5  # of timm_randaugment
    data.random_erasing = 0.0  # probability
    data.random_erasing_fill = "constant"  # the mean colour, or pixel: noise
    data.mixup_alpha = 0.0  # 0: no MixUp
    data.cutmix_alpha = 0.0  # 0: no CutMix; with both, each batch takes one of them
    data.augment_repeats = 1  # times that a batch holds each of its images, augmented anew (arXiv 1901.09335)
    data.eval_preparation = "processor"  # as below, or as the weights' processor says; or slim: TF-slim's crop
    # or whole: all of the image, squashed to a square of eval_crop; the weights' processor goes before it too
    data.eval_resize = 256  # shorter side
    data.eval_crop = 224  # side that images are evaluated at
    data.eval_interpolation = "bilinear"  # or bicubic


def check_config(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> None:
    """Raises a ConfigError where fields contradict each other."""
    data = config.data
    rules.check_field(fields, "data.randaugment_magnitude", _magnitude(data.auto_augment))
    fits = (lambda value: value <= data.eval_resize), f"at most data.eval_resize = {data.eval_resize}"
    rules.check_field(fields, "data.eval_crop", fits)
    if data.crop_padding and data.train_crop != "pad":
        raise ConfigError(f"config.data.crop_padding is for config.data.train_crop='pad'; found {data.train_crop!r}.")
    divides = (lambda value: config.batch_size % value == 0), f"a divisor of batch_size = {config.batch_size}"
    rules.check_field(fields, "data.augment_repeats", divides)


def describe_augmentation(config: ml_collections.ConfigDict) -> str:
    """Returns the settings that change training images, in words."""
    data = config.data
    flip = "flip" if data.flip else "no flip"
    if data.train_crop == "pad":
        parts = [f"pad {data.crop_padding} and crop", flip]
    elif data.train_crop == "whole":
        parts = ["whole image", flip]
    else:
        area, aspect = (f"{low:.3g} to {high:.3g}" for low, high in (data.crop_area, data.crop_aspect))
        parts = [f"Inception crop of area {area}, aspect {aspect}", flip]
    if any(data.color_jitter):
        names = ("brightness", "contrast", "saturation", "hue")
        parts.append("jitter of " + ", ".join(f"{n} {v:.3g}" for n, v in zip(names, data.color_jitter, strict=True)))
    if data.auto_augment == "trivial_augment_wide":
        parts.append("TrivialAugmentWide")
    elif data.auto_augment:
        deviation = f" ± {data.randaugment_magnitude_std:g}" if data.auto_augment == "timm_randaugment" else ""
        name = "timm's RandAugment" if deviation else "RandAugment"
        parts.append(f"{name}: {data.randaugment_ops} ops of magnitude {data.randaugment_magnitude:g}{deviation}")
    if data.random_erasing:
        fill = {"constant": "the mean colour", "pixel": "noise"}[data.random_erasing_fill]
        parts.append(f"erasing {data.random_erasing:g} with {fill}")
    mixing = [
        f"{name} {alpha:g}" for name, alpha in (("MixUp", data.mixup_alpha), ("CutMix", data.cutmix_alpha)) if alpha
    ]
    if mixing:
        parts.append(" or ".join(mixing) + ", one of them a batch" * (len(mixing) == 2))
    if data.augment_repeats > 1:
        parts.append(f"{data.augment_repeats} versions of an image in a batch")
    if config.get("label_smoothing"):
        parts.append(f"label smoothing {config.label_smoothing:g} (not in the percentages)")
    return " · ".join(parts)


def _magnitude(policy: str) -> Rule:
    high = 10 if policy == "timm_randaugment" else 30
    whole = policy == "randaugment"
    words = f"{'a whole number ' if whole else ''}from 0 to {high}{f' for {policy}' if policy else ''}"
    return (lambda value: 0 <= value <= high and (not whole or value == round(value))), words


def _is_color_jitter(value: Any) -> bool:
    return len(value) == 4 and all(each >= 0 for each in value) and value[3] <= 0.5


IMAGE_RULES: Mapping[str, Rule] = {
    "data.holdout": rules.BELOW_1,
    "data.image_mean": rules.numbers(3, lambda value: 0 <= value <= 1, "from 0 to 1"),
    "data.image_std": rules.numbers(3, lambda value: value > 0, "above 0"),
    "data.train_size": rules.at_least(32),
    "data.train_crop": rules.one_of("inception", "pad", "whole"),
    "data.crop_area": rules.range_within(1.0),
    "data.crop_aspect": rules.range_within(math.inf),
    "data.crop_padding": rules.at_least(0),
    "data.color_jitter": (
        _is_color_jitter,
        "4 numbers of at least 0 (brightness, contrast, saturation, hue), the last at most 0.5",
    ),
    "data.auto_augment": rules.one_of("", "trivial_augment_wide", "randaugment", "timm_randaugment"),
    "data.randaugment_ops": rules.at_least(1),
    "data.randaugment_magnitude_std": rules.at_least(0),
    "data.random_erasing": rules.FRACTION,
    "data.random_erasing_fill": rules.one_of("constant", "pixel"),
    "data.mixup_alpha": rules.at_least(0),
    "data.cutmix_alpha": rules.at_least(0),
    "data.augment_repeats": rules.at_least(1),
    "data.eval_preparation": rules.one_of("processor", "slim", "whole"),
    "data.eval_resize": rules.at_least(32),
    "data.eval_crop": rules.at_least(32),
    "data.eval_interpolation": rules.one_of("bilinear", "bicubic"),
}
RULES: Mapping[str, Rule] = {
    "label_smoothing": rules.BELOW_1,
    "focal_gamma": rules.at_least(0),
    "data.class_weights": class_weights.RULE,
    **IMAGE_RULES,
}
