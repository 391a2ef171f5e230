"""SSD's random crop, as the TF Object Detection API has it.

The window is that of ``tf.image.sample_distorted_bounding_box``; which boxes stay, and the defaults, are those of
``ssd_random_crop`` (github.com/tensorflow/models, research/object_detection/core/preprocessor.py).
"""

from __future__ import annotations

import numpy as np

from flax_mnv2.data.augment.random_crop import Box

OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # least part of an object in the window, one drawn for each image
WHOLE = 0.15  # of images that stay as they are
AREA = (0.1, 1.0)  # of the image
ASPECT = (0.5, 2.0)  # width / height
ATTEMPTS = 100
_AT_ONCE = 20  # attempts that are made together, which is faster where the first ones fail


def draw_window(
    size: tuple[int, int],
    boxes: np.ndarray,
    rng: np.random.Generator,
    *,
    min_covered: float,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
) -> Box:
    """Returns a window of an image (height, width) that covers ``min_covered`` of at least one box.

    The aspect is uniform in ``aspect``, then the height among those that give an area in ``area``, then the place.
    Windows that do not do are drawn again; after a hundred the whole image is taken. An image without boxes counts as
    one box.

    Args:
      size: of the image.
      boxes: (n, 4), corners as fractions.
      rng: generator of all that is random.
      min_covered: fraction of a box.
      area: smallest and largest, as fractions of the image.
      aspect: smallest and largest width / height.
    """
    height, width = size
    pixels = (np.clip(boxes, 0, 1) * (height, width, height, width)).astype(np.int64)  # rounded down, as in TF
    if not len(pixels):
        pixels = np.array([[0, 0, height, width]])
    pixels = pixels[np.prod(pixels[:, 2:] - pixels[:, :2], axis=1) >= 1]
    for _ in range(ATTEMPTS // _AT_ONCE if len(pixels) else 0):
        windows = _draw(size, aspect, area, rng)
        good = np.flatnonzero(covered(windows[:, None], pixels).max(axis=1) >= min_covered)
        if good.size:
            top, left, bottom, right = map(int, windows[good[0]])
            return Box(top, left, bottom - top, right - left)
    return Box(0, 0, height, width)


def _draw(
    size: tuple[int, int], aspect: tuple[float, float], area: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Returns the corners of windows in pixels, (n, 4), of at most ``_AT_ONCE``: those whose area rounding allows."""
    height, width = size
    smallest, largest = (fraction * height * width for fraction in area)
    aspects = rng.uniform(*aspect, _AT_ONCE)
    rows, most = (np.rint(np.sqrt(pixels / aspects)) for pixels in (smallest, largest))
    widest = np.floor((width + 0.5 - 1e-7) / aspects)
    widest -= np.rint(widest * aspects) > width
    most = np.minimum(np.where(np.rint(most * aspects) > width, widest, most), height)
    rows = np.minimum(rows, most)
    rows += rng.integers((np.maximum(most - rows, 0) + 1).astype(np.int64))
    rows += rows * np.rint(rows * aspects) < smallest
    rows -= rows * np.rint(rows * aspects) > largest
    columns = np.rint(rows * aspects)
    free = np.maximum((height - rows, width - columns), 1).astype(np.int64)
    top, left = rng.integers(free)  # TF leaves out the last place
    right = (smallest <= rows * columns) & (rows * columns <= largest) & (rows <= height) & (columns <= width)
    right &= (rows > 0) & (columns > 0)
    return np.stack([top, left, top + rows, left + columns], axis=1)[right].astype(np.int64)


def corners(window: Box) -> np.ndarray:
    """Returns (y_min, x_min, y_max, x_max) of a window in pixels."""
    return np.array((window.top, window.left, window.top + window.height, window.left + window.width))


def covered(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the fractions of boxes (…, 4) that lie in windows (…, 4); corners in one unit, shapes that broadcast."""
    low, high = np.maximum(boxes[..., :2], windows[..., :2]), np.minimum(boxes[..., 2:], windows[..., 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    return common / np.maximum(np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1), np.finfo(np.float32).tiny)
