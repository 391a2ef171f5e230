"""Decoding and augmentation of segmentation examples: NumPy and OpenCV, no state.

An image is uint8 (H, W, 3) RGB and its mask uint8 (H, W) class indices. The random functions draw from
the generator they are given and from nothing else. The order of TF DeepLab's recipe is scale, pad, crop, flip
(github.com/tensorflow/models, research/deeplab/input_preprocess.py).
"""

import io

import cv2
import numpy as np
from PIL import Image

from flax_mnv2.data.encoded_image import check_encoded
from flax_mnv2.errors import DataError

Pair = tuple[np.ndarray, np.ndarray]

IMAGE_PADDING = 127  # TF DeepLab pads with its mean pixel, 127.5; uint8 has no half
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_image(data: bytes) -> np.ndarray:
    """Decode JPEG, PNG, WebP or BMP to uint8 (H, W, 3) RGB; grey and CMYK become RGB, alpha is dropped.

    EXIF orientation is ignored: masks are drawn over the pixels as they are stored.

    Raises:
      DataError: the bytes are not an image, not a whole one, or it is too large (``encoded_image.check_encoded``).
    """
    image = decode_bgr(data)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def decode_bgr(data: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """As :func:`decode_image`, with channels in OpenCV's order, at the size that ``flag`` says.

    Raises:
      DataError: as :func:`decode_image`.
    """
    try:
        check_encoded(data)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except (DataError, cv2.error) as error:
        raise DataError(f"not a readable JPEG or PNG image ({error}). Replace the file") from error
    if image is None:
        raise DataError("not a readable JPEG or PNG image (its data is damaged or cut short). Replace the file")
    return image


def decode_mask(data: bytes) -> np.ndarray:
    """Decode a PNG mask to uint8 (H, W) class indices; palette indices are kept (OpenCV would colour them).

    Raises:
      DataError: the bytes are not a PNG image, it is too large, or not of one channel with at most 8 bits.
    """
    try:
        check_encoded(data)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mode, mask = image.mode, np.array(image)
    except Exception as error:  # Pillow's readers raise many types
        raise DataError(f"not a readable PNG mask ({error or type(error).__name__}). Replace the file") from error
    if mode not in ("1", "L", "P"):
        raise DataError(
            "expected a mask of one 8-bit channel (grey or palette PNG) whose pixel values are class "
            f"indices, found mode {mode} with shape {mask.shape}. Convert colours to class indices"
        )
    return mask.astype(np.uint8, copy=False)


def check_mask(mask: np.ndarray, size: tuple[int, int], *, num_classes: int | None, ignore_label: int) -> None:
    """Make sure that a mask fits its image and holds classes.

    Args:
      mask: uint8 (H, W).
      size: height and width of its image.
      num_classes: values from 0 on that are classes; None takes any.
      ignore_label: the value without a class.

    Raises:
      DataError: it has another size, or other values; the first of them are named.
    """
    if mask.shape != size:
        raise DataError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]} (width x height). Replace one"
        )
    if num_classes is None:
        return
    # Two passes of vector instructions; a histogram, or a table to look values up in, takes five times as long.
    allowed = np.count_nonzero(mask == ignore_label) if ignore_label >= num_classes else 0
    if np.count_nonzero(mask >= num_classes) != allowed:
        wrong = [value for value in np.unique(mask).tolist() if value >= num_classes and value != ignore_label]
        raise DataError(
            f"the mask has {'the values ' if len(wrong) > 1 else 'the value '}{', '.join(map(str, wrong[:8]))}"
            f"{' …' if len(wrong) > 8 else ''}, expected 0 … {num_classes - 1} or the ignore label {ignore_label}. "
            "Correct the mask, or the number of classes"
        )


def random_scale(
    image: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    *,
    min_scale: float,
    max_scale: float,
    step: float,
) -> Pair:
    """Resize both by one random factor: bilinear image, nearest mask, half-pixel centres in both.

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
    """Extend to at least ``size`` (height, width) at the bottom and right; larger sides stay as they are."""
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
    """A window of ``size`` (height, width) at a uniform position; views, nothing is copied.

    The image must be at least that large: :func:`pad_to` first.
    """
    top = rng.integers(mask.shape[0] - size[0] + 1)
    left = rng.integers(mask.shape[1] - size[1] + 1)
    window = np.s_[top : top + size[0], left : left + size[1]]
    return image[window], mask[window]


def random_flip(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    """Mirror left to right with probability one half; views, nothing is copied."""
    return (image[:, ::-1], mask[:, ::-1]) if rng.random() < 0.5 else (image, mask)
