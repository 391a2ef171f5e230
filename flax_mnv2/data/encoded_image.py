"""What the first and the last bytes of an image file say, read before a decoder sees it.

Decoders are C libraries that allocate what a header asks for, and OpenCV's have filled the rest of a JPEG that is cut
short with grey without a word. Reading a header costs a few microseconds, a hundredth of decoding.
"""

import struct

from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import check_pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow's names: what both Pillow and OpenCV decode

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are tables (ITU T.81, table B.1)
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def check_encoded(data: bytes) -> tuple[int, int]:
    """Refuses what should not reach a decoder.

    Found are: another format, more pixels than ``image_io.MAX_PIXELS``, and a file cut short (JPEG without its end
    marker, PNG without its last chunk, WebP shorter than it says; BMP is left to the decoders, which notice). Flipped
    bits inside the data of a JPEG or BMP cannot be found: neither has a checksum, and a decoder makes other pixels of
    them.

    Args:
      data: the encoded image.

    Returns:
      Height and width.

    Raises:
      DataError: without a name or a full stop, for the caller to complete.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            width, height = _jpeg_size(data)
        elif data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = _png_size(data)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            width, height = _webp_size(data)
        elif data.startswith(b"BM"):
            width, height = _bmp_size(data)
        else:
            found = f"it begins with {bytes(data[:8])!r}" if data else "it is empty"
            raise DataError(f"its format is none of {', '.join(FORMATS)}: {found}")
    except (struct.error, IndexError):
        raise DataError("its header is damaged or cut short") from None
    if width <= 0 or height <= 0:
        raise DataError(f"its header says {width}x{height} pixels (width x height)")
    check_pixels(width, height)
    return height, width


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise IndexError
        while data[at] == 0xFF:  # any number of them may precede a marker
            at += 1
        marker, at = data[at], at + 1
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 3)
            if data.rfind(b"\xff\xd9", at) < 0:
                raise DataError("the file is truncated: a JPEG without its end marker")
            return width, height
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            raise IndexError
        if marker not in _WITHOUT_LENGTH:
            at += struct.unpack_from(">H", data, at)[0]


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise IndexError
    if data.rfind(b"IEND") < 0:
        raise DataError("the file is truncated: a PNG without its last chunk")
    return struct.unpack_from(">II", data, 16)


def _webp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise DataError("the file is truncated: a WebP shorter than its header says")
    kind = data[12:16]
    if kind == b"VP8 ":  # RFC 9649, with the frame header of RFC 6386
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    raise IndexError


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # the header of OS/2
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # negative where rows go down
