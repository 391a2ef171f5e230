"""Rows of batches that need no decoding. Worker processes import them by this name."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from flax_mnv2.data.loader.bad_examples import BadExampleError


class Placed(list):
    """A source that says what messages should call it."""

    def __init__(self, items, place):
        super().__init__(items)
        self.place = place


@dataclasses.dataclass(frozen=True)
class TrainRow:
    """An example's value, numbers of the generator and OpenCV's threads; negative values are damaged examples."""

    source: Sequence[int]

    def __call__(self, index, rng):
        _check(self.source, index)
        row = {"index": np.int64(index), "value": np.int64(self.source[index]), "noise": rng.random((2, 3))}
        return row | {"opencv": np.int64(cv2.getNumThreads())}


@dataclasses.dataclass(frozen=True)
class EvalRow:
    """An example's value and name; fillers have the value 0 and no name."""

    source: Sequence[int]

    def __call__(self, index):
        if index >= len(self.source):
            return self._row(-1, 0, "")
        _check(self.source, index)
        return self._row(index, self.source[index], "x" * index)

    @staticmethod
    def _row(index, value, name):
        return {"index": np.int64(index), "value": np.int64(value), "mask": np.bool_(index >= 0), "name": np.str_(name)}


def _check(source, index):
    if source[index] < 0:
        raise BadExampleError(f"example{index}", f"its value is {source[index]}.")


def joined(parts):
    """The batches that several processes see, put together."""
    steps = zip(*parts, strict=True)
    return [{name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in steps]


def assert_same(first, second):
    """Two lists of batches hold the same arrays."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])
