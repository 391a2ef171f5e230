"""The examples of an evaluation on which a model is best and worst."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Extremes(Generic[Item]):
    """Keeps those of this process with the smallest and with the largest error, ``count`` each."""

    def __init__(self, count: int):
        """``count`` 0 keeps none."""
        self._count, self._number = count, itertools.count()
        self._best: list[tuple[float, int, Item]] = []  # heaps with the first to go on top
        self._worst: list[tuple[float, int, Item]] = []

    def add(self, error: float, make: Callable[[], Item]) -> None:
        """Takes an example, which is only made if it is kept; of equal errors the earlier one stays."""
        order = -next(self._number)
        rows = [(heap, key) for heap, key in ((self._best, -error), (self._worst, error)) if self._enters(heap, key)]
        item = make() if rows else None
        for heap, key in rows:
            heapq.heappush(heap, (key, order, item))
            if len(heap) > self._count:
                heapq.heappop(heap)

    @property
    def best(self) -> list[Item]:
        """Those with the smallest error, the smallest first."""
        return [item for *_, item in sorted(self._best, key=lambda row: row[:2], reverse=True)]

    @property
    def worst(self) -> list[Item]:
        """Those with the largest error, the largest first."""
        return [item for *_, item in sorted(self._worst, key=lambda row: row[:2], reverse=True)]

    def _enters(self, heap: list[tuple[float, int, Item]], key: float) -> bool:
        return self._count > 0 and (len(heap) < self._count or key > heap[0][0])
