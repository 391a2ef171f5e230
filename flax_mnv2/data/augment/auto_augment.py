"""Policies that change colours and geometry at random: RandAugment, TrivialAugment and timm's RandAugment.

Each policy is a table of operations and a rule by which a few of its rows are drawn. Everything random comes from the
generator that is given. Sources: RandAugment, arXiv 1909.13719, and TrivialAugment, arXiv 2103.10158, both with the
tables of torchvision's ``transforms.v2`` of the same names; timm's ``data/auto_augment.py``.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from flax_mnv2.data.augment import image_ops as ops

IMAGENET_MEAN: ops.Colour = (124, 116, 104)  # 255 × (0.485, 0.456, 0.406), what timm fills with
_GREATEST_BIN = 30  # of torchvision's 31 magnitudes
_TIMM_GREATEST = 10.0  # timm's magnitudes are cut to 0..10


class Operation(NamedTuple):
    """A row of a policy's table: ``apply(image, value, fill=…, interpolation=…) -> image``.

    The value goes linearly from ``weakest`` at magnitude 0 to ``strongest`` at the greatest magnitude; if ``signed``,
    it is negated half of the time.
    """

    apply: Callable[..., np.ndarray]
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False

    def value(self, strength: float) -> float:
        """Returns the value, before its sign is drawn, at a magnitude of 0..1 of the greatest."""
        return self.weakest + (self.strongest - self.weakest) * strength


class Draw(NamedTuple):
    """One operation as it was drawn: a row's name, the value with its sign, and how pixels are interpolated."""

    name: str
    value: float
    interpolation: str


def _plain(function: Callable[[np.ndarray], np.ndarray]) -> Operation:
    """Returns an operation without a magnitude."""
    return Operation(lambda image, value, **warp: function(image))


def _colour(function: Callable[..., np.ndarray], argument: Callable[[float], float]) -> Callable[..., np.ndarray]:
    """Returns an operation on values alone; ``argument`` is made of the magnitude."""
    return lambda image, value, **warp: function(image, argument(value))


def _signed(apply: Callable[..., np.ndarray], strongest: float) -> Operation:
    return Operation(apply, 0, strongest, signed=True)


def _from_one(value: float) -> float:
    return 1 + value


def _as_is(value: Any) -> Any:
    return value


def _move(function: Callable[..., np.ndarray], *, side: int | None = None, whole: bool = True) -> Callable[..., Any]:
    """Returns a translation by an amount of pixels, or by a part of the width or height where ``side`` says which axis.

    torchvision moves by whole pixels, timm by parts of one too.
    """

    def apply(image: np.ndarray, amount: float, **warp: Any) -> np.ndarray:
        pixels = amount if side is None else amount * image.shape[side]
        return function(image, _whole(pixels) if whole else pixels, **warp)

    return apply


def _whole(pixels: float) -> int:
    """Towards zero, as torchvision; 15.9999999 counts as 16."""
    return math.trunc(pixels + math.copysign(1e-4, pixels))


def _torchvisions(
    *, slope: float, move_x: Operation, move_y: Operation, degrees: float, factor: float, bits: int
) -> Mapping[str, Operation]:
    """Returns a table of torchvision's: its two differ in how far the strongest values go."""
    return {
        "identity": _plain(_as_is),
        "shear_x": _signed(ops.shear_x, slope),
        "shear_y": _signed(ops.shear_y, slope),
        "translate_x": move_x,
        "translate_y": move_y,
        "rotate": _signed(ops.rotate, degrees),
        "brightness": _signed(_colour(ops.brightness, _from_one), factor),
        "saturation": _signed(_colour(ops.saturation, _from_one), factor),
        "contrast": _signed(_colour(ops.contrast, _from_one), factor),
        "sharpness": _signed(_colour(ops.sharpness, _from_one), factor),
        "posterize": Operation(_colour(ops.posterize, round), 8, bits),
        "solarize": Operation(_colour(ops.solarize, _as_is), 255, 0),
        "autocontrast": _plain(ops.autocontrast),
        "equalize": _plain(ops.equalize),
    }


RAND_AUGMENT = _torchvisions(
    slope=0.3,
    move_x=_signed(_move(ops.translate_x, side=1), 150 / 331),  # 150 pixels of an image of 331
    move_y=_signed(_move(ops.translate_y, side=0), 150 / 331),
    degrees=30,
    factor=0.9,
    bits=4,
)

TRIVIAL_AUGMENT_WIDE = _torchvisions(
    slope=0.99,
    move_x=_signed(_move(ops.translate_x), 32),
    move_y=_signed(_move(ops.translate_y), 32),
    degrees=135,
    factor=0.99,
    bits=2,
)

