"""Batches of any task, made by grain from a function that makes one row.

The iterators are context managers: closing them ends their threads and processes. Worker processes are
spawned, so a script that asks for them needs the usual ``if __name__ == "__main__"``.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import cv2
import grain
import numpy as np
from absl import flags

from flax_mnv2.data.loader.bad_examples import BAD, BadExamples, MaskedRow, SubstituteRow
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.data.loader.order import augmentation_seed, process_rows, training_order
from flax_mnv2.data.loader.watchdog import WaitError, Watchdog, set_up_worker
from flax_mnv2.errors import DataError

Batch = dict[str, np.ndarray]

_ON_THE_WAY = 5  # batches of each worker between its own buffer and whoever asks: grain has four queues and hands


class Source(Protocol):
    """Random access to the encoded examples of a split, dicts as ``flax_mnv2.data.datasets.records`` describes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class BatchIterator(Iterator[Batch]):
    """Batches in their order; ``close`` it, or use it in a ``with`` statement.

    ``bad_examples`` has, by position in the split, name and reason of the damaged examples that were left out so far,
    in this process's part of the batches.
    """

    def __init__(self, rows: grain.MapDataset, source: Source, options: LoaderOptions, *, start_step: int = 0):
        count = options.process_count
        own = process_rows(rows, options.batch_size, options.process_index, count)
        self._batches = _in_parallel(own.batch(options.batch_size // count)[start_step:], options)
        self._timeout = options.timeout
        self._makers = f"{options.num_workers} input worker(s)" if options.num_workers else "threads of this process"
        self._place = getattr(source, "place", "its source")
        self._bad = BadExamples(options.max_bad, self._place)
        self.bad_examples = self._bad.found

    def __next__(self) -> Batch:
        try:
            batch = self._batches.next(self._timeout)
        except WaitError:
            raise DataError(
                f"No batch within {self._timeout:g} s: waiting for {self._makers} to read from {self._place}. Does its "
                "disk answer? Start again when it does, or allow more with --config.data.timeout."
            ) from None
        if BAD in batch:
            self._bad.take_from(batch)
        return batch

    def close(self) -> None:
        """Ends the threads and processes behind the iterator. It may be called twice."""
        self._batches.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def train_batches(
    make_row: Callable[[int, np.random.Generator], Batch],
    source: Source,
    options: LoaderOptions,
    *,
    start_step: int,
    repeats: int = 1,
) -> BatchIterator:
    """Gives endless shuffled, augmented batches; row r of batch k depends on (seed, k, r) alone.

    An iterator made with ``start_step=k`` therefore goes on exactly where one that gave k batches stopped,
    whatever the number of threads, workers and processes. Each epoch is shuffled and augmented anew; a
    batch may span two epochs, and holds each of its examples ``repeats`` times, with different randomness.

    ``make_row`` makes a row, a dict of arrays, of a position in the split and a generator, or raises a BadExampleError;
    it can be pickled. While iterating, a DataError names an example that is damaged (with ``options.skip_bad`` the next
    readable one takes its place), or says that a worker was killed, or that a batch took too long.
    """
    _check_source(source)
    if options.skip_bad:
        make_row = SubstituteRow(make_row, len(source), limit=options.max_bad)
    order = training_order(len(source), batch_size=options.batch_size, seed=options.seed, repeats=repeats)
    # Randomness comes before sharding: the global batch must not depend on the number of processes.
    rows = order.random_map(make_row, seed=augmentation_seed(options.seed))
    return BatchIterator(rows, source, options, start_step=start_step)


def eval_batches(make_row: Callable[[int], Batch], source: Source, options: LoaderOptions) -> BatchIterator:
    """Gives every example exactly once, in the order of the split, filled up to whole global batches.

    Every process gets the same number of batches. ``make_row`` and errors are as in :func:`train_batches`, but there is
    no generator, positions from ``len(source)`` on are fillers, and so is the row of a damaged example that is skipped.
    """
    _check_source(source)
    if options.skip_bad:
        make_row = MaskedRow(make_row, filler=len(source))
    padded = -(-len(source) // options.batch_size) * options.batch_size
    return BatchIterator(grain.MapDataset.range(padded).map(make_row), source, options)


def _check_source(source: Source) -> None:
    if len(source) == 0:
        raise DataError("The split has no examples. Choose another split, or check how the data set was built.")


def _in_parallel(batches: grain.MapDataset, options: LoaderOptions) -> Watchdog:
    """Batches made ahead by threads, or by worker processes of grain."""
    if options.num_workers:
        return _by_workers(batches, options)
    cv2.setNumThreads(0)  # as in workers
    threads = options.num_threads
    when_asked = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    lanes = max(threads, 1)
    datasets = [batches[first::lanes].to_iter_dataset(when_asked) for first in range(lanes)]
    return Watchdog(datasets, ahead=max(1, options.prefetch_buffer_size // threads) if threads else 0)


def _by_workers(batches: grain.MapDataset, options: LoaderOptions) -> Watchdog:
    """Each worker has a data set of its own, so that they end at the same time and not one after another."""
    if not flags.FLAGS.is_parsed():  # grain has flags of its own and reads them; scripts here parse theirs
        flags.FLAGS.mark_as_parsed()
    threads, count = options.num_threads, options.num_workers
    ahead = max(threads, options.prefetch_buffer_size - _ON_THE_WAY) if threads else 0
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    one = grain.MultiprocessingOptions(num_workers=1)
    datasets = [batches[first::count].to_iter_dataset(read) for first in range(count)]
    made = [each.mp_prefetch(one, worker_init_fn=set_up_worker).map(_own_memory) for each in datasets]
    return Watchdog(made, ahead=1)


def _own_memory(batch: Batch) -> Batch:
    """Returns a copy: grain's is in shared memory, and one that is kept until Python exits would not be freed."""
    return {name: np.array(values) for name, values in batch.items()}
