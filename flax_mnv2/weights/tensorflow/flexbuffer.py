"""FlexBuffers' wire format, as far as the options of TFLite's detection need it: one map of names to numbers."""

from __future__ import annotations

import struct

from flax_mnv2.errors import CheckpointError

_DAMAGED = "the options of an operation are cut or damaged"
_MAP = 9
_CODES = {1: "bhiq", 2: "BHIQ", 3: " efd", 26: "BHIQ"}  # integers, naturals, floats, booleans; by the log of the size
_MAX_ENTRIES = 100
Number = int | float


def read_map(data: bytes) -> dict[str, Number]:
    """Returns the numbers of a map that is the whole of ``data``, by name; values of other kinds are left out."""
    try:
        return _read_map(data)
    except (struct.error, ValueError, IndexError):
        raise CheckpointError(_DAMAGED) from None


def _read_map(data: bytes) -> dict[str, Number]:
    root_width, kind = data[-1], data[-2]
    place = len(data) - 2 - root_width
    if kind >> 2 != _MAP:
        raise CheckpointError(_DAMAGED)
    width = 1 << (kind & 3)
    # Before a map's values: their count, the width of the keys' places, the place of the keys.
    start = place - _natural(data, place, root_width)
    count, keys_width = (_natural(data, start - back * width, width) for back in (1, 2))
    keys = start - 3 * width - _natural(data, start - 3 * width, width)
    if count > _MAX_ENTRIES:
        raise CheckpointError(_DAMAGED)
    found: dict[str, Number] = {}
    for index in range(count):
        place = keys + index * keys_width
        name_at = place - _natural(data, place, keys_width)
        if name_at < 0:
            raise CheckpointError(_DAMAGED)
        name = data[name_at : data.index(b"\0", name_at)].decode("utf-8")
        kind = data[start + count * width + index]
        if kind >> 2 in _CODES:
            found[name] = _number(data, start + index * width, width, _CODES[kind >> 2])
    return found


def _natural(data: bytes, place: int, width: int) -> int:
    return int(_number(data, place, width, "BHIQ"))


def _number(data: bytes, place: int, width: int, codes: str) -> Number:
    code = codes[width.bit_length() - 1]
    if place < 0 or width not in (1, 2, 4, 8) or code == " ":
        raise CheckpointError(_DAMAGED)
    return struct.unpack_from(f"<{code}", data, place)[0]
