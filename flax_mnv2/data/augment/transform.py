"""What happens to an image of a classification data set on the host while training, from ``config.data``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from flax_mnv2.data.augment.auto_augment import RandAugment, TimmRandAugment, TrivialAugmentWide
from flax_mnv2.data.augment.color_jitter import ColorJitter
from flax_mnv2.data.augment.random_crop import decode_random_crop
from flax_mnv2.data.augment.random_erasing import RandomErasing
from flax_mnv2.data.decode import decode_image

Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Encoded image → uint8 (size, size, 3): a crop, then the steps. All randomness is the generator's; picklable.

    Attributes:
      crop: encoded bytes and a generator → uint8 (size, size, 3) RGB.
      steps: what follows, in order.
    """

    crop: Callable[[bytes, np.random.Generator], np.ndarray]
    steps: tuple[Step, ...] = ()

    def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """Transforms one image; a DataError where it cannot be decoded."""
        image = self.crop(data, rng)
        for step in self.steps:
            image = step(image, rng)
        return image


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
    """A window of random area and aspect, resized to a square and mirrored half of the time."""

    size: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: bool

    def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """See ``random_crop.decode_random_crop``."""
        return decode_random_crop(
            data, rng, size=self.size, area=self.area, aspect=self.aspect, flip=self.flip, reduced=False
        )


@dataclasses.dataclass(frozen=True)
class PadCrop:
    """The image resized to ``size`` on its shorter side, with black around it, cropped anywhere: CIFAR's recipe."""

    size: int
    padding: int
    flip: bool

    def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """Decodes, resizes (bilinear; averaging where it shrinks), pads and crops."""
        image = decode_image(data)
        scale = self.size / min(image.shape[:2])
        width, height = (max(self.size, round(side * scale)) for side in (image.shape[1], image.shape[0]))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        image = cv2.copyMakeBorder(image, *(self.padding,) * 4, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        top, left = (int(rng.integers(side - self.size + 1)) for side in image.shape[:2])
        image = image[top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(image[:, ::-1] if self.flip and rng.random() < 0.5 else image)


def make_train_transform(data: Mapping[str, Any]) -> TrainTransform:
    """The transform that ``config.data`` describes: crop, flip, colour jitter, policy, erasing, in this order."""
    size = data["train_size"]
    if data["train_crop"] == "pad":
        crop = PadCrop(size, data["crop_padding"], data["flip"])
    else:
        crop = InceptionCrop(size, tuple(data["crop_area"]), tuple(data["crop_aspect"]), data["flip"])
    mean, std = ([255.0 * value for value in data[name]] for name in ("image_mean", "image_std"))
    fill = tuple(round(value) for value in mean)
    steps: list[Step] = []
    if any(data["color_jitter"]):
        steps.append(ColorJitter(*data["color_jitter"]))
    if data["auto_augment"]:
        steps.append(_policy(data, fill))
    if data["random_erasing"]:
        steps.append(
            RandomErasing(data["random_erasing"], mode=data["random_erasing_fill"], mean=tuple(mean), std=tuple(std))
        )
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
