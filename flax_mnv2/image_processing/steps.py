"""The steps between an image and the model's input, and from logits to labels: NumPy in, NumPy out.

Each repeats the arithmetic of transformers' Pillow backend operation by operation, types and order included,
so that results agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from flax_mnv2.errors import DataError

MAX_PIXELS = 2**28  # of one resized or cropped image: 0.8 GB of RGB bytes, far above any use
ROWS_AT_ONCE = 64  # of upsampled logits in memory


def resized_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Returns (height, width) that ``size`` asks for; the longer side is truncated, as in Hugging Face's."""
    if "height" in size:
        return size["height"], size["width"]
    short = size["shortest_edge"]
    long = int(short * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def resize_picture(image: np.ndarray, size: Mapping[str, int], resample: int, name: str) -> np.ndarray:
    """Resizes with Pillow, which knows 8 bits only.

    Floats that are not whole and lie in [0, 1] are cut to 256 levels on the way, and come back as float32 in
    [0, 1]. Whole numbers in [0, 255], of whatever type, become uint8; so does a float image of zeros and ones only.
    Raises a DataError for values outside these ranges, and for a result beyond ``MAX_PIXELS``.
    """
    height, width = _checked_size(image.shape, size, name)
    unit_range = image.dtype != np.uint8 and _is_unit_range(image, name)
    if unit_range:
        image = (image.astype(np.float64) * 255).astype(np.float32)
    if image.dtype == np.uint8 and image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.astype(np.uint8, copy=False)))
    resized = np.asarray(picture.resize((width, height), resample))
    return rescale(resized, 1 / 255) if unit_range else resized


def resize_map(labels: np.ndarray, size: Mapping[str, int], name: str) -> np.ndarray:
    """Resizes (H, W) int32 labels to the nearest one; no new label appears."""
    height, width = _checked_size(labels.shape, size, name)
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def center_crop(image: np.ndarray, size: Mapping[str, int]) -> np.ndarray:
    """Cuts (H, W, …) to ``size`` around its centre; where it is too small, zeros are put around it."""
    source, target = zip(
        *(_crop_slices(have, want) for have, want in zip(image.shape, (size["height"], size["width"]), strict=False)),
        strict=True,
    )
    if image.shape[0] >= size["height"] and image.shape[1] >= size["width"]:
        return image[source]
    cropped = np.zeros((size["height"], size["width"], *image.shape[2:]), image.dtype)
    cropped[target] = image[source]
    return cropped


def rescale(image: np.ndarray, factor: float) -> np.ndarray:
    """Returns ``image × factor``, multiplied in float64, as float32."""
    return (image.astype(np.float64) * factor).astype(np.float32)


def normalize(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Returns ``(image - mean) / std`` per channel, in the image's float type; integers in float32."""
    dtype = image.dtype if image.dtype.kind == "f" else np.float32
    return (image.astype(dtype, copy=False) - np.array(mean, dtype)) / np.array(std, dtype)


def reduce_labels(labels: np.ndarray) -> np.ndarray:
    """Shifts labels: background 0 becomes 255 (ignored) and every other label one less; 255 stays."""
    reduced = np.where(labels == 0, 255, labels) - 1
    return np.where(reduced == 254, 255, reduced)


def label_map(logits: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Returns the class of the largest of the logits (h, w, C) per pixel, the first of equal ones, as int64.

    With a ``size`` (H, W) they are upsampled to it first, as ``upsample`` does, a few rows at a time.
    """
    if size is None:
        return logits.argmax(-1)
    labels = np.empty(size, np.int64)
    for part, rows in _upsampled_rows(logits, size):
        labels[part] = rows.argmax(-1)
    return labels


def upsample(logits: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Returns logits (h, w, C) at a ``size`` (H, W), float32; None leaves them as they are.

    Bilinearly, with half-pixel centres (torch's ``align_corners=False``, no antialiasing).
    """
    if size is None:
        return logits
    upsampled = np.empty((*size, logits.shape[-1]), np.float32)
    for part, rows in _upsampled_rows(logits, size):
        upsampled[part] = rows
    return upsampled


def _upsampled_rows(logits: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
    """Gives the upsampled logits by parts of their height, and which part it is."""
    rows = _interpolate(logits.astype(np.float32, copy=False).swapaxes(0, 1), *_taps(logits.shape[1], size[1]))
    rows = np.ascontiguousarray(rows.swapaxes(0, 1))  # (h, W, C)
    low, high, weight = _taps(logits.shape[0], size[0])
    for start in range(0, size[0], ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        yield part, _interpolate(rows, low[part], high[part], weight[part])


def _taps(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each new position the two old ones it lies between, and the weight of the second."""
    scale = np.float32(length) / np.float32(new_length)
    # One rounding for product and sum, as torch's compiled kernel has it (a fused multiply-add).
    position = (np.float64(scale) * (np.arange(new_length) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    low = np.minimum(position.astype(np.int64), length - 1)
    weight = np.clip(position - low.astype(np.float32), np.float32(0), np.float32(1))
    return low, np.minimum(low + 1, length - 1), weight


def _interpolate(values: np.ndarray, low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mixes rows ``low`` and ``high`` of float32 values, rounding as torch: the first product is fused with the sum."""
    weight = weight.reshape(-1, *[1] * (values.ndim - 1))
    second = values[high] * weight
    return (values[low] * (np.float32(1) - weight).astype(np.float64) + second).astype(np.float32)


def _checked_size(shape: tuple[int, ...], size: Mapping[str, int], name: str) -> tuple[int, int]:
    height, width = resized_size(*shape[:2], size)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{name} of {shape[0]}×{shape[1]} pixels would become {height}×{width}, above {MAX_PIXELS:,} pixels. "
            'Give a smaller size, or size={"height": …, "width": …}.'
        )
    return height, width


def _is_unit_range(image: np.ndarray, name: str) -> bool:
    """Says whether values are fractions of 1 rather than whole numbers up to 255."""
    low, high = image.min(), image.max()
    if low >= 0 and high <= 255:
        if image.dtype.kind != "f" or np.allclose(image, image.astype(np.int64)):
            return False
        if high <= 1:
            return True
    raise DataError(
        f"{name} cannot be resized: expected whole numbers from 0 to 255 or fractions from 0 to 1; found "
        f"{image.dtype} values from {low} to {high}. Scale it, or pass do_resize=False."
    )


def _crop_slices(have: int, want: int) -> tuple[slice, slice]:
    """Returns where to read and where to write along one axis."""
    start, pad = max(0, (have - want) // 2), max(0, math.ceil((want - have) / 2))
    length = min(have, want)
    return slice(start, start + length), slice(pad, pad + length)
