"""TF-slim's preparation of evaluation images: the central 87.5 % of each side, resized to a square, aspect not kept.

Slim resizes with TensorFlow 1's bilinear rule: pixel i takes what lies at ``i * scale`` (corners, not centres, meet),
and nothing is averaged where an image shrinks (github.com/tensorflow/models, inception_preprocessing.py).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

FRACTION = 0.875


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """RGB image → uint8 (size, size, 3), rounded to whole levels, which slim does not; it can be pickled."""

    size: int

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Crops and resizes one image."""
        pixels = np.asarray(image)
        margins = [int((side - side * FRACTION) / 2) for side in pixels.shape[:2]]
        pixels = pixels[margins[0] : pixels.shape[0] - margins[0], margins[1] : pixels.shape[1] - margins[1]]
        pixels = pixels.astype(np.float32)
        for axis in (0, 1):
            pixels = _resize(pixels, self.size, axis)
        return np.rint(pixels).astype(np.uint8)


def _resize(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Bilinear along one axis, corners aligned at the beginning."""
    length = pixels.shape[axis]
    at = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = np.minimum(at.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    fraction = (at - low).reshape([-1 if each == axis else 1 for each in range(pixels.ndim)])
    lower, upper = np.take(pixels, low, axis), np.take(pixels, high, axis)
    return lower + (upper - lower) * fraction
