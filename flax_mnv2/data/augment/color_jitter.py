"""Random brightness, contrast, saturation and hue, as torchvision's ``ColorJitter``."""

from __future__ import annotations

import dataclasses

import numpy as np

from flax_mnv2.data.augment import image_ops as ops

# The order in which the factors are drawn; the order in which they are applied is random.
_OPERATIONS = {"brightness": ops.brightness, "contrast": ops.contrast, "saturation": ops.saturation, "hue": ops.hue}


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes the four in random order, each by a factor of its own, uniform in its range; 0 leaves it alone.

    Factors go from ``max(0, 1 - strength)`` to ``1 + strength``; the hue is shifted by ``-hue`` to ``hue`` turns of the
    colour circle, at most a half.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def range(self, name: str) -> tuple[float, float]:
        """Returns the least and the greatest factor (of ``"hue"``: shift)."""
        strength = getattr(self, name)
        return (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)

    def draw(self, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
        """Returns names and factors for one image, in order, without those of strength 0.

        The number of draws does not depend on the fields.
        """
        factors = [(name, float(rng.uniform(*self.range(name)))) for name in _OPERATIONS]
        return tuple(factors[index] for index in rng.permutation(len(factors)) if getattr(self, factors[index][0]))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Jitters an image, uint8 (H, W, 3) RGB; the input is not written to, and may be returned."""
        for name, factor in self.draw(rng):
            image = _OPERATIONS[name](image, factor)
        return image
