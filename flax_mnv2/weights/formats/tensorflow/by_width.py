"""Which network of TensorFlow's kind some tensors are, by the widths of their layers and of their head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flax_mnv2.class_names import usual_names
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.source import CLASSIFIERS, FIRST_KERNEL
from flax_mnv2.weights.tensors import Naming, Path

# TF-slim's arg scope and Keras' layers: SAME padding, epsilon, and a shortcut wherever widths agree.
SHARED_FIELDS: dict[str, Any] = {"tf_padding": True, "layer_norm_eps": 1e-3, "stem_residual": True}
# How widths are made: by slim's defaults; without its finegrained_output; as TF DeepLab does where α is not 1; as the
# TF Object Detection API does, which differs from the second at small α.
WIDTH_RULES: tuple[dict[str, Any], ...] = (
    {},
    {"finegrained_output": False},
    {"depth_divisible_by": 1, "min_depth": 1},
    {"finegrained_output": False, "min_depth": 16},
)
OUTPUT_STRIDE = 16  # of TF DeepLab's published networks; their checkpoints do not say it
_HALF = (0.5,) * 3
ANCHORS_OF_FIRST_MAP = 3  # of the TF Object Detection API's SSDs
_CROP_FRACTION, _MARGIN = 0.875, 32  # TF-slim's middle of an image, 224 of 256; for DeepLab 513 of 545


def config_of(
    state: Mapping[str, np.ndarray],
    naming_of: Callable[[MobileNetV2Config], Naming],
    rules: Iterable[Mapping[str, Any]] = WIDTH_RULES,
    **fields: Any,
) -> tuple[MobileNetV2Config, str]:
    """Returns the network of ``state``, whose arrays lie as in Flax, and its task; the nearest where none fits.

    ``rules`` are fields that decide widths, tried in turn; ``fields`` what is known besides.
    """
    bases = [MobileNetV2Config(num_labels=2, **(SHARED_FIELDS | dict(rule) | fields)) for rule in rules]
    for base in bases:
        widths = _widths(state, naming_of(base), base)
        multiplier = pytorch.find_depth_multiplier(base, widths)
        if multiplier is not None:
            config = pytorch.with_fewest_own_fields(base.replace(depth_multiplier=multiplier), search=False)
            break
    else:
        config = bases[0].replace(depth_multiplier=pytorch.nearest_depth_multiplier(bases[0], widths))
    naming = naming_of(config)
    task, labels = _head(state, naming)
    first = state.get(naming.key_of(FIRST_KERNEL))
    if first is not None and first.ndim == 4:
        config = config.replace(num_channels=first.shape[2])
    if task == "detection":
        slots = labels // ANCHORS_OF_FIRST_MAP
        labels = slots - 1 if slots > 1 else 1  # the first is the background's, where there is more than one
    names = usual_names(labels, task)
    return config.replace(**({"id2label": names} if names else {"num_labels": labels})), task


def processor(
    side: int, task: str = "classification", *, mean: Sequence[float] = _HALF, std: Sequence[float] = _HALF
) -> MobileNetV2ImageProcessor:
    """Returns what prepares images for a network of this size, in [-1, 1], as Hugging Face's folders of them say.

    For a detector the whole image is squeezed to a square, as the TF Object Detection API does.
    """
    levels = {"image_mean": list(mean), "image_std": list(std)}
    if task == "detection":
        return MobileNetV2ImageProcessor(size={"height": side, "width": side}, do_center_crop=False, **levels)
    edge = side + _MARGIN if side > 256 else round(side / _CROP_FRACTION)
    return MobileNetV2ImageProcessor(size=edge, crop_size=side, **levels)


def _widths(state: Mapping[str, np.ndarray], naming: Naming, config: MobileNetV2Config) -> dict[Path, int]:
    """Returns the channels that layers of the backbone have, by their path."""
    widths = {}
    for module in pytorch.norm_widths(config.layer_plan):
        kernel = state.get(naming.key_of(("params", *module, "convolution", "kernel")))
        if kernel is not None and kernel.ndim == 4:
            widths[module] = kernel.shape[3]
    return widths


def _head(state: Mapping[str, np.ndarray], naming: Naming) -> tuple[str, int]:
    """Returns the task and the number of classes; those of a fresh model for a backbone alone."""
    for task, module in CLASSIFIERS.items():
        kernel = state.get(naming.key_of(("params", *module, "kernel")))
        if kernel is not None and kernel.ndim:
            return task, kernel.shape[-1]
    return "backbone", 2
