"""An embedded data set: drawn shapes to segment, for the quickstart and for tests. Nothing is downloaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from flax_mnv2.data.datasets.examples import LocalBuilder
from flax_mnv2.data.datasets.prepared import prepared
from flax_mnv2.data.datasets.records import SegmentationDataset

SHAPES_LABELS = ("background", "disc", "square", "triangle")
SHAPES_IGNORE_LABEL = 255
SHAPES_NUM_EXAMPLES = {"train": 400, "val": 80}

_SEED = 20180113  # the day MobileNetV2 appeared on arXiv; any number would do
_SIZES = (80, 128)  # range of height and of width
_HUES = (0, 60, 120)  # of disc, square, triangle, on OpenCV's circle of 180
_HUE_SPREAD = 14.0  # standard deviation; neighbouring classes overlap beyond about two of them
_CORNERS = {1: 48, 2: 4, 3: 3}
_RADII = {1: (0.16, 0.32), 2: (0.20, 0.38), 3: (0.26, 0.46)}  # of the circle around it; areas are alike


def load(name: str, data: Mapping[str, Any], data_dir: Path) -> SegmentationDataset:
    """Draws the data set unless it is there; see ``registry.Entry.load``."""
    del name, data  # there is only one of it
    return SegmentationDataset.of(prepared(lambda: ShapesSegmentation(data_dir=data_dir), data_dir))


class ShapesSegmentation(LocalBuilder):
    """One to three discs, squares and triangles on a noisy ground, with a thin void border as VOC has.

    Classes differ in form and, less reliably, in hue. Example ``i`` of a split depends on ``i`` alone.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self._segmentation_info(
            description="Drawn discs, squares and triangles on noisy backgrounds, with class masks.",
            labels=SHAPES_LABELS,
            ignore_label=SHAPES_IGNORE_LABEL,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        pairs = {
            name: self._store_pairs(name, self._generate_examples(name, number, count))
            for number, (name, count) in enumerate(SHAPES_NUM_EXAMPLES.items())
        }
        return self._noted(pairs)

    def _generate_examples(self, split: str, stream: int, count: int) -> Iterator[tuple[str, bytes, np.ndarray]]:
        for index in range(count):
            image, mask = draw_example(np.random.default_rng([_SEED, stream, index]))
            encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
            yield f"{split}_{index:04d}", encoded.tobytes(), mask


def draw_example(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws an image, uint8 (H, W, 3) RGB, and its mask, uint8 (H, W); H and W lie in 80 … 128."""
    height, width = rng.integers(_SIZES[0], _SIZES[1] + 1, size=2)
    image = _background(rng, height, width)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, 4)):
        label = int(rng.integers(1, len(SHAPES_LABELS)))
        outline = _outline(rng, label, height, width)
        inside = np.zeros_like(mask)
        cv2.fillPoly(inside, [outline], 1)
        where = inside.astype(bool)
        image[where] = (_colour(rng, label) * _texture(rng, height, width, 0.15))[where]
        mask[where] = label
        cv2.polylines(mask, [outline], isClosed=True, color=SHAPES_IGNORE_LABEL, thickness=2)
    image += rng.normal(0, rng.uniform(2, 10), size=image.shape)
    return cv2.GaussianBlur(np.clip(image, 0, 255).astype(np.uint8), (3, 3), 0), mask


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns a textured gradient between two dull colours, float64 (H, W, 3)."""
    hues, saturations, values = rng.integers(180, size=2), rng.integers(90, size=2), rng.integers(30, 230, size=2)
    first, second = (_rgb(*hsv) for hsv in zip(hues, saturations, values, strict=True))
    direction = rng.normal(size=2)
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    ramp = direction[0] * rows + direction[1] * columns
    ramp = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
    return (first * ramp + second * (1 - ramp)) * _texture(rng, height, width, 0.25)


def _texture(rng: np.random.Generator, height: int, width: int, strength: float) -> np.ndarray:
    """Returns smooth factors around 1, float64 (H, W, 1)."""
    coarse = rng.uniform(-1, 1, size=(8, 8))
    return 1 + strength * cv2.resize(coarse, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)[..., None]


def _colour(rng: np.random.Generator, label: int) -> np.ndarray:
    hue = round(rng.normal(_HUES[label - 1], _HUE_SPREAD)) % 180
    return _rgb(hue, rng.integers(110, 256), rng.integers(110, 256))


def _rgb(hue: int, saturation: int, value: int) -> np.ndarray:
    return cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(float)


def _outline(rng: np.random.Generator, label: int, height: int, width: int) -> np.ndarray:
    """Returns corner points (x, y), int32 (N, 2), of a shape in a random place, size and rotation."""
    corners = _CORNERS[label]
    radius = rng.uniform(*_RADII[label]) * min(height, width)
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
    centre = rng.uniform(0.15, 0.85, size=2) * (width, height)
    return np.rint(centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.int32)
