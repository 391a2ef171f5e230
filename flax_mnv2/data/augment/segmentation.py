"""Augmentation of segmentation examples: NumPy and OpenCV, no state.

An image is uint8 (H, W, 3) RGB and its mask uint8 (H, W) class indices. The random functions draw from
the generator they are given and from nothing else. The order of TF DeepLab's recipe is scale, pad, crop, flip
(github.com/tensorflow/models, research/deeplab/input_preprocess.py).
"""

import cv2
import numpy as np

Pair = tuple[np.ndarray, np.ndarray]

IMAGE_PADDING = 127  # TF DeepLab pads with its mean pixel, 127.5; uint8 has no half


def random_scale(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, min_scale: float, max_scale: float, step: float
) -> Pair:
    """Resizes both by one random factor: bilinear image, nearest mask, half-pixel centres in both.

    The factor is one of ``min_scale, min_scale + step, … max_scale``, or uniform between them if
    ``step`` is 0. Sizes are rounded down, as in TF DeepLab.
    """
    if step:
        factors = np.linspace(min_scale, max_scale, int((max_scale - min_scale) / step + 1e-6) + 1)
        factor = factors[rng.integers(len(factors))]
    else:
        factor = rng.uniform(min_scale, max_scale)
    height, width = (max(1, int(size * factor + 1e-6)) for size in mask.shape)
    if (height, width) == mask.shape:
        return image, mask
    return (
        cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR),
        cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT),
    )


def pad_to(image: np.ndarray, mask: np.ndarray, *, size: tuple[int, int], ignore_label: int) -> Pair:
    """Extends to at least ``size`` (height, width) at the bottom and right; larger sides stay as they are."""
    height, width = mask.shape
    shape = (max(height, size[0]), max(width, size[1]))
    if shape == mask.shape:
        return image, mask
    padded_image = np.full((*shape, 3), IMAGE_PADDING, np.uint8)
    padded_image[:height, :width] = image
    padded_mask = np.full(shape, ignore_label, np.uint8)
    padded_mask[:height, :width] = mask
    return padded_image, padded_mask


def random_crop(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, size: tuple[int, int]) -> Pair:
    """Returns a window of ``size`` (height, width) at a uniform position; views, nothing is copied.

    The image must be at least that large: :func:`pad_to` first.
    """
    top = rng.integers(mask.shape[0] - size[0] + 1)
    left = rng.integers(mask.shape[1] - size[1] + 1)
    window = np.s_[top : top + size[0], left : left + size[1]]
    return image[window], mask[window]


def random_flip(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    """Mirrors left to right with probability one half; views, nothing is copied."""
    return (image[:, ::-1], mask[:, ::-1]) if rng.random() < 0.5 else (image, mask)
