"""The part of a run's config that only detection has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.tasks import rules
from flax_mnv2.tasks.rules import Rule

if TYPE_CHECKING:
    import ml_collections

    from flax_mnv2.data.augment.detection import DetectionAugment


def add_defaults(config: ml_collections.ConfigDict) -> None:
    """Adds the fields with their defaults and meanings."""
    data = config.data
    data.dataset = "coco_detection"
    data.image_size = (320, 320)  # height, width; images are resized to it without keeping their aspect
    data.image_mean = (0.5, 0.5, 0.5)  # pixels are normalised by these fractions of 255; TF's and Hugging Face's
    data.image_std = (0.5, 0.5, 0.5)  # the same, divided by
    data.max_boxes = 100  # rows that a training image's boxes are filled up to
    data.too_many_boxes = "fail"  # an image with more stops the run; or largest: those of the largest area are taken
    data.holdout = 0.1  # of one's own boxes: fraction of train kept as val where there is no such split
    data.crop = "ssd"  # the original's random crop, around boxes; or none
    data.crop_whole = 0.15  # probability that the crop leaves an image as it is
    # Least part of a box in the window, of one at least and of all that stay; one of these is drawn for each image.
    data.crop_overlaps = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    data.crop_area = (0.1, 1.0)  # smallest and largest window, as fractions of the image
    data.expand = 1.0  # largest factor that half of the images are zoomed out by (SSD's expansion); 1: none
    data.photometric = False  # SSD's distortion of brightness, contrast, saturation and hue

    spec = DetectionSpec().to_dict()
    config.detection = type(config)({name: _field(value) for name, value in spec.items()})
    config.detection.strides, config.detection.max_log_size = (), 0.0  # empty and 0: none

    config.eval.score_threshold = 0.01  # boxes of a lower probability are left out
    config.eval.num_pictures = 8  # examples in predictions.png


def check_config(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> None:
    """Raises a ConfigError where fields contradict each other, or make no detector."""
    del fields
    spec_of(config)


def spec_of(config: ml_collections.ConfigDict) -> DetectionSpec:
    """Returns what ``config.detection`` says."""
    values = config.detection.to_dict()
    return DetectionSpec.from_dict(
        {**values, "strides": values["strides"] or None, "max_log_size": values["max_log_size"] or None}
    )


def augmentation(data: ml_collections.ConfigDict) -> DetectionAugment:
    """Returns what changes training images."""
    from flax_mnv2.data.augment.detection import DetectionAugment

    names = ("flip", "crop", "crop_whole", "expand", "photometric")
    tuples = {name: tuple(data[name]) for name in ("crop_overlaps", "crop_area")}
    return DetectionAugment(size=tuple(data.image_size), **tuples, **{name: data[name] for name in names})


def describe_augmentation(config: ml_collections.ConfigDict) -> str:
    """Returns the settings that change training images, in words."""
    data = config.data
    overlaps = "/".join(f"{overlap:g}" for overlap in data.crop_overlaps)
    parts = [f"SSD crop at {overlaps}, {data.crop_whole:.3g} whole" if data.crop == "ssd" else "no crop"]
    parts += [f"zoom out up to {data.expand:g}"] if data.expand > 1 else []
    parts += ["photometric distortion"] if data.photometric else []
    height, width = data.image_size
    return " · ".join([*parts, f"resize to {height}×{width}", "flip" if data.flip else "no flip"])


def _field(value: Any) -> Any:
    """Makes lists tuples, which the command line can set; None is set by the caller."""
    return tuple(map(_field, value)) if isinstance(value, list) else value


RULES: Mapping[str, Rule] = {
    "data.image_size": rules.pair_from(32),
    "data.image_mean": rules.numbers(3, lambda value: 0 <= value <= 1, "from 0 to 1"),
    "data.image_std": rules.numbers(3, lambda value: value > 0, "above 0"),
    "data.max_boxes": rules.at_least(1),
    "data.too_many_boxes": rules.one_of("fail", "largest"),
    "data.holdout": rules.BELOW_1,
    "data.crop": rules.one_of("none", "ssd"),
    "data.crop_whole": rules.FRACTION,
    "data.crop_overlaps": rules.FRACTIONS,
    "data.crop_area": rules.range_within(1.0),
    "data.expand": rules.at_least(1),
    "eval.score_threshold": rules.BELOW_1,
    "eval.num_pictures": rules.at_least(0),
}
