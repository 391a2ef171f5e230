"""One field of one struct in a MATLAB 5 file, read without believing what the file says of its sizes.

``scipy.io.loadmat`` makes as many objects as a header of a few bytes asks for, and decompresses without a bound. The
format: "MAT-File Format", The MathWorks, chapter 1, "Level 5 MAT-File Format".
"""

import math
import struct
import zlib

import numpy as np

_HEADER_BYTES = 128
_MAX_BYTES = 1 << 26  # of one variable; SBD's largest have some 0.3 MB
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_STRUCT_CLASS = 2
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


def read_field(data: bytes, variable: str, field: str) -> np.ndarray:
    """The real numbers in ``variable.field``, a matrix in a struct of one element.

    Args:
      data: a whole file as MATLAB 5 to 7.2 write it.
      variable: name of the struct.
      field: name of its field.

    Returns:
      The matrix, (rows, columns), of its class in MATLAB.

    Raises:
      ValueError: there is no such thing in it, or it is damaged.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[_HEADER_BYTES - 2 : _HEADER_BYTES])
    if order is None:
        raise ValueError("it is no MATLAB 5 file")
    elements = _Elements(data[_HEADER_BYTES:], order)
    while elements:
        kind, contents = elements.next()
        if kind == _COMPRESSED:
            kind, contents = _Elements(_decompressed(contents), order).next()
        if kind == _MATRIX:
            matrix = _Elements(contents, order)
            flags, dimensions, name = _head(matrix, order)
            if name == variable.encode():
                if flags & 0xFF != _STRUCT_CLASS or math.prod(dimensions) != 1:
                    raise ValueError(f"{variable} is no struct of one element")
                return _field(matrix, order, field)
    raise ValueError(f"it has no variable {variable}")


class _Elements:
    """The elements that follow each other in a piece of the file."""

    def __init__(self, data: bytes, order: str):
        self._data, self._order, self._position = data, order, 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def next(self) -> tuple[int, bytes]:
        """Type and contents."""
        start = self._position
        if start + 8 > len(self._data):
            raise ValueError("it ends within a tag")
        kind, size = struct.unpack_from(f"{self._order}II", self._data, start)
        if kind >> 16:  # up to four bytes lie in the tag itself
            kind, size, start, after = kind & 0xFFFF, kind >> 16, start + 4, start + 8
            if size > 4:
                raise ValueError("a small element has more than four bytes")
        else:
            start += 8
            after = start + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(self._data):
            raise ValueError(f"an element of {size:,} bytes ends beyond the end")
        self._position = after
        return kind, self._data[start : start + size]


def _decompressed(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        contents = stream.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if stream.unconsumed_tail:
        raise ValueError(f"a variable unpacks to more than {_MAX_BYTES:,} bytes")
    if not stream.eof:
        raise ValueError("a compressed variable is cut short")
    return contents


def _head(matrix: _Elements, order: str) -> tuple[int, list[int], bytes]:
    """Flags (the lowest byte is the class), dimensions and name of a matrix."""
    flags = matrix.next()[1]
    if len(flags) != 8:
        raise ValueError("a matrix has no flags")
    dimensions = np.frombuffer(matrix.next()[1], f"{order}i4").tolist()
    if len(dimensions) < 2 or min(dimensions) < 0:
        raise ValueError(f"a matrix has the dimensions {dimensions[:8]}")
    return struct.unpack(f"{order}I", flags[:4])[0], dimensions, matrix.next()[1]


def _field(matrix: _Elements, order: str, field: str) -> np.ndarray:
    length = int.from_bytes(matrix.next()[1], "little" if order == "<" else "big")
    names = matrix.next()[1]
    if not 0 < length <= len(names):
        raise ValueError("a struct has no fields")
    for start in range(0, len(names), length):
        contents = matrix.next()[1]
        if names[start : start + length].partition(b"\0")[0] == field.encode():
            return _numbers(_Elements(contents, order), order)
    raise ValueError(f"the struct has no field {field}")


def _numbers(matrix: _Elements, order: str) -> np.ndarray:
    flags, dimensions, _ = _head(matrix, order)
    kind, contents = matrix.next()
    if flags & 0xFF not in _CLASSES or kind not in _TYPES or len(dimensions) != 2:
        raise ValueError("the field is no matrix of real numbers")
    values = np.frombuffer(contents, f"{order}{_TYPES[kind]}")
    if len(values) != math.prod(dimensions):
        raise ValueError(f"the field has {len(values):,} numbers, expected {' × '.join(map(str, dimensions))}")
    return values.reshape(dimensions, order="F").astype(_CLASSES[flags & 0xFF])
