"""Batches from encoded examples, by grain's random access: those of segmentation, and what every task's batches share.

The iterators are context managers: closing them ends their threads and processes. Worker processes are
spawned, so a script that asks for them needs the usual ``if __name__ == "__main__"``.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import cv2
import grain
import numpy as np

from flax_mnv2.data.augment.segmentation import (
    IMAGE_PADDING,
    check_mask,
    decode_image,
    decode_mask,
    pad_to,
    random_crop,
    random_flip,
    random_scale,
)
from flax_mnv2.data.loader.bad_examples import (
    BAD,
    STRICT,
    BadExampleError,
    BadExamples,
    FaultRules,
    MaskedRow,
    SubstituteRow,
)
from flax_mnv2.data.loader.batch_threads import BatchThreads, WaitError
from flax_mnv2.data.loader.batch_workers import BatchWorkers
from flax_mnv2.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to the encoded examples of a split, dicts as ``flax_mnv2.data.datasets.records`` describes them."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Any:
        """One example."""


class BatchIterator(Iterator[Batch]):
    """Batches in their order; ``close`` it, or use it in a ``with`` statement.

    Attributes:
      bad_examples: by position in the split, name and reason of the damaged examples that were left out so far, in
        this process's share of the batches.
    """

    def __init__(self, batches: BatchThreads | BatchWorkers, *, rules: FaultRules, place: str):
        """Gives what ``batches`` gives; ``place`` is what messages call the data set."""
        self._batches = batches
        self._timeout = rules.timeout
        self._place = place
        self._bad = BadExamples(rules, place)
        self.bad_examples = self._bad.found

    def __next__(self) -> Batch:
        try:
            batch = self._batches.next(self._timeout)
        except WaitError as wait:
            raise DataError(
                f"No batch within {self._timeout:g} s: waiting for {wait} to read from {self._place}. Does its disk "
                "answer? Start again when it does, or allow more with --config.data.timeout."
            ) from None
        if BAD in batch:
            self._bad.take_from(batch)
        return batch

    def close(self) -> None:
        """End the threads and processes behind the iterator. It may be called twice."""
        self._batches.close()

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
    num_classes: int | None = None,
    rules: FaultRules = STRICT,
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
      num_threads: threads that make batches, in each worker; 0 makes each batch when it is asked for.
      num_workers: processes that make batches; 0 uses threads of this one.
      prefetch_buffer_size: batches made in advance, in each worker.
      num_classes: values that masks may have beside ``ignore_label``, from 0 on; None takes any.
      rules: for damaged examples, which are replaced by those after them in the split, and for waits.

    Returns:
      Dicts of ``image`` uint8 (B/P, h, w, 3), ``label`` uint8 (B/P, h, w) and ``index`` int64 (B/P,), the
      position in the split.

    Raises:
      ConfigError: a size or scale is not positive, or the batch cannot be divided.
      DataError: the split is empty; while iterating: an example is damaged (it is named; see ``rules``), a worker was
        killed, or a batch took too long.
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
        _TrainExample(source, crop, min_scale, max_scale, scale_step, flip, ignore_label, num_classes),
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
    rules: FaultRules = STRICT,
    repeats: int = 1,
) -> BatchIterator:
    """The training batches of any task: endless, every epoch in another order.

    Args:
      make_row: position in the split and a generator → row of a batch, a dict of arrays; or a BadExampleError. It can
        be pickled.
      source: the split.
      batch_size: examples in the global batch, over all processes.
      seed: of order and augmentation.
      start_step: number of batches to leave out.
      process_index: as in :func:`train_batches`, with all that follow.
      process_count: number of parts.
      num_threads: threads that make batches, in each worker.
      num_workers: processes that make batches.
      prefetch_buffer_size: batches made in advance, in each worker.
      rules: for examples that ``make_row`` calls bad, and for waits.
      repeats: times that a batch holds each of its examples, made into rows with different randomness.

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty.
    """
    _check_source(source)
    _check_batch(batch_size, process_count)
    _, augment_seed = _order_and_augment_seeds(seed)
    if rules.skip:
        make_row = SubstituteRow(make_row, len(source), limit=rules.max_bad)
    # Randomness comes before sharding: the global batch must not depend on the number of processes.
    order = _training_order(len(source), batch_size=batch_size, seed=seed, repeats=repeats)
    examples = order.random_map(make_row, seed=augment_seed)
    return _iterate(
        _ProcessRows(examples, batch_size, process_index, process_count).batch(batch_size // process_count)[
            start_step:
        ],
        source,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
        rules=rules,
    )


def batch_positions(num_examples: int, *, batch_size: int, seed: int, batch: int, repeats: int = 1) -> np.ndarray:
    """The examples of one of the global batches that :func:`shuffled_batches` gives, without reading any.

    Args:
      num_examples: in the split.
      batch_size: examples in the global batch, over all processes.
      seed: of the order.
      batch: which one, from 0.
      repeats: times that a batch holds each of its examples.

    Returns:
      int64 (batch_size,), positions in the split by row. Where another example took the place of one that cannot be
      read, this is the position of the unreadable one.
    """
    order = _training_order(num_examples, batch_size=batch_size, seed=seed, repeats=repeats)
    return np.array([order[row] for row in range(batch * batch_size, (batch + 1) * batch_size)], np.int64)


def _training_order(num_examples: int, *, batch_size: int, seed: int, repeats: int) -> grain.MapDataset:
    """Positions in the split, row by row of all global batches."""
    shuffle_seed, _ = _order_and_augment_seeds(seed)
    order = grain.MapDataset.range(num_examples).shuffle(shuffle_seed).repeat()
    return _Repeated(order, batch_size, repeats) if repeats > 1 else order


def _order_and_augment_seeds(seed: int) -> tuple[int, int]:
    order, augment = np.random.SeedSequence(seed).generate_state(2)
    return int(order), int(augment)


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
    num_classes: int | None = None,
    rules: FaultRules = STRICT,
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
      num_classes: as in :func:`train_batches`.
      rules: for damaged examples, whose rows become fillers, and for waits.

    Returns:
      Dicts of ``image`` uint8 (B/P, h, w, 3), ``label`` uint8 (B/P, h, w), ``mask`` bool (B/P,), ``index``
      int64 (B/P,), the position in the split, and ``size`` int32 (B/P, 2), the true height and width.

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty; while iterating: an example is damaged (see ``rules``) or larger than ``size``, a
        worker was killed, or a batch took too long.
    """
    return every_example_once(
        _EvalExample(source, tuple(size), ignore_label, num_classes),
        source,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
        rules=rules,
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
    rules: FaultRules = STRICT,
) -> BatchIterator:
    """The evaluation of any task: rows in the order of the split, filled up to whole global batches.

    Args:
      make_row: position → row of a batch, a dict of arrays, or a BadExampleError; positions from ``len(source)`` on are
        fillers. It can be pickled.
      source: the split.
      batch_size: examples in the global batch, over all processes.
      process_index: which equal, contiguous part of every global batch to give.
      process_count: number of parts.
      num_threads: as in :func:`train_batches`.
      num_workers: as in :func:`train_batches`.
      prefetch_buffer_size: as in :func:`train_batches`.
      rules: for examples that ``make_row`` calls bad, and for waits.

    Raises:
      ConfigError: the batch cannot be divided.
      DataError: the split is empty.
    """
    _check_source(source)
    _check_batch(batch_size, process_count)
    padded = -(-len(source) // batch_size) * batch_size
    if rules.skip:
        make_row = MaskedRow(make_row, filler=len(source))
    rows = grain.MapDataset.range(padded).map(make_row)
    return _iterate(
        _ProcessRows(rows, batch_size, process_index, process_count).batch(batch_size // process_count),
        source,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch_buffer_size=prefetch_buffer_size,
        rules=rules,
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
        self._length = min(len(examples) // process_count, 2**53)  # grain divides an endless length as a float

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._rows)
        return self._examples[batch * self._batch_size + self._first + row]


def _iterate(
    batches: grain.MapDataset,
    source: Source,
    *,
    num_threads: int,
    num_workers: int,
    prefetch_buffer_size: int,
    rules: FaultRules,
) -> BatchIterator:
    threads = {"num_threads": num_threads, "buffer_size": prefetch_buffer_size}
    if num_workers:
        made = BatchWorkers(batches, num_workers=num_workers, **threads)
    else:
        cv2.setNumThreads(0)  # batches are made in parallel already; OpenCV's own threads would only compete with them
        made = BatchThreads(batches, **threads)
    return BatchIterator(made, rules=rules, place=getattr(source, "place", "its source"))


def _decode(example: Any, num_classes: int | None, ignore_label: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        image, mask = decode_image(example["image"]), decode_mask(example["segmentation_mask"])
        check_mask(mask, image.shape[:2], num_classes=num_classes, ignore_label=ignore_label)
    except DataError as error:
        raise BadExampleError(example["image_id"], str(error)) from error
    return image, mask


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    source: Source
    crop: tuple[int, int]
    min_scale: float
    max_scale: float
    scale_step: float
    flip: bool
    ignore_label: int
    num_classes: int | None

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        image, label = _decode(self.source[index], self.num_classes, self.ignore_label)
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
    num_classes: int | None

    def __call__(self, index: int) -> Batch:
        if index >= len(self.source):
            image = np.full((*self.size, 3), IMAGE_PADDING, np.uint8)
            label = np.full(self.size, self.ignore_label, np.uint8)
            return self._row(image, label, position=-1, size=self.size)
        example = self.source[index]
        image, label = _decode(example, self.num_classes, self.ignore_label)
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
