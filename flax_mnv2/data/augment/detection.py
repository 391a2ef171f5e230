"""Augmentation of images with boxes: NumPy and OpenCV, no state; the boxes follow their pixels.

The random functions draw from the generator they are given and from nothing else.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from flax_mnv2.data.augment import box_crop
from flax_mnv2.data.augment import image_ops as ops
from flax_mnv2.data.augment.random_crop import Box, resize_antialiased
from flax_mnv2.data.augment.segmentation import IMAGE_PADDING

# Strengths of the photometric distortion of SSD's own code (arXiv 1512.02325).
_BRIGHTNESS = 32  # levels, added
_CONTRAST = _SATURATION = (0.5, 1.5)  # factors
_HUE = 18 / 360  # turns of the colour circle


class Picture(NamedTuple):
    """An image, uint8 (H, W, 3) RGB, and its n boxes.

    ``boxes`` (n, 4) are corners (y_min, x_min, y_max, x_max) as fractions of the image; ``ignored`` (n,) bool, those
    that are neither objects nor background; ``rows`` (n,) which of the example's boxes these are.
    """

    image: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray
    rows: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionAugment:
    """What happens to a training image: zoom out, crop, resize, colours, flip, in this order; it can be pickled.

    Attributes:
      size: (height, width) of what the network gets.
      keep_aspect: fill up with grey at the bottom and right, instead of stretching.
      flip: mirror half of the images.
      crop: ``"ssd"``, a random window around boxes as TF draws it (:mod:`box_crop`), or ``"none"``.
      crop_overlaps: least part of a box in the window, of one box at least and of all that stay; one of these is drawn
        for each image.
      crop_whole: fraction of images that are not cropped.
      crop_area: smallest and largest window, as fractions of the image.
      crop_aspect: smallest and largest width / height of it.
      expand: half of the images are laid on a grey one whose sides are up to so many times as long; 1 is none.
      photometric: change brightness, contrast, saturation and hue of half of the images each, by SSD's strengths.
    """

    size: tuple[int, int]
    keep_aspect: bool = False
    flip: bool = True
    crop: str = "ssd"
    crop_overlaps: tuple[float, ...] = box_crop.OVERLAPS
    crop_whole: float = box_crop.WHOLE
    crop_area: tuple[float, float] = box_crop.AREA
    crop_aspect: tuple[float, float] = box_crop.ASPECT
    expand: float = 1.0
    photometric: bool = False

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator, *, ignored: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the image, uint8 (*size, 3), the boxes that are left, (k, 4), and which rows these were, (k,).

        Args:
          image: uint8 (H, W, 3) RGB.
          boxes: (n, 4), corners as fractions of the image.
          rng: generator of all that is random.
          ignored: (n,) bool, those that are neither objects nor background.
        """
        ignored = np.zeros(len(boxes), bool) if ignored is None else ignored
        picture = Picture(image, boxes, ignored, np.arange(len(boxes)))
        if self.expand > 1 and rng.random() < 0.5:
            picture = random_expand(picture, rng, max_factor=self.expand)
        if self.crop == "ssd" and rng.random() >= self.crop_whole:
            overlap = self.crop_overlaps[rng.integers(len(self.crop_overlaps))]
            picture = random_crop(picture, rng, overlap=overlap, area=self.crop_area, aspect=self.crop_aspect)
        picture = letterbox(picture, self.size) if self.keep_aspect else stretch(picture, self.size)
        if self.photometric:  # of the small image: it is the same for each pixel
            picture = picture._replace(image=distort_colors(picture.image, rng))
        if self.flip and rng.random() < 0.5:
            picture = flip(picture)
        return np.ascontiguousarray(picture.image), picture.boxes, picture.rows


def flip(picture: Picture) -> Picture:
    """Mirrors left to right."""
    y_min, x_min, y_max, x_max = picture.boxes.T
    boxes = np.stack([y_min, 1 - x_max, y_max, 1 - x_min], axis=1)
    return picture._replace(image=cv2.flip(picture.image, 1), boxes=boxes)


