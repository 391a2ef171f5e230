"""Batches from encoded examples, by grain: those of segmentation, and what every task's batches share.

The iterators are context managers: closing them ends their threads and processes. Worker processes are
spawned, so a script that asks for them needs the usual ``if __name__ == "__main__"``.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import cv2
import grain
import numpy as np
from absl import flags

from flax_mnv2.data.augment import (
    IMAGE_PADDING,
    decode_image,
    decode_mask,
    pad_to,
    random_crop,
    random_flip,
    random_scale,
)
from flax_mnv2.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to the encoded examples of a split, dicts as ``flax_mnv2.data.load`` describes them."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Any:
        """One example."""


class BatchIterator(Iterator[Batch]):
    """Batches in their order; ``close`` it, or use it in a ``with`` statement."""

    def __init__(self, iterator: grain.DatasetIterator):
        self._iterator = iterator

    def __next__(self) -> Batch:
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise DataError(
                f"An input worker has ended ({error}): it was killed, or memory ran out. With fewer "
                "--config.data.num_workers or a smaller --config.data.prefetch_buffer_size less is needed."
            ) from error

    def close(self) -> None:
        """End the threads and processes behind the iterator. It may be called twice."""
        self._iterator.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def train_batches(
    source: Source,
    *,
    crop_size: int | tuple[int, int],
    min_scale: float,
    max_scale: float,
    scale_step: float,
    flip: bool,
    ignore_label: int,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
    prefetch_buffer_size: int = 4,
) -> BatchIterator:
    """Endless shuffled, augmented batches; row r of batch k depends on (seed, k, r) alone.

    An iterator made with ``start_step=k`` therefore goes on exactly where one that gave k batches stopped,
    whatever the number of threads, workers and processes. Each epoch is shuffled and augmented anew; a
    batch may span two epochs.

    Args:
      source: the split.
      crop_size: side of the square crops, or (height, width).
      min_scale: smallest factor of random resizing.
      max_scale: largest factor.
      scale_step: distance between factors; 0 draws from the whole range.
      flip: whether to mirror half of the examples.
      ignore_label: mask value of padding.
      batch_size: examples in the global batch, over all processes.
      seed: of order and augmentation.
      start_step: number of batches to leave out.
      process_index: which equal, contiguous part of every global batch to give.
      process_count: number of parts.
      num_threads: threads that make batches, in each worker; 0 makes them in the calling thread.
      num_workers: processes that make batches; 0 uses threads of this one.
      prefetch_buffer_size: batches made in advance, in each worker.

    Returns:
      Dicts of ``image`` uint8 (B/P, h, w, 3), ``label`` uint8 (B/P, h, w) and ``index`` int64 (B/P,), the
      position in the split.

    Raises:
      ConfigError: a size or scale is not positive, or the batch cannot be divided.
      DataError: the split is empty; while iterating: an example cannot be decoded (it is named).
    """
    crop = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
    if min(crop) <= 0:
        raise ConfigError(f"The crop size is {crop_size}, expected a positive number of pixels. Set crop_size.")
    if not 0 < min_scale <= max_scale or scale_step < 0:
        raise ConfigError(
            f"min_scale={min_scale}, max_scale={max_scale}, scale_step={scale_step}: expected "
            "0 < min_scale <= max_scale and scale_step >= 0."
        )
    return shuffled_batches(
        _TrainExample(source, crop, min_scale, max_scale, scale_step, flip, ignore_label),
        source,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
    )


def shuffled_batches(
    make_row: Callable[[int, np.random.Generator], Batch],
    source: Source,
    *,
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
    """The training batches of any task: endless, every epoch in another order.

    Args:
      make_row: position in the split and a generator → row of a batch. It can be pickled.
      source: the split.
      batch_size: examples in the global batch, over all processes.
      seed: of order and augmentation.
      start_step: number of batches to leave out.
      process_index: as in :func:`train_batches`, with all that follow.
      process_count: number of parts.
      num_threads: threads that make batches, in each worker.
      num_workers: processes that make batches.
      prefetch_buffer_size: batches made in advance, in each worker.
      repeats: times that a batch holds each of its examples, made into rows with different randomness.

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty.
    """
    _check_source(source)
    _check_batch(batch_size, process_count)
    shuffle_seed, augment_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    # Randomness comes before sharding: the global batch must not depend on the number of processes.
    order = grain.MapDataset.range(len(source)).shuffle(shuffle_seed).repeat()
    if repeats > 1:
        order = _Repeated(order, batch_size, repeats)
    examples = order.random_map(make_row, seed=augment_seed)
    return _iterate(
        _ProcessRows(examples, batch_size, process_index, process_count).batch(batch_size // process_count)[
            start_step:
        ],
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
    )


def eval_batches(
    source: Source,
    *,
    size: tuple[int, int],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
    ignore_label: int,
    prefetch_buffer_size: int = 4,
) -> BatchIterator:
    """Every example exactly once, whole, in order, padded at the bottom and right to ``size``.

    The last global batch is filled up with rows whose mask is False: all their labels are
    ``ignore_label``, their index is -1 and their size that of the canvas. Every process gets the same
    number of batches.

    Args:
      source: the split.
      size: height and width of the canvas, at least those of the largest image.
      batch_size: examples in the global batch, over all processes.
      process_index: which equal, contiguous part of every global batch to give.
      process_count: number of parts.
      num_threads: as in :func:`train_batches`.
      num_workers: as in :func:`train_batches`.
      ignore_label: mask value of padding.
      prefetch_buffer_size: as in :func:`train_batches`.

    Returns:
      Dicts of ``image`` uint8 (B/P, h, w, 3), ``label`` uint8 (B/P, h, w), ``mask`` bool (B/P,), ``index``
      int64 (B/P,), the position in the split, and ``size`` int32 (B/P, 2), the true height and width.

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty; while iterating: an example cannot be decoded or is larger than ``size``.
    """
    return every_example_once(
        _EvalExample(source, tuple(size), ignore_label),
        source,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
    )


def every_example_once(
    make_row: Callable[[int], Batch],
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
    prefetch_buffer_size: int = 4,
) -> BatchIterator:
    """The evaluation of any task: rows in the order of the split, filled up to whole global batches.

    Args:
      make_row: position → row of a batch; positions from ``len(source)`` on are fillers. It can be pickled.
      source: the split.
      batch_size: examples in the global batch, over all processes.
      process_index: which equal, contiguous part of every global batch to give.
      process_count: number of parts.
      num_threads: as in :func:`train_batches`.
      num_workers: as in :func:`train_batches`.
      prefetch_buffer_size: as in :func:`train_batches`.

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty.
    """
    _check_source(source)
    _check_batch(batch_size, process_count)
    padded = -(-len(source) // batch_size) * batch_size
    rows = grain.MapDataset.range(padded).map(make_row)
    return _iterate(
        _ProcessRows(rows, batch_size, process_index, process_count).batch(batch_size // process_count),
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
    )


def _check_source(source: Source) -> None:
    if len(source) == 0:
        raise DataError("The split has no examples. Choose another split, or check how the data set was built.")


def _check_batch(batch_size: int, process_count: int) -> None:
    if batch_size <= 0 or batch_size % process_count:
        raise ConfigError(
            f"The global batch size is {batch_size}, expected a positive multiple of the {process_count} "
            "process(es). Set batch_size."
        )


class _Repeated(grain.MapDataset):
    """Batches that hold each of their examples several times, repetitions far apart: MixUp pairs neighbours."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, repeats: int):
        super().__init__(examples)
        self._examples = examples
        self._batch_size = batch_size
        self._distinct = batch_size // repeats

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._batch_size)
        return self._examples[batch * self._distinct + row % self._distinct]


