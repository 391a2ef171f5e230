"""Photos of a folder, as a network takes them, for ``calibrate``."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np

from flax_mnv2.errors import DataError
from flax_mnv2.files import files_below
from flax_mnv2.hub import expand_user
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.image_processing.reading import IMAGE_SUFFIXES

MAX_IMAGES = 512  # of a larger folder, so many from all over it
_BATCH = 8


def find_photos(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Returns up to ``MAX_IMAGES`` image files of a folder and those below it, hidden ones left out.

    Raises:
      DataError: no folder, or no image in it.
    """
    folder = expand_user(folder)
    files = [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        what = "has no image" if folder.is_dir() else "is no folder"
        raise DataError(f"--calibrate takes a folder of images such as the network will see; {folder} {what}.")
    places = np.unique(np.linspace(0, len(files) - 1, min(len(files), MAX_IMAGES)).astype(int))
    return [files[at] for at in places]


def calibration_batches(
    files: list[pathlib.Path], processor: MobileNetV2ImageProcessor, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields all files as normalised pixels, (N, *size, C) float32, all batches of one length.

    Files that are left for the last batch are joined by the first ones.
    """
    length = min(_BATCH, len(files))
    files = files + files[: -len(files) % length]
    for at in range(0, len(files), length):
        yield np.stack([_pixels(file, processor, size) for file in files[at : at + length]])


def _pixels(file: pathlib.Path, processor: MobileNetV2ImageProcessor, size: tuple[int, int]) -> np.ndarray:
    """Cropped as the processor does where that gives the size, else all of the photo resized to it."""
    sides = dict(zip(("height", "width"), size, strict=True))
    crops = processor.do_center_crop and dict(processor.crop_size) == sides
    changes = {} if crops else {"do_resize": True, "size": sides, "do_center_crop": False}
    return processor.preprocess(str(file), **changes).pixel_values[0]
