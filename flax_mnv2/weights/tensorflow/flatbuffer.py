"""FlatBuffers' wire format, as far as a TFLite file needs it.

A reader of our own: the packages with generated classes (``tflite``, ``ai_edge_litert``) check no offset before they
follow it, so a cut or hostile file gives wrong numbers or errors of many kinds; and reading needs eight tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from flax_mnv2.errors import CheckpointError

_DAMAGED = "it is cut or damaged"


class Table:
    """A table at a position of a file; fields are given by the number of their slot in the schema."""

    def __init__(self, data: memoryview, position: int):
        self._data, self._position = data, position
        vtable = position - self._at("<i", position)
        size = self._at("<H", vtable)
        count = max(size // 2 - 2, 0)
        self._slots = [self._at("<H", vtable + 4 + 2 * slot) for slot in range(count)]

    @classmethod
    def root(cls, data: memoryview) -> Table:
        """Returns the outermost table of a file."""
        if len(data) < 8:
            raise CheckpointError(_DAMAGED)
        return cls(data, int.from_bytes(data[:4], "little"))

    def number(self, slot: int, code: str, default: int = 0) -> int:
        """Returns a scalar of the type ``code`` of ``struct``."""
        place = self._place(slot)
        return default if place is None else self._at(f"<{code}", place)

    def table(self, slot: int) -> Table | None:
        """Returns a table that a field points to."""
        place = self._place(slot)
        return None if place is None else Table(self._data, place + self._at("<I", place))

    def tables(self, slot: int, *, limit: int) -> Iterator[Table]:
        """Yields the tables of a vector, of which there may be so many."""
        start, count = self._vector(slot, 4)
        if count > limit:
            raise CheckpointError(f"it has {count:,} tables where at most {limit:,} belong")
        for place in range(start, start + 4 * count, 4):
            yield Table(self._data, place + self._at("<I", place))

    def array(self, slot: int, dtype: str) -> np.ndarray:
        """Returns a vector of scalars, empty where there is none."""
        start, count = self._vector(slot, np.dtype(dtype).itemsize)
        return np.frombuffer(self._data, dtype, count, start) if count else np.zeros(0, dtype)

    def text(self, slot: int) -> str:
        """Returns a string, empty where there is none."""
        return self.array(slot, "u1").tobytes().decode("utf-8", errors="replace")

    def _place(self, slot: int) -> int | None:
        offset = self._slots[slot] if slot < len(self._slots) else 0
        return self._position + offset if offset else None

    def _vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """Returns where a vector's items begin, and how many there are."""
        place = self._place(slot)
        if place is None:
            return 0, 0
        start = place + self._at("<I", place)
        count = self._at("<I", start)
        if start + 4 + count * item_bytes > len(self._data):
            raise CheckpointError(_DAMAGED)
        return start + 4, count

    def _at(self, code: str, position: int) -> int:
        if position < 0 or position + struct.calcsize(code) > len(self._data):
            raise CheckpointError(_DAMAGED)
        return struct.unpack_from(code, self._data, position)[0]