class _ProcessRows(grain.MapDataset):
    """The contiguous part of every global batch that belongs to one process."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, process_index: int, process_count: int):
        super().__init__(examples)
        self._examples = examples
        self._batch_size = batch_size
        self._rows = batch_size // process_count
        self._first = self._rows * process_index
        self._length = len(examples) // process_count

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._rows)
        return self._examples[batch * self._batch_size + self._first + row]


def _iterate(
    batches: grain.MapDataset, *, num_threads: int, num_workers: int, prefetch_buffer_size: int
) -> BatchIterator:
    buffer_size = max(prefetch_buffer_size, num_threads)  # fewer would leave threads idle
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain hands its flags on to its workers; outside absl.app nobody parsed them
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_init_worker)
    else:
        _one_thread_each()
    return BatchIterator(iter(dataset))


def _init_worker(worker_index: int, worker_count: int) -> None:
    """Makes a worker process end with its parent, and only then: the parent answers signals and ends it itself."""
    del worker_index, worker_count
    _one_thread_each()
    os.setpgid(0, 0)  # Ctrl-C and `timeout` signal the whole group
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()


def _end_with_parent() -> None:
    """grain's workers would outlive a parent that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _one_thread_each() -> None:
    """Batches are made in parallel already; OpenCV's own threads would only compete with them."""
    cv2.setNumThreads(0)


def _decode(example: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        return decode_image(example["image"]), decode_mask(example["segmentation_mask"])
    except DataError as error:
        raise DataError(f"Example {example['image_id']!r}: {error}.") from error


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    source: Source
    crop: tuple[int, int]
    min_scale: float
    max_scale: float
    scale_step: float
    flip: bool
    ignore_label: int

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        image, label = _decode(self.source[index])
        image, label = random_scale(
            image, label, rng, min_scale=self.min_scale, max_scale=self.max_scale, step=self.scale_step
        )
        image, label = pad_to(image, label, size=self.crop, ignore_label=self.ignore_label)
        image, label = random_crop(image, label, rng, size=self.crop)
        if self.flip:
            image, label = random_flip(image, label, rng)
        return {"image": image, "label": label, "index": np.int64(index)}


@dataclasses.dataclass(frozen=True)
class _EvalExample:
    source: Source
    size: tuple[int, int]
    ignore_label: int

    def __call__(self, index: int) -> Batch:
        if index >= len(self.source):
            image = np.full((*self.size, 3), IMAGE_PADDING, np.uint8)
            label = np.full(self.size, self.ignore_label, np.uint8)
            return self._row(image, label, position=-1, size=self.size)
        example = self.source[index]
        image, label = _decode(example)
        size = label.shape
        if size[0] > self.size[0] or size[1] > self.size[1]:
            raise DataError(
                f"Example {example['image_id']!r} is {size[0]}x{size[1]} (heightxwidth), larger than the "
                f"evaluation size {self.size[0]}x{self.size[1]}. Set --config.data.eval_size to at least its "
                "size."
            )
        image, label = pad_to(image, label, size=self.size, ignore_label=self.ignore_label)
        return self._row(image, label, position=index, size=size)

    @staticmethod
    def _row(image: np.ndarray, label: np.ndarray, *, position: int, size: tuple[int, ...]) -> Batch:
        return {
            "image": image,
            "label": label,
            "mask": np.bool_(position >= 0),
            "index": np.int64(position),
            "size": np.array(size, np.int32),
        }