# Posterize, solarize and the factors are timm's first, "non-increasing" ones: some weaken as the magnitude grows.
TIMM_RAND_AUGMENT: Mapping[str, Operation] = {
    "autocontrast": _plain(ops.autocontrast),
    "equalize": _plain(ops.equalize),
    "invert": _plain(ops.invert),
    "rotate": _signed(ops.rotate, 30),
    "posterize": Operation(_colour(ops.posterize, int), 0, 4),
    "solarize": Operation(_colour(ops.solarize, int), 0, 256),
    "solarize_add": Operation(_colour(ops.solarize_add, int), 0, 110),
    "saturation": Operation(_colour(ops.saturation, _as_is), 0.1, 1.9),
    "contrast": Operation(_colour(ops.contrast, _as_is), 0.1, 1.9),
    "brightness": Operation(_colour(ops.brightness, _as_is), 0.1, 1.9),
    "sharpness": Operation(_colour(ops.sharpness, _as_is), 0.1, 1.9),
    "shear_x": _signed(ops.shear_x, 0.3),
    "shear_y": _signed(ops.shear_y, 0.3),
    "translate_x": _signed(_move(ops.translate_x, side=1, whole=False), 0.45),
    "translate_y": _signed(_move(ops.translate_y, side=0, whole=False), 0.45),
}


class _Policy(abc.ABC):
    """Operations drawn from a table and applied one after another.

    The fields' ranges are checked with the config of a run (:mod:`flax_mnv2.tasks.classification.config`).
    """

    table: ClassVar[Mapping[str, Operation]]
    fill = ops.BLACK  # colour of what comes from outside the image

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[Draw, ...]:
        """Returns the operations for one image, in order."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augments an image, uint8 (H, W, 3) RGB; the input is not written to, and may be returned."""
        for name, value, interpolation in self.draw(rng):
            image = self.table[name].apply(image, value, fill=self.fill, interpolation=interpolation)
        return image

    def _draw(self, strength: float, rng: np.random.Generator, interpolation: str = "nearest") -> Draw:
        """Returns a row of the table, all as likely, and the sign of its value."""
        name = tuple(self.table)[rng.integers(len(self.table))]
        row = self.table[name]
        value = row.value(strength)
        return Draw(name, -value if row.signed and rng.random() < 0.5 else value, interpolation)


@dataclasses.dataclass(frozen=True)
class RandAugment(_Policy):
    """``num_ops`` operations, all at one magnitude of 0 to 30; torchvision's ``RandAugment``."""

    table = RAND_AUGMENT
    num_ops: int = 2
    magnitude: int = 9

    def draw(self, rng: np.random.Generator) -> tuple[Draw, ...]:
        """Returns the operations for one image, in order."""
        return tuple(self._draw(self.magnitude / _GREATEST_BIN, rng) for _ in range(self.num_ops))


@dataclasses.dataclass(frozen=True)
class TrivialAugmentWide(_Policy):
    """One operation at a random magnitude; torchvision's ``TrivialAugmentWide``."""

    table = TRIVIAL_AUGMENT_WIDE

    def draw(self, rng: np.random.Generator) -> tuple[Draw, ...]:
        """Returns the operation for one image."""
        return (self._draw(int(rng.integers(_GREATEST_BIN + 1)) / _GREATEST_BIN, rng),)


@dataclasses.dataclass(frozen=True)
class TimmRandAugment(_Policy):
    """What timm's ``rand-m9-mstd0.5`` does: magnitudes vary about a mean, and operations are left out at random.

    Magnitudes are normally distributed about ``magnitude`` with ``magnitude_std``, cut to 0..10; each of the
    ``num_ops`` drawn rows is applied with ``probability``. timm fills with the mean of the data, RGB in 0..255.
    """

    table = TIMM_RAND_AUGMENT
    interpolations = ("bilinear", "bicubic")  # one is drawn for each operation
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_ops: int = 2
    probability: float = 0.5
    fill: ops.Colour = IMAGENET_MEAN

    def draw(self, rng: np.random.Generator) -> tuple[Draw, ...]:
        """Returns the operations for one image, in order, without those left out."""
        drawn = []
        for _ in range(self.num_ops):
            magnitude = float(np.clip(rng.normal(self.magnitude, self.magnitude_std), 0, _TIMM_GREATEST))
            interpolation = self.interpolations[rng.integers(len(self.interpolations))]
            row = self._draw(magnitude / _TIMM_GREATEST, rng, interpolation)
            if rng.random() < self.probability:
                drawn.append(row)
        return tuple(drawn)
