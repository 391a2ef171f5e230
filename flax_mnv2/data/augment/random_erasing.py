"""Random erasing (Zhong et al., arXiv 1708.04896): a rectangle of the image is painted over."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flax_mnv2.data.augment.random_crop import ATTEMPTS, Box


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Paints over a random rectangle of some images. The last of the augmentations, as it is meant to hide.

    torchvision and timm erase after normalisation, to 0 or to standard normal noise; here the pixels are uint8, so it
    is those that normalise to that. Noise is cut to 0..255, for ImageNet's mean and deviation about 2 deviations
    either way. ``mode`` is ``"constant"``: all pixels are ``mean``, rounded, torchvision's default; or ``"pixel"``:
    each value is drawn from the normal distribution with ``mean`` and ``std``, as timm's recipes have it.
    """

    probability: float = 0.5  # of an image to be painted on
    area: tuple[float, float] = (0.02, 1 / 3)  # of the image, uniform in between
    aspect: tuple[float, float] = (0.3, 1 / 0.3)  # height / width, uniform in the logarithm in between
    mode: str = "constant"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet's red, green, blue, in 0..255
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def draw_box(self, height: int, width: int, rng: np.random.Generator) -> Box | None:
        """Returns the rectangle in an image; None if ten drawn ones were not smaller than both its sides."""
        for _ in range(ATTEMPTS):
            pixels = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            rows, columns = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if rows < height and columns < width:
                top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
                return Box(int(top), int(left), rows, columns)
        return None

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Erases from an image, uint8 (H, W, 3) RGB; the input is not written to, and may be returned."""
        if rng.random() >= self.probability:
            return image
        box = self.draw_box(*image.shape[:2], rng)
        if box is None:
            return image
        erased = image.copy()
        erased[box.top : box.top + box.height, box.left : box.left + box.width] = self._paint(box, rng)
        return erased

    def _paint(self, box: Box, rng: np.random.Generator) -> np.ndarray:
        """uint8, one colour (3,) or pixels (height, width, 3)."""
        if self.mode == "constant":
            return np.rint(self.mean).astype(np.uint8)
        noise = rng.standard_normal((box.height, box.width, 3), dtype=np.float32)
        noise *= np.asarray(self.std, np.float32)
        noise += np.asarray(self.mean, np.float32)
        return np.clip(np.rint(noise, out=noise), 0, 255, out=noise).astype(np.uint8)
