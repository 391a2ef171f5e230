"""Anchors from a data set's own boxes: k-means by IoU (arXiv 1612.08242), and the boxes that anchors reach."""

from __future__ import annotations

import math

import numpy as np

from flax_mnv2.config.detection import Anchors, DetectionSpec

_ATTEMPTS, _MAX_STEPS = 10, 300
_ROWS = 1 << 24  # pairs of boxes and anchors that are compared at once


def box_sizes(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Returns (n, 2) heights and widths in the unit of ``DetectionSpec.anchors``, the image's shorter side.

    Args:
      boxes: (n, 4), corners as fractions of the image.
      image_size: (height, width) of what the network gets, to which images are resized.
    """
    return (boxes[:, 2:] - boxes[:, :2]) * (np.array(image_size) / min(image_size))


def fit_anchors(sizes: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Returns ``count`` anchors (height, width), the small ones first, to which sizes (n, 2) have the largest IoU.

    By k-means, begun by k-means++, on boxes with one centre: the distance is 1 - IoU, a centre the median of its boxes.
    The best of ten attempts is taken. There are fewer anchors where there are fewer different sizes.
    """
    rng = np.random.default_rng(seed)
    count = min(count, len(np.unique(sizes, axis=0)))
    attempts = [_k_means(sizes, _first_centres(sizes, count, rng)) for _ in range(_ATTEMPTS)]
    best = max(attempts, key=lambda centres: size_iou(sizes, centres).max(axis=1).mean())
    return best[np.argsort(np.prod(best, axis=1))]


def _k_means(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    nearest = None
    for _ in range(_MAX_STEPS):
        before, nearest = nearest, size_iou(sizes, centres).argmax(axis=1)
        if before is not None and np.array_equal(before, nearest):
            break
        centres = np.array(
            [
                np.median(sizes[nearest == index], axis=0) if (nearest == index).any() else centre
                for index, centre in enumerate(centres)
            ]
        )
    return centres


def _first_centres(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns sizes that lie apart: each drawn by the square of its distance from those before it."""
    centres = sizes[rng.integers(len(sizes), size=1)]
    while len(centres) < count:
        distance = (1 - size_iou(sizes, centres).max(axis=1)) ** 2
        chosen = rng.choice(len(sizes), p=distance / distance.sum())
        centres = np.concatenate([centres, sizes[chosen : chosen + 1]])
    return centres


def size_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the IoU (n, m) of boxes of sizes (n, 2) and (m, 2) with one centre."""
    common = np.prod(np.minimum(one[:, None], other[None]), axis=-1)
    return common / (np.prod(one, axis=-1)[:, None] + np.prod(other, axis=-1)[None] - common)


def on_maps(anchors: np.ndarray, spec: DetectionSpec) -> Anchors:
    """Returns (height, width) of anchors by map: each is on the map whose anchors are nearest in size.

    A map that none is near to keeps its own.
    """
    scales = [np.mean([math.log(height * width) for height, width in kinds]) for kinds in spec.anchors]
    place = np.abs(np.log(np.prod(anchors, axis=1))[:, None] - scales).argmin(axis=1)
    fitted: list[list[tuple[float, float]]] = [[] for _ in scales]
    for (height, width), index in zip(anchors.tolist(), place, strict=True):
        fitted[index].append((round(height, 4), round(width, 4)))
    return tuple(tuple(new) or old for new, old in zip(fitted, spec.anchors, strict=True))


def best_iou(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Returns the largest IoU of each box with an anchor, (n,).

    Args:
      boxes: (n, 4), corners as fractions of the image.
      anchors: (A, 4), centres and sizes as fractions, as ``make_anchors`` gives them.
    """
    corners = np.concatenate([anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], axis=1)
    areas, best = np.prod(anchors[:, 2:], axis=1), []
    step = max(1, _ROWS // max(len(anchors), 1))
    for start in range(0, len(boxes), step):
        part = boxes[start : start + step, None]
        sides = np.minimum(part[..., 2:], corners[:, 2:]) - np.maximum(part[..., :2], corners[:, :2])
        common = np.prod(np.maximum(sides, 0), axis=-1)
        union = np.prod(part[..., 2:] - part[..., :2], axis=-1) + areas - common
        best.append((common / union).max(axis=1))
    return np.concatenate(best) if best else np.zeros(0)
