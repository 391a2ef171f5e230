"""Batches from encoded classification examples."""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from flax_mnv2.data.encoded_image import FORMATS, check_encoded
from flax_mnv2.data.loader.bad_examples import STRICT, BadExampleError, FaultRules
from flax_mnv2.data.loader.batches import Batch, BatchIterator, Source, every_example_once, shuffled_batches
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
    num_classes: int | None = None,
    rules: FaultRules = STRICT,
    repeats: int = 1,
) -> BatchIterator:
    """Endless shuffled, augmented batches; row r of batch k depends on (seed, k, r) alone.

    Args:
      source: the split, of :class:`~flax_mnv2.data.datasets.records.LabeledExample`.
      transform: encoded image and a generator → uint8 (h, w, 3), all of one size; it can be pickled.
      batch_size: as in :func:`~flax_mnv2.data.loader.batches.shuffled_batches`, with all that follow.
      seed: of order and augmentation.
      start_step: number of batches to leave out.
      process_index: which part of every global batch to give.
      process_count: number of parts.
      num_threads: threads that make batches, in each worker.
      num_workers: processes that make batches.
      prefetch_buffer_size: batches made in advance, in each worker.
      num_classes: labels are 0 … ``num_classes - 1``; None takes any.
      rules: for damaged examples, which are replaced by those after them in the split, and for waits.
      repeats: times that a batch holds each of its images, transformed anew.

    Returns:
      Dicts of ``image`` uint8 (B/P, h, w, 3), ``label`` int32 (B/P,) and ``index`` int64 (B/P,), the position in the
      split.

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty; while iterating: an example is damaged (it is named; see ``rules``), a worker was
        killed, or a batch took too long.
    """
    return shuffled_batches(
        _TrainExample(source, transform, num_classes),
        source,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
        rules=rules,
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
    num_classes: int | None = None,
    rules: FaultRules = STRICT,
) -> BatchIterator:
    """Every example exactly once, in order.

    The last global batch is filled up with black rows whose mask is False, label 0 and index -1.

    Args:
      source: the split, of :class:`~flax_mnv2.data.datasets.records.LabeledExample`.
      transform: decoded RGB image → uint8 (height, width, 3); it can be pickled.
      size: height and width that ``transform`` gives.
      batch_size: as in :func:`~flax_mnv2.data.loader.batches.every_example_once`, with all that follow.
      process_index: which part of every global batch to give.
      process_count: number of parts.
      num_threads: threads that make batches, in each worker.
      num_workers: processes that make batches.
      prefetch_buffer_size: batches made in advance, in each worker.
      num_classes: as in :func:`classification_train_batches`.
      rules: for damaged examples, whose rows become fillers, and for waits.

    Returns:
      Dicts of ``image`` uint8 (B/P, h, w, 3), ``label`` int32 (B/P,), ``mask`` bool (B/P,), ``index`` int64
      (B/P,), the position in the split, and ``file_name`` str (B/P,).

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty; while iterating: an example is damaged (it is named; see ``rules``), a worker was
        killed, or a batch took too long.
    """
    return every_example_once(
        _EvalExample(source, transform, tuple(size), num_classes),
        source,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
        rules=rules,
    )


def decode_rgb(data: bytes) -> Image.Image:
    """An image file, decoded as Pillow does: grey, CMYK and palette become RGB, EXIF orientation is ignored.

    Pillow, because it is what evaluations elsewhere decode with, and refuses files that are cut short; OpenCV gives
    the same pixels for RGB and grey JPEG, 4 % faster.

    Raises:
      DataError: the bytes are not a whole image, or one too large (``encoded_image.check_encoded``).
    """
    try:
        check_encoded(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's readers raise many types
        raise DataError(f"corrupt image ({error or type(error).__name__}). Replace it") from error


def _check_label(label: int, num_classes: int | None) -> None:
    if num_classes is not None and not 0 <= label < num_classes:
        raise DataError(f"its label is {label}, expected 0 … {num_classes - 1}. Prepare the data set again")


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    source: Source
    transform: Callable[[bytes, np.random.Generator], np.ndarray]
    num_classes: int | None

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        example = self.source[index]
        try:
            _check_label(example["label"], self.num_classes)
            image = self.transform(example["image"], rng)
        except DataError as error:
            raise BadExampleError(example["file_name"], str(error)) from error
        return {"image": image, "label": np.int32(example["label"]), "index": np.int64(index)}


@dataclasses.dataclass(frozen=True)
class _EvalExample:
    source: Source
    transform: Callable[[Image.Image], np.ndarray]
    size: tuple[int, int]
    num_classes: int | None

    def __call__(self, index: int) -> Batch:
        if index >= len(self.source):
            return self._row(np.zeros((*self.size, 3), np.uint8), label=0, position=-1, file_name="")
        example = self.source[index]
        try:
            _check_label(example["label"], self.num_classes)
            image = self.transform(decode_rgb(example["image"]))
        except DataError as error:
            raise BadExampleError(example["file_name"], str(error)) from error
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