def random_crop(
    picture: Picture,
    rng: np.random.Generator,
    *,
    overlap: float,
    area: tuple[float, float] = box_crop.AREA,
    aspect: tuple[float, float] = box_crop.ASPECT,
) -> Picture:
    """Takes a window that holds ``overlap`` of at least one box; those with less in it go, see :func:`crop_to`."""
    size = picture.image.shape[:2]
    window = box_crop.draw_window(size, picture.boxes, rng, min_covered=overlap, area=area, aspect=aspect)
    return crop_to(picture, window, overlap=overlap)


def crop_to(picture: Picture, window: Box, *, overlap: float) -> Picture:
    """Returns a window of a picture (the image is a view), with the boxes of which it holds ``overlap``, clipped.

    Ignored boxes stay if any of them is in the window: what they cover is no background.
    """
    sides, corners = np.array(picture.image.shape[:2] * 2, np.float64), box_crop.corners(window)
    # As float32 fractions, so that a box at the window's edge is not beyond it by rounding.
    part = box_crop.covered((corners / sides).astype(np.float32), picture.boxes.astype(np.float32))
    kept = (part > 0) & ((part >= overlap) | picture.ignored)
    boxes = (picture.boxes[kept] * sides - (window.top, window.left) * 2) / ((window.height, window.width) * 2)
    return Picture(
        picture.image[window.top : window.top + window.height, window.left : window.left + window.width],
        np.clip(boxes, 0, 1).astype(picture.boxes.dtype),
        picture.ignored[kept],
        picture.rows[kept],
    )


def random_expand(picture: Picture, rng: np.random.Generator, *, max_factor: float) -> Picture:
    """Lays the picture anywhere on a grey one whose sides are 1 to ``max_factor`` times as long (SSD's zoom out)."""
    height, width = picture.image.shape[:2]
    factor = rng.uniform(1, max_factor)
    rows, columns = int(height * factor), int(width * factor)
    top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
    return _on_canvas(picture, (rows, columns), top=top, left=left)


def stretch(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resizes to (height, width) whatever the aspect; boxes, being fractions, stay."""
    if picture.image.shape[:2] == tuple(size):
        return picture
    return picture._replace(image=resize_antialiased(picture.image, size))


def letterbox(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resizes to fit into (height, width) with its aspect, and fills up with grey at the bottom and right.

    The picture's part of each side is ``fitting(its size, size)`` / ``size``: boxes in it are divided by that.
    """
    fitted = fitting(picture.image.shape[:2], size)
    return _on_canvas(stretch(picture, fitted), size, top=0, left=0)


def fitting(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Returns the largest (height, width) in the aspect of an image that fits into ``size``; at least one pixel."""
    scale = min(size[0] / image_size[0], size[1] / image_size[1])
    return max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))


def distort_colors(image: np.ndarray, rng: np.random.Generator, *, probability: float = 0.5) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with this probability, as SSD does.

    Contrast comes second or last. Saturation is a distance from grey here, a factor of HSV's in SSD's code.
    """
    chosen = rng.random(4) < probability
    brightness = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    contrast, saturation, hue = rng.uniform(*_CONTRAST), rng.uniform(*_SATURATION), rng.uniform(-_HUE, _HUE)
    contrast_first = rng.random() < 0.5
    if chosen[0]:
        image = cv2.add(image, (brightness,) * 4)
    if chosen[1] and contrast_first:
        image = ops.brightness(image, contrast)  # SSD's contrast is a plain factor
    if chosen[2]:
        image = ops.saturation(image, saturation)
    if chosen[3]:
        image = ops.hue(image, hue)
    if chosen[1] and not contrast_first:
        image = ops.brightness(image, contrast)
    return image


def _on_canvas(picture: Picture, size: tuple[int, int], *, top: int, left: int) -> Picture:
    height, width = picture.image.shape[:2]
    if (height, width) == tuple(size):
        return picture
    canvas = np.full((*size, 3), IMAGE_PADDING, np.uint8)
    canvas[top : top + height, left : left + width] = picture.image
    boxes = (picture.boxes * ((height, width) * 2) + (top, left) * 2) / (tuple(size) * 2)
    return picture._replace(image=canvas, boxes=boxes.astype(picture.boxes.dtype))
