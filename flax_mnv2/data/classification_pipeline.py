"""Batches from encoded classification examples."""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from flax_mnv2.data.augment import PILLOW_ERRORS
from flax_mnv2.data.pipeline import Batch, BatchIterator, Source, every_example_once, shuffled_batches
from flax_mnv2.errors import DataError


def classification_train_batches(
    source: Source,
    *,
    transform: Callable[[bytes, np.random.Generator], np.ndarray],
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
    prefetch_buffer_size: int = 4,
    repeats: int = 1,
) -> BatchIterator:
    """Endless shuffled, augmented batches; row r of batch k depends on (seed, k, r) alone.

    Args:
      source: the split, of :class:`~flax_mnv2.data.load.LabeledExample`.
      transform: encoded image and a generator → uint8 (h, w, 3), all of one size; it can be pickled.
      batch_size: as in :func:`~flax_mnv2.data.pipeline.shuffled_batches`, with all that follow.
      seed: of order and augmentation.
      start_step: number of batches to leave out.
      process_index: which part of every global batch to give.
      process_count: number of parts.
      num_threads: threads that make batches, in each worker.
      num_workers: processes that make batches.
      prefetch_buffer_size: batches made in advance, in each worker.
      repeats: times that a batch holds each of its images, transformed anew.

    Returns:
      Dicts of ``image`` uint8 (B/P, h, w, 3), ``label`` int32 (B/P,) and ``index`` int64 (B/P,), the position in the
      split.

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty; while iterating: an image cannot be decoded (it is named).
    """
    return shuffled_batches(
        _TrainExample(source, transform),
        source,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
        repeats=repeats,
    )


def classification_eval_batches(
    source: Source,
    *,
    transform: Callable[[Image.Image], np.ndarray],
    size: tuple[int, int],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
    prefetch_buffer_size: int = 4,
) -> BatchIterator:
    """Every example exactly once, in order.

    The last global batch is filled up with black rows whose mask is False, label 0 and index -1.

    Args:
      source: the split, of :class:`~flax_mnv2.data.load.LabeledExample`.
      transform: decoded RGB image → uint8 (height, width, 3); it can be pickled.
      size: height and width that ``transform`` gives.
      batch_size: as in :func:`~flax_mnv2.data.pipeline.every_example_once`, with all that follow.
      process_index: which part of every global batch to give.
      process_count: number of parts.
      num_threads: threads that make batches, in each worker.
      num_workers: processes that make batches.
      prefetch_buffer_size: batches made in advance, in each worker.

    Returns:
      Dicts of ``image`` uint8 (B/P, h, w, 3), ``label`` int32 (B/P,), ``mask`` bool (B/P,), ``index`` int64
      (B/P,), the position in the split, and ``file_name`` str (B/P,).

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty; while iterating: an image cannot be decoded (it is named).
    """
    return every_example_once(
        _EvalExample(source, transform, tuple(size)),
        source,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
    )


def decode_rgb(data: bytes) -> Image.Image:
    """An image file, decoded as Pillow does: grey, CMYK and palette become RGB, EXIF orientation is ignored.

    Pillow, because it is what evaluations elsewhere decode with, and refuses files that are cut short; OpenCV gives
    the same pixels for RGB and grey JPEG, 4 % faster.

    Raises:
      DataError: the bytes are not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except PILLOW_ERRORS as error:
        raise DataError(f"corrupt image ({error}). Replace it.") from error


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    source: Source
    transform: Callable[[bytes, np.random.Generator], np.ndarray]

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        example = self.source[index]
        try:
            image = self.transform(example["image"], rng)
        except DataError as error:
            raise DataError(f"Example {example['file_name']!r}: {error}") from error
        return {"image": image, "label": np.int32(example["label"]), "index": np.int64(index)}


@dataclasses.dataclass(frozen=True)
class _EvalExample:
    source: Source
    transform: Callable[[Image.Image], np.ndarray]
    size: tuple[int, int]

    def __call__(self, index: int) -> Batch:
        if index >= len(self.source):
            return self._row(np.zeros((*self.size, 3), np.uint8), label=0, position=-1, file_name="")
        example = self.source[index]
        try:
            image = self.transform(decode_rgb(example["image"]))
        except DataError as error:
            raise DataError(f"Example {example['file_name']!r}: {error}") from error
        return self._row(image, label=example["label"], position=index, file_name=example["file_name"])

    @staticmethod
    def _row(image: np.ndarray, *, label: int, position: int, file_name: str) -> Batch:
        return {
            "image": image,
            "label": np.int32(label),
            "mask": np.bool_(position >= 0),
            "index": np.int64(position),
            "file_name": np.str_(file_name),
        }
