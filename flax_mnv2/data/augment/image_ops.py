"""The single operations of colour and geometry that augmentation policies are made of.

Each takes an image, uint8 (H, W, 3) RGB, and returns one of the same shape. Nothing is random, and the input is never
written to; where nothing changes it may be returned itself. Those that move pixels take ``interpolation``, a key of
:data:`INTERPOLATIONS`, and ``fill``, the colour of what comes from outside. All follow torchvision on Pillow images,
which Pillow's ImageEnhance, ImageOps and ``Image.transform`` stand behind. How close each one is, on any image:

- brightness, sharpness, posterize, solarize, solarize_add, invert, autocontrast, equalize: the same bits.
- contrast: the same bits, unless the mean grey lies on the border between two levels (then at most 1 times the
  factor's distance from 1, rounded up). OpenCV rounds the grey of one pixel in a thousand otherwise than Pillow.
- saturation: such a pixel's grey is off by 1, its colour by the factor's distance from 1, rounded up.
- hue: at most 1 from torchvision on tensors, which computes in floating point. Pillow rounds hue and saturation to
  8 bits in between, and is itself a level or so from that on average.
- rotate, shear, translate: with "nearest" the same pixels, but for a few of those (under 2 %) whose place in the source
  lies on the border between two. "bilinear" is at most 2 from Pillow, which rounds down. The curve of "bicubic" is
  OpenCV's (-0.75; Pillow has -1), so noise comes out a little softer. Both blend the outermost pixels with the fill
  where Pillow repeats them.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

Colour = tuple[int, int, int]

BLACK: Colour = (0, 0, 0)
INTERPOLATIONS = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

_LEVELS = np.arange(256, dtype=np.float32)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH
_ROUND_DOWN = -0.5 + 1e-4  # added before rounding to the nearest; the rest is above the error of float32


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies every value by ``factor``: 0 is black, 1 the image, 2 twice as bright."""
    return _by_table(image, _LEVELS * np.float32(factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies distances from the mean grey by ``factor``: 0 is that grey everywhere, 1 the image."""
    mean = np.float32(math.floor(cv2.mean(_grey(image))[0] + 0.5))
    return _by_table(image, mean + np.float32(factor) * (_LEVELS - mean))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies distances from each pixel's grey by ``factor``: 0 is a grey picture, 1 the image."""
    return _blend(cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), image, factor)


def hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Shifts the hue by ``turns`` of the colour circle: 1/3 makes red green, any whole number changes nothing."""
    pixels = image.astype(np.float32)  # one array for all steps: fresh ones of this size cost more than the sums
    cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, dst=pixels)
    pixels[..., 0] += 360 * (turns % 1)
    cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB, dst=pixels)
    return cv2.convertScaleAbs(pixels)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies distances from the smoothed image by ``factor``: 0 is blurred, 1 the image, 2 sharpened.

    The outermost pixels have no whole neighbourhood and stay.
    """
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    smooth[[0, -1]] = image[[0, -1]]
    smooth[:, [0, -1]] = image[:, [0, -1]]
    return _blend(smooth, image, factor)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the ``bits`` highest bits of every value, 0 (black) to 8 (the image)."""
    return image & np.uint8(0xFF00 >> bits & 0xFF)


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts the values that are at least ``threshold``: 0 inverts all, 256 none."""
    kept = threshold > _LEVELS
    return _by_table(image, np.where(kept, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, amount: int) -> np.ndarray:
    """Adds ``amount``, up to white, to the values below 128."""
    return _by_table(image, np.where(_LEVELS < 128, _LEVELS + amount, _LEVELS))


def invert(image: np.ndarray) -> np.ndarray:
    """Gives 255 minus every value."""
    return cv2.bitwise_not(image)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel so that its least value becomes 0 and its greatest 255; a constant channel stays."""
    return _by_table(image, np.stack([_stretching(channel) for channel in cv2.split(image)], axis=-1))


def equalize(image: np.ndarray) -> np.ndarray:
    """Maps each channel so that its values become as evenly frequent as they can; a constant channel stays."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]) for channel in range(3)]
    return _by_table(image, np.stack([_equalizing(count.ravel().astype(np.int64)) for count in counts], axis=-1))


def rotate(image: np.ndarray, degrees: float, **warp: Any) -> np.ndarray:
    """Turns counter-clockwise about the centre."""
    height, width = image.shape[:2]
    # Rounded as in Pillow, so that right angles are exact.
    cos, sin = round(math.cos(math.radians(degrees)), 15), round(math.sin(math.radians(degrees)), 15)
    shift_x = (width - cos * width + sin * height) / 2
    shift_y = (height - sin * width - cos * height) / 2
    return _warp(image, ((cos, -sin, shift_x), (sin, cos, shift_y)), **warp)


def shear_x(image: np.ndarray, slope: float, **warp: Any) -> np.ndarray:
    """Moves each row left by ``slope`` times its distance from the upper edge."""
    return _warp(image, ((1, slope, 0), (0, 1, 0)), **warp)


def shear_y(image: np.ndarray, slope: float, **warp: Any) -> np.ndarray:
    """Moves each column up by ``slope`` times its distance from the left edge."""
    return _warp(image, ((1, 0, 0), (slope, 1, 0)), **warp)


def translate_x(image: np.ndarray, pixels: float, **warp: Any) -> np.ndarray:
    """Moves the picture right by ``pixels``."""
    return _translate(image, pixels, 0, **warp)


def translate_y(image: np.ndarray, pixels: float, **warp: Any) -> np.ndarray:
    """Moves the picture down by ``pixels``."""
    return _translate(image, 0, pixels, **warp)


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W), with the weights of ITU-R 601."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _by_table(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Looks every value up in a table (256,), or (256, 3) by channel, cut to 0..255 and rounded down."""
    entries = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(image, entries.reshape(1, 256, -1))


def _blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Along the line from ``start`` (0) through the image (1) and beyond, cut to 0..255 and rounded down."""
    return cv2.addWeighted(image, factor, start, 1 - factor, _ROUND_DOWN)


def _stretching(channel: np.ndarray) -> np.ndarray:
    low, high, _, _ = cv2.minMaxLoc(channel)
    if low == high:
        return _LEVELS.astype(np.float64)
    scale = 255 / (high - low)
    return np.arange(256) * scale - low * scale  # in Pillow's order of operations


def _equalizing(counts: np.ndarray) -> np.ndarray:
    """From the counts of 256 values, int64; Pillow's integer arithmetic."""
    step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    if step == 0:  # a constant channel, or fewer pixels than levels
        return np.arange(256)
    return (step // 2 + counts.cumsum() - counts) // step


def _translate(image: np.ndarray, right: float, down: float, *, fill: Colour = BLACK, **warp: Any) -> np.ndarray:
    height, width = image.shape[:2]
    if right % 1 or down % 1 or abs(right) >= width or abs(down) >= height:
        return _warp(image, ((1, 0, -right), (0, 1, -down)), fill=fill, **warp)
    # By whole pixels: a window with a border, a tenth of the time.
    before_x, after_x = max(int(right), 0), max(-int(right), 0)
    before_y, after_y = max(int(down), 0), max(-int(down), 0)
    kept = image[after_y : height - before_y, after_x : width - before_x]
    return cv2.copyMakeBorder(kept, before_y, after_y, before_x, after_x, cv2.BORDER_CONSTANT, value=fill)


def _warp(image: np.ndarray, matrix: tuple, *, fill: Colour = BLACK, interpolation: str = "nearest") -> np.ndarray:
    """Takes each pixel from where ``matrix`` (2, 3) puts it, in coordinates whose origin is the image's corner."""
    to_source = np.array(matrix, np.float64)
    to_source[:, 2] += (to_source[:, 0] + to_source[:, 1] - 1) / 2  # OpenCV's origin is the first pixel's centre
    height, width = image.shape[:2]
    flags = INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, to_source, (width, height), flags=flags, borderValue=fill)
