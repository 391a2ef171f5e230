"""TFRecord files, read and written without TensorFlow.

A record is its length (8 bytes, little-endian), the length's checksum, the data and the data's checksum. A checksum is
a CRC-32C, rotated and shifted by a constant (tensorflow.org/tutorials/load_data/tfrecord, "TFRecords format details").
"""

import os
import struct
from collections.abc import Iterator
from typing import IO

import google_crc32c

from flax_mnv2.errors import DataError

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def make_record(data: bytes) -> bytes:
    """Returns the bytes of one record."""
    length = struct.pack("<Q", len(data))
    return b"".join(part + _CHECKSUM.pack(_masked(google_crc32c.value(part))) for part in (length, data))


def read_records(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields the records of a file, in order, each checked before it is given.

    A DataError where the file is missing or damaged says where.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while header := file.read(_HEADER.size):
                position = file.tell() - len(header)
                yield _record(file, header, size - file.tell(), f"{path}, record at byte {position}")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error


def _record(file: IO[bytes], header: bytes, rest: int, where: str) -> bytes:
    if len(header) < _HEADER.size:
        raise _damaged(where, "the file ends within its header")
    length, checksum = _HEADER.unpack(header)
    if checksum != _masked(google_crc32c.value(header[:8])):  # first: a wrong length could be any number
        raise _damaged(where, "the checksum of its length does not match")
    if length + _CHECKSUM.size > rest:
        raise _damaged(where, f"it should have {length:,} bytes, but the file ends within it")
    data, footer = file.read(length), file.read(_CHECKSUM.size)
    if _CHECKSUM.unpack(footer)[0] != _masked(google_crc32c.value(data)):
        raise _damaged(where, "the checksum of its data does not match")
    return data


def _masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _damaged(where: str, reason: str) -> DataError:
    return DataError(f"{where}: {reason}. The file is damaged or incomplete: copy it again, or build it anew.")
