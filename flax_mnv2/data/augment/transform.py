"""What happens to an image of a classification data set on the host while training, from ``config.data``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flax_mnv2.data.augment.auto_augment import RandAugment, TimmRandAugment, TrivialAugmentWide
from flax_mnv2.data.augment.color_jitter import ColorJitter
from flax_mnv2.data.augment.random_crop import decode_pad_crop, decode_random_crop
from flax_mnv2.data.augment.random_erasing import RandomErasing

_ANY_ASPECT = (1e-9, 1e9)  # width / height; a window of the image's area is then the image

Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Encoded image → uint8 (size, size, 3) RGB: a crop, then the steps. All randomness is the generator's; picklable.

    ``crop`` takes the encoded bytes and a generator; each of ``steps`` an image and the generator.
    """

    crop: Callable[[bytes, np.random.Generator], np.ndarray]
    steps: tuple[Step, ...] = ()

    def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """Transforms one image; a DataError where it cannot be decoded."""
        image = self.crop(data, rng)
        for step in self.steps:
            image = step(image, rng)
        return image


def make_train_transform(data: Mapping[str, Any], *, as_stored: bool = False) -> TrainTransform:
    """Returns the transform that ``config.data`` describes: crop, flip, jitter, policy, erasing, in this order.

    Images are decoded upright or ``as_stored``, the rules of ``data.decode``.
    """
    common = {"size": data["train_size"], "flip": data["flip"], "as_stored": as_stored}
    if data["train_crop"] == "pad":
        crop = functools.partial(decode_pad_crop, padding=data["crop_padding"], **common)
    else:
        shape = {"area": tuple(data["crop_area"]), "aspect": tuple(data["crop_aspect"])}
        if data["train_crop"] == "whole":
            shape = {"area": (1.0, 1.0), "aspect": _ANY_ASPECT}
        crop = functools.partial(decode_random_crop, **shape, **common)
    mean, std = (tuple(255.0 * value for value in data[name]) for name in ("image_mean", "image_std"))
    steps: list[Step] = []
    if any(data["color_jitter"]):
        steps.append(ColorJitter(*data["color_jitter"]))
    if data["auto_augment"]:
        steps.append(_policy(data, tuple(round(value) for value in mean)))
    if data["random_erasing"]:
        steps.append(RandomErasing(data["random_erasing"], mode=data["random_erasing_fill"], mean=mean, std=std))
    return TrainTransform(crop, tuple(steps))


def _policy(data: Mapping[str, Any], fill: tuple[int, int, int]) -> Step:
    ops, magnitude = data["randaugment_ops"], data["randaugment_magnitude"]
    if data["auto_augment"] == "randaugment":
        return RandAugment(num_ops=ops, magnitude=int(magnitude))
    if data["auto_augment"] == "timm_randaugment":
        return TimmRandAugment(
            num_ops=ops, magnitude=magnitude, magnitude_std=data["randaugment_magnitude_std"], fill=fill
        )
    return TrivialAugmentWide()
