"""Random brightness, contrast, saturation and hue, as torchvision's ``ColorJitter``."""

from __future__ import annotations

import dataclasses

import numpy as np

from flax_mnv2.data.augment import image_ops as ops
from flax_mnv2.errors import ConfigError

# The order in which the factors are drawn; the order in which they are applied is random.
_OPERATIONS = {
    "brightness": ops.brightness,
    "contrast": ops.contrast,
    "saturation": ops.saturation,
    "hue": ops.hue,
}
_GREATEST_HUE = 0.5


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes the four in random order, each by a factor of its own, uniform in its range.

    Attributes:
      brightness: factors from ``max(0, 1 - brightness)`` to ``1 + brightness``; 0 leaves it alone.
      contrast: likewise.
      saturation: likewise.
      hue: shifts from ``-hue`` to ``hue`` turns of the colour circle, at most a half.

    Raises:
      ConfigError: a field is negative, or ``hue`` above a half.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        for name in _OPERATIONS:
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"ColorJitter: expected {name} of at least 0, found {getattr(self, name)}. 0 leaves it unchanged"
                )
        if self.hue > _GREATEST_HUE:
            raise ConfigError(f"ColorJitter: expected hue of at most half a turn, 0.5, found {self.hue}. Choose less")

    def range(self, name: str) -> tuple[float, float]:
        """The least and the greatest factor (of ``"hue"``: shift)."""
        strength = getattr(self, name)
        return (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)

    def draw(self, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
        """What happens to one image: names and factors, in order; those of strength 0 are left out.

        The number of draws does not depend on the fields.
        """
        factors = [(name, float(rng.uniform(*self.range(name)))) for name in _OPERATIONS]
        return tuple(factors[index] for index in rng.permutation(len(factors)) if getattr(self, factors[index][0]))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Jitter an image, uint8 (H, W, 3) RGB; the input is not written to, and may be returned."""
        for name, factor in self.draw(rng):
            image = _OPERATIONS[name](image, factor)
        return image
