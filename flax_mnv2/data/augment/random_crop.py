"""Random crops for training classifiers: Inception's, as torchvision's ``RandomResizedCrop`` draws them.

A window of random area and aspect, anywhere in the image, resized to a square, and mirrored half of the time
(Szegedy et al., "Going deeper with convolutions"). NumPy and OpenCV, no state; everything random is drawn from the
generator that is given.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from flax_mnv2.data.decode import decode_bgr, stored_size

AREA = (0.08, 1.0)  # of the image; TF-slim's recipe has (0.05, 1.0)
ASPECT = (3 / 4, 4 / 3)  # width / height
ATTEMPTS = 10

_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


class Box(NamedTuple):
    """A window in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
) -> Box:
    """A window of an image: area uniform, aspect uniform in its logarithm, position uniform.

    Windows that do not fit are drawn again; after ten, the largest in the middle whose aspect is allowed is taken.
    """
    for _ in range(ATTEMPTS):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        rows, columns = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return Box(int(top), int(left), rows, columns)
    columns = max(1, min(width, round(height * aspect[1])))
    rows = max(1, min(height, round(width / aspect[0])))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def decode_random_crop(
    data: bytes,
    rng: np.random.Generator,
    *,
    size: int,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    flip: bool = True,
    antialias: bool = True,
    reduced: bool = False,
) -> np.ndarray:
    """From JPEG or PNG bytes to a training example.

    Args:
      data: the encoded image; grey and CMYK become RGB, EXIF orientation is ignored.
      rng: what the window and the mirroring are drawn from; the same draws whatever the other arguments.
      size: side of the result.
      area: smallest and largest part of the image.
      aspect: smallest and largest width / height.
      flip: mirror half of the examples.
      antialias: average over pixels where the window shrinks, as Pillow does and TF-slim does not.
      reduced: decode a JPEG at a half, quarter or eighth where the window still has ``size`` pixels then. The window's
        edges are rounded to those coarser pixels, so results differ a little.

    Returns:
      uint8 (size, size, 3), RGB.

    Raises:
      DataError: the bytes are not an image.
    """
    if reduced:
        height, width = stored_size(data)
        box = draw_box(height, width, rng, area=area, aspect=aspect)
        image = _decode_bgr(data, min(box.height, box.width) // size)
        box = _scaled(box, image.shape[0] / height, image.shape[1] / width)
    else:
        image = _decode_bgr(data)
        box = draw_box(*image.shape[:2], rng, area=area, aspect=aspect)
    window = image[box.top : box.top + box.height, box.left : box.left + box.width]
    result = _resize_antialiased(window, size) if antialias else cv2.resize(window, (size, size))
    result = cv2.cvtColor(result, cv2.COLOR_BGR2RGB, dst=result)  # of the small image: a tenth of the time is saved
    return cv2.flip(result, 1) if flip and rng.random() < 0.5 else result


def _resize_antialiased(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear where it grows; where it shrinks, four bilinear samples a pixel are averaged.

    Twice as fast as OpenCV's area averaging, whose fast path is for whole factors, and a little closer to Pillow.
    """
    height, width = image.shape[:2]
    if height * width <= size * size:
        return cv2.resize(image, (size, size))
    if max(height, width) > 4 * size:  # the four samples would leave pixels out
        smaller = (min(width, 2 * size), min(height, 2 * size))
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    finer = cv2.resize(image, (2 * size, 2 * size))
    return cv2.resize(finer, (size, size), interpolation=cv2.INTER_AREA)


def _decode_bgr(data: bytes, factor: int = 1) -> np.ndarray:
    """Decodes at the smallest of 1/1, 1/2, 1/4 and 1/8 that is at least 1/factor; channels in OpenCV's order."""
    return decode_bgr(data, next((flag for step, flag in _REDUCED.items() if step <= factor), cv2.IMREAD_COLOR))


def _scaled(box: Box, vertical: float, horizontal: float) -> Box:
    top, bottom = round(box.top * vertical), round((box.top + box.height) * vertical)
    left, right = round(box.left * horizontal), round((box.left + box.width) * horizontal)
    return Box(top, left, bottom - top, right - left)
