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
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from flax_mnv2.data.augment import image_ops as ops
from flax_mnv2.errors import ConfigError

IMAGENET_MEAN: ops.Colour = (124, 116, 104)  # 255 × (0.485, 0.456, 0.406), what timm fills with


class Operation(NamedTuple):
    """A row of a policy's table.

    Attributes:
      apply: ``(image, value, fill=…, interpolation=…) -> image``.
      weakest: the value at magnitude 0.
      strongest: the value at the greatest magnitude; linear in between.
      signed: half of the time the value is negated.
    """

    apply: Callable[..., np.ndarray]
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False

    def value(self, strength: float) -> float:
        """The value, before its sign is drawn, at a magnitude of 0..1 of the greatest."""
        return self.weakest + (self.strongest - self.weakest) * strength


class Draw(NamedTuple):
    """One operation as it was drawn: a row's name, the value with its sign, and how pixels are interpolated."""

    name: str
    value: float
    interpolation: str


def _plain(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """An operation without a magnitude."""
    return lambda image, value, **warp: function(image)


def _colour(function: Callable[..., np.ndarray], argument: Callable[[float], float]) -> Callable[..., np.ndarray]:
    """An operation on values alone; ``argument`` is made of the magnitude."""
    return lambda image, value, **warp: function(image, argument(value))


def _from_one(value: float) -> float:
    return 1 + value


def _as_is(value: Any) -> Any:
    return value


def _move(function: Callable[..., np.ndarray], *, side: int | None = None, whole: bool = True) -> Callable[..., Any]:
    """A translation by an amount of pixels, or by a part of the width or height where ``side`` says which axis.

    torchvision moves by whole pixels, timm by parts of one too.
    """

    def apply(image: np.ndarray, amount: float, **warp: Any) -> np.ndarray:
        pixels = amount if side is None else amount * image.shape[side]
        return function(image, _whole(pixels) if whole else pixels, **warp)

    return apply


def _whole(pixels: float) -> int:
    """Towards zero, as torchvision; 15.9999999 counts as 16."""
    return math.trunc(pixels + math.copysign(1e-4, pixels))


def _table(rows: Mapping[str, Operation]) -> Mapping[str, Operation]:
    return MappingProxyType(dict(rows))


RAND_AUGMENT = _table(
    {
        "identity": Operation(_plain(_as_is)),
        "shear_x": Operation(ops.shear_x, 0, 0.3, signed=True),
        "shear_y": Operation(ops.shear_y, 0, 0.3, signed=True),
        "translate_x": Operation(
            _move(ops.translate_x, side=1), 0, 150 / 331, signed=True
        ),  # 150 pixels of an image of 331
        "translate_y": Operation(_move(ops.translate_y, side=0), 0, 150 / 331, signed=True),
        "rotate": Operation(ops.rotate, 0, 30, signed=True),
        "brightness": Operation(_colour(ops.brightness, _from_one), 0, 0.9, signed=True),
        "saturation": Operation(_colour(ops.saturation, _from_one), 0, 0.9, signed=True),
        "contrast": Operation(_colour(ops.contrast, _from_one), 0, 0.9, signed=True),
        "sharpness": Operation(_colour(ops.sharpness, _from_one), 0, 0.9, signed=True),
        "posterize": Operation(_colour(ops.posterize, round), 8, 4),
        "solarize": Operation(_colour(ops.solarize, _as_is), 255, 0),
        "autocontrast": Operation(_plain(ops.autocontrast)),
        "equalize": Operation(_plain(ops.equalize)),
    }
)

# The same operations, further.
TRIVIAL_AUGMENT_WIDE = _table(
    RAND_AUGMENT
    | {
        "shear_x": Operation(ops.shear_x, 0, 0.99, signed=True),
        "shear_y": Operation(ops.shear_y, 0, 0.99, signed=True),
        "translate_x": Operation(_move(ops.translate_x), 0, 32, signed=True),
        "translate_y": Operation(_move(ops.translate_y), 0, 32, signed=True),
        "rotate": Operation(ops.rotate, 0, 135, signed=True),
        "brightness": Operation(_colour(ops.brightness, _from_one), 0, 0.99, signed=True),
        "saturation": Operation(_colour(ops.saturation, _from_one), 0, 0.99, signed=True),
        "contrast": Operation(_colour(ops.contrast, _from_one), 0, 0.99, signed=True),
        "sharpness": Operation(_colour(ops.sharpness, _from_one), 0, 0.99, signed=True),
        "posterize": Operation(_colour(ops.posterize, round), 8, 2),
    }
)

# Posterize, solarize and the factors are timm's first, "non-increasing" ones: some weaken as the magnitude grows.
TIMM_RAND_AUGMENT = _table(
    {
        "autocontrast": Operation(_plain(ops.autocontrast)),
        "equalize": Operation(_plain(ops.equalize)),
        "invert": Operation(_plain(ops.invert)),
        "rotate": Operation(ops.rotate, 0, 30, signed=True),
        "posterize": Operation(_colour(ops.posterize, int), 0, 4),
        "solarize": Operation(_colour(ops.solarize, int), 0, 256),
        "solarize_add": Operation(_colour(ops.solarize_add, int), 0, 110),
        "saturation": Operation(_colour(ops.saturation, _as_is), 0.1, 1.9),
        "contrast": Operation(_colour(ops.contrast, _as_is), 0.1, 1.9),
        "brightness": Operation(_colour(ops.brightness, _as_is), 0.1, 1.9),
        "sharpness": Operation(_colour(ops.sharpness, _as_is), 0.1, 1.9),
        "shear_x": Operation(ops.shear_x, 0, 0.3, signed=True),
        "shear_y": Operation(ops.shear_y, 0, 0.3, signed=True),
        "translate_x": Operation(_move(ops.translate_x, side=1, whole=False), 0, 0.45, signed=True),
        "translate_y": Operation(_move(ops.translate_y, side=0, whole=False), 0, 0.45, signed=True),
    }
)
TIMM_GREATEST = 10.0  # magnitudes are cut to 0..10


class _Policy(abc.ABC):
    """Operations drawn from a table and applied one after another; ``fill`` is a field of every policy."""

    table: ClassVar[Mapping[str, Operation]]

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[Draw, ...]:
        """The operations for one image, in order."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augments an image, uint8 (H, W, 3) RGB; the input is not written to, and may be returned."""
        for name, value, interpolation in self.draw(rng):
            image = self.table[name].apply(image, value, fill=self.fill, interpolation=interpolation)
        return image

    def _draw(self, strength: float, rng: np.random.Generator, interpolation: str) -> Draw:
        """A row of the table, all as likely, and the sign of its value."""
        name = tuple(self.table)[rng.integers(len(self.table))]
        row = self.table[name]
        value = row.value(strength)
        return Draw(name, -value if row.signed and rng.random() < 0.5 else value, interpolation)

    def _require(self, holds: bool, words: str) -> None:
        if not holds:
            raise ConfigError(f"{type(self).__name__}: {words}")

    def _check_fill(self) -> None:
        self._require(
            len(self.fill) == 3 and all(0 <= value <= 255 for value in self.fill),
            f"expected fill to be three values of 0..255 (red, green, blue), found {self.fill}. Give a colour such as "
            f"{IMAGENET_MEAN}",
        )

    def _check_interpolation(self, interpolation: str) -> None:
        self._require(
            interpolation in ops.INTERPOLATIONS,
            f"unknown interpolation {interpolation!r}. Choose among {list(ops.INTERPOLATIONS)}",
        )

    def _check_at_least(self, name: str, least: int, usual: int) -> None:
        found = getattr(self, name)
        self._require(found >= least, f"expected {name} of at least {least}, found {found}. Choose {usual}, as usual")


@dataclasses.dataclass(frozen=True)
class RandAugment(_Policy):
    """A few operations, all at one magnitude; torchvision's ``RandAugment``.

    Attributes:
      num_ops: operations applied one after another, each drawn from the whole table.
      magnitude: 0 to ``num_bins - 1``.
      num_bins: steps from the weakest to the strongest.
      fill: colour of what comes from outside the image, RGB in 0..255.
      interpolation: of the geometric operations, a key of ``image_ops.INTERPOLATIONS``.

    Raises:
      ConfigError: a field is out of its range.
    """

    table: ClassVar[Mapping[str, Operation]] = RAND_AUGMENT
    num_ops: int = 2
    magnitude: int = 9
    num_bins: int = 31
    fill: ops.Colour = ops.BLACK
    interpolation: str = "nearest"

    def __post_init__(self):
        self._check_at_least("num_ops", 0, usual=2)
        self._check_at_least("num_bins", 2, usual=31)
        self._check_fill()
        self._check_interpolation(self.interpolation)
        self._require(
            0 <= self.magnitude < self.num_bins,
            f"expected a magnitude of 0 to num_bins - 1 = {self.num_bins - 1}, found {self.magnitude}. Choose one in "
            "that range",
        )

    def draw(self, rng: np.random.Generator) -> tuple[Draw, ...]:
        """The operations for one image, in order."""
        strength = self.magnitude / (self.num_bins - 1)
        return tuple(self._draw(strength, rng, self.interpolation) for _ in range(self.num_ops))


@dataclasses.dataclass(frozen=True)
class TrivialAugmentWide(_Policy):
    """One operation at a random magnitude; torchvision's ``TrivialAugmentWide``.

    Attributes:
      num_bins: magnitudes, from the weakest to the strongest, all as likely.
      fill: colour of what comes from outside the image, RGB in 0..255.
      interpolation: of the geometric operations, a key of ``image_ops.INTERPOLATIONS``.

    Raises:
      ConfigError: a field is out of its range.
    """

    table: ClassVar[Mapping[str, Operation]] = TRIVIAL_AUGMENT_WIDE
    num_bins: int = 31
    fill: ops.Colour = ops.BLACK
    interpolation: str = "nearest"

    def __post_init__(self):
        self._check_at_least("num_bins", 2, usual=31)
        self._check_fill()
        self._check_interpolation(self.interpolation)

    def draw(self, rng: np.random.Generator) -> tuple[Draw, ...]:
        """The operation for one image."""
        strength = int(rng.integers(self.num_bins)) / (self.num_bins - 1)
        return (self._draw(strength, rng, self.interpolation),)


@dataclasses.dataclass(frozen=True)
class TimmRandAugment(_Policy):
    """What timm's ``rand-m9-mstd0.5`` does: magnitudes vary about a mean, and operations are left out at random.

    Attributes:
      magnitude: mean, 0 to 10.
      magnitude_std: standard deviation of the normal distribution; its ends are cut to 0..10.
      num_ops: rows drawn, each from the whole table.
      probability: of each drawn row to be applied.
      fill: colour of what comes from outside the image, RGB in 0..255; timm's is the mean of the data.
      interpolations: one is drawn for each operation; keys of ``image_ops.INTERPOLATIONS``.

    Raises:
      ConfigError: a field is out of its range.
    """

    table: ClassVar[Mapping[str, Operation]] = TIMM_RAND_AUGMENT
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_ops: int = 2
    probability: float = 0.5
    fill: ops.Colour = IMAGENET_MEAN
    interpolations: tuple[str, ...] = ("bilinear", "bicubic")

    def __post_init__(self):
        self._check_at_least("num_ops", 0, usual=2)
        self._check_fill()
        empty = f"interpolations is empty. Choose among {list(ops.INTERPOLATIONS)}"
        self._require(bool(self.interpolations), empty)
        for interpolation in self.interpolations:
            self._check_interpolation(interpolation)
        for name, greatest in (("magnitude", TIMM_GREATEST), ("magnitude_std", 100.0), ("probability", 1.0)):
            found = getattr(self, name)
            words = f"expected {name} from 0 to {greatest:g}, found {found}. Choose one in that range"
            self._require(0 <= found <= greatest, words)

    def draw(self, rng: np.random.Generator) -> tuple[Draw, ...]:
        """The operations for one image, in order, without those left out."""
        drawn = []
        for _ in range(self.num_ops):
            magnitude = float(np.clip(rng.normal(self.magnitude, self.magnitude_std), 0, TIMM_GREATEST))
            interpolation = self.interpolations[rng.integers(len(self.interpolations))]
            row = self._draw(magnitude / TIMM_GREATEST, rng, interpolation)
            if rng.random() < self.probability:
                drawn.append(row)
        return tuple(drawn)
