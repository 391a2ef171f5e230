"""Crops for training classifiers: Inception's, as torchvision's ``RandomResizedCrop`` draws them, and CIFAR's.

NumPy and OpenCV, no state; everything random is drawn from the generator that is given.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from flax_mnv2.data.decode import decode_bgr, decode_image

AREA = (0.08, 1.0)  # of the image; TF-slim's recipe has (0.05, 1.0)
ASPECT = (3 / 4, 4 / 3)  # width / height
ATTEMPTS = 10


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
    """Returns a window of an image: area uniform, aspect uniform in its logarithm, position uniform.

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
    as_stored: bool = False,
) -> np.ndarray:
    """Returns a resized window (Szegedy et al., "Going deeper with convolutions") of an encoded image.

    It is uint8 (size, size, 3) RGB. ``area`` is the smallest and largest part of the image, ``aspect`` the smallest and
    largest width / height; ``flip`` mirrors half of the examples; ``antialias`` averages over pixels where the window
    shrinks, as Pillow does and TF-slim does not; ``as_stored`` is that of ``decode_image``. A DataError where the image
    cannot be decoded.
    """
    image = decode_bgr(data, as_stored=as_stored)
    box = draw_box(*image.shape[:2], rng, area=area, aspect=aspect)
    window = image[box.top : box.top + box.height, box.left : box.left + box.width]
    result = resize_antialiased(window, (size, size)) if antialias else cv2.resize(window, (size, size))
    result = cv2.cvtColor(result, cv2.COLOR_BGR2RGB, dst=result)  # of the small image: a tenth of the time is saved
    return cv2.flip(result, 1) if flip and rng.random() < 0.5 else result


def decode_pad_crop(
    data: bytes, rng: np.random.Generator, *, size: int, padding: int, flip: bool, as_stored: bool = False
) -> np.ndarray:
    """Returns uint8 (size, size, 3) RGB of an encoded image by CIFAR's recipe.

    The image is resized to ``size`` on its shorter side (bilinear; averaging where it shrinks), laid on black with
    ``padding`` on each side, cropped anywhere, and with ``flip`` mirrored half of the time; ``as_stored`` is
    ``decode_image``'s.
    """
    image = decode_image(data, as_stored=as_stored)
    scale = size / min(image.shape[:2])
    width, height = (max(size, round(side * scale)) for side in (image.shape[1], image.shape[0]))
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    image = cv2.copyMakeBorder(image, *(padding,) * 4, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    image = image[top : top + size, left : left + size]
    return np.ascontiguousarray(image[:, ::-1] if flip and rng.random() < 0.5 else image)


def resize_antialiased(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes to (height, width): bilinear where it grows; where it shrinks, four bilinear samples are averaged.

    Twice as fast as OpenCV's area averaging, whose fast path is for whole factors, and a little closer to Pillow.
    """
    (height, width), (rows, columns) = image.shape[:2], size
    if height * width <= rows * columns:
        return cv2.resize(image, (columns, rows))
    if height > 4 * rows or width > 4 * columns:  # the four samples would leave pixels out
        smaller = (min(width, 2 * columns), min(height, 2 * rows))
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    finer = cv2.resize(image, (2 * columns, 2 * rows))
    return cv2.resize(finer, (columns, rows), interpolation=cv2.INTER_AREA)
