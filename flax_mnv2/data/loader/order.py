"""Which example stands in which row of which batch: positions alone, before anything is read.

All of it follows from the seed and the size of the global batch. Neither processes, workers nor threads matter, and a
run that is continued at a step needs no state of an iterator.
"""

import functools
from collections.abc import Callable
from typing import Any

import grain
import numpy as np


def training_order(num_examples: int, *, batch_size: int, seed: int, repeats: int = 1) -> grain.MapDataset:
    """Returns the positions in the split by row of all global batches, without end; every epoch in another order.

    A batch holds each of its examples ``repeats`` times, far apart: MixUp pairs neighbours.
    """
    order = grain.MapDataset.range(num_examples).shuffle(_seeds(seed)[0]).repeat()
    if repeats == 1:
        return order
    return _Rearranged(order, functools.partial(_repeated, batch_size=batch_size, repeats=repeats), len(order))


def augmentation_seed(seed: int) -> int:
    """Returns the seed of what happens to rows, independent of their order."""
    return _seeds(seed)[1]


def process_rows(rows: grain.MapDataset, batch_size: int, process_index: int, process_count: int) -> grain.MapDataset:
    """Returns the rows that belong to one process: a contiguous part of every global batch."""
    part = batch_size // process_count
    position = functools.partial(_own, batch_size=batch_size, rows=part, process_index=process_index)
    length = min(len(rows) // process_count, 2**53)  # grain divides an endless length as a float
    return _Rearranged(rows, position, length)


def batch_positions(num_examples: int, *, batch_size: int, seed: int, batch: int, repeats: int = 1) -> np.ndarray:
    """Returns the examples of one global training batch, the ``batch``-th from 0, without reading any.

    They are positions in the split by row, int64 (batch_size,). Where another example took the place of one that cannot
    be read, this is the position of the unreadable one.
    """
    order = training_order(num_examples, batch_size=batch_size, seed=seed, repeats=repeats)
    return np.array([order[row] for row in range(batch * batch_size, (batch + 1) * batch_size)], np.int64)


def _seeds(seed: int) -> tuple[int, int]:
    order, augmentation = np.random.SeedSequence(seed).generate_state(2)
    return int(order), int(augmentation)


def _repeated(index: int, *, batch_size: int, repeats: int) -> int:
    distinct = batch_size // repeats
    batch, row = divmod(index, batch_size)
    return batch * distinct + row % distinct


def _own(index: int, *, batch_size: int, rows: int, process_index: int) -> int:
    batch, row = divmod(index, rows)
    return batch * batch_size + process_index * rows + row


class _Rearranged(grain.MapDataset):
    """Elements of another data set, element i being that at ``position(i)``."""

    def __init__(self, parent: grain.MapDataset, position: Callable[[int], int], length: int):
        super().__init__(parent)
        self._position, self._length = position, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return self._parent[self._position(index)]
