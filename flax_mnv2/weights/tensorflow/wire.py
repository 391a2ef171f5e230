"""Protocol buffers' wire format, as far as checkpoints and frozen graphs need it.

A reader of our own: the library ``protobuf`` reads with classes generated from TensorFlow's ``.proto`` files, which
only TensorFlow distributes.
"""

from __future__ import annotations

from collections.abc import Iterator

from flax_mnv2.errors import CheckpointError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (number, value) of a message; bytes and messages as views, numbers as unsigned integers.

    Raises a CheckpointError where the data is no whole message.
    """
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, position = varint(data, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
            value = int.from_bytes(_slice(data, position, size), "little")
            position += size
        elif kind == BYTES:
            size, position = varint(data, position)
            value = _slice(data, position, size)
            position += size
        else:
            raise CheckpointError("it is no message of protocol buffers")
        yield number, value


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns the unsigned integer at a position, and the position behind it."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            break
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise CheckpointError("it ends inside a number")


def message(value: int | memoryview) -> dict[int, int | memoryview]:
    """Returns the last value of each field of a message inside another."""
    return dict(fields(as_bytes(value)))


def as_bytes(value: int | memoryview | None) -> memoryview:
    """Returns a field's bytes, none where it is absent; a CheckpointError where it is a number."""
    if isinstance(value, int):
        raise CheckpointError("it has a number where bytes belong")
    return memoryview(b"") if value is None else value


def as_int(value: int | memoryview | None) -> int:
    """Returns a field's number, 0 where it is absent; a CheckpointError where it is bytes."""
    if isinstance(value, memoryview):
        raise CheckpointError("it has bytes where a number belongs")
    return value or 0


def as_text(value: int | memoryview | None) -> str:
    """Returns a field's text."""
    return bytes(as_bytes(value)).decode("utf-8", errors="replace")


def _slice(data: memoryview, position: int, size: int) -> memoryview:
    if size > len(data) - position:
        raise CheckpointError("it ends inside a field")
    return data[position : position + size]
