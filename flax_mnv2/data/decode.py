"""The one decoder of data sets: encoded bytes → pixels of images and masks.

A user's photos are decoded by one rule in training, evaluation and prediction, that of ``image_processing.reading``:
turned as EXIF says, transparency on white, 16 bits to 8. ``as_stored`` is the rule of ImageNet's archives, which the
field trains on without a look at EXIF or alpha.

Decoders are C libraries that allocate what a header asks for, and OpenCV's have filled the rest of a JPEG that is cut
short with grey without a word. So the first and the last bytes of every file are read before a decoder sees it; that
costs a few microseconds, a hundredth of decoding.
"""

import io
import struct
from collections.abc import Callable

import cv2
import numpy as np
from PIL import ExifTags, Image

from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import check_pixels, decode_picture, read_orientation

UPRIGHT, AS_STORED = "upright, transparency on white", "as stored"  # the two rules, as data sets and runs record them
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow's names: what is decoded as stored, and checked before it is decoded

_JPEG = b"\xff\xd8\xff"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are tables (ITU T.81, table B.1)
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))
_START_OF_SCAN, _END_OF_IMAGE, _EXIF_OR_XMP = 0xDA, 0xD9, 0xE1


def decode_image(data: bytes, *, as_stored: bool = False) -> np.ndarray:
    """Decodes an image file to uint8 (H, W, 3) RGB; grey, palette and CMYK become RGB.

    By default it is one of ``reading.FILE_FORMATS``, with the pixels that ``reading.read_picture`` gives; ``as_stored``
    takes :data:`FORMATS` only, ignores EXIF orientation and drops alpha. A DataError for what is not a whole image, or
    too large (:func:`check_encoded`).
    """
    image = decode_bgr(data, as_stored=as_stored)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def decode_bgr(data: bytes, *, as_stored: bool = False) -> np.ndarray:
    """As :func:`decode_image`, with channels in OpenCV's order."""
    if as_stored:
        return _by_opencv(data)
    may_turn = _may_turn_as_jpeg(data)
    if may_turn is None:
        return cv2.cvtColor(np.asarray(decode_rgb(data)), cv2.COLOR_RGB2BGR)
    return _upright(_by_opencv(data), read_orientation(data) if may_turn else 1)


def decode_rgb(data: bytes, *, as_stored: bool = False) -> Image.Image:
    """As :func:`decode_image`, a PIL image by Pillow, which evaluations elsewhere use and which refuses cut files.

    OpenCV gives the same pixels for RGB and grey JPEG, and is the faster one.
    """
    try:
        if not as_stored:
            if _size_reader(data) is not None:
                check_encoded(data)
            return decode_picture(data)
        check_encoded(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's readers raise many types
        raise _unreadable(error or type(error).__name__) from error


def _by_opencv(data: bytes) -> np.ndarray:
    """Pixels as they are stored, (H, W, 3) BGR."""
    try:
        check_encoded(data)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except (DataError, cv2.error) as error:
        raise _unreadable(error) from error
    if image is None:
        raise _unreadable("its data is damaged or cut short")
    return image


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image as its EXIF orientation, 1 to 8, says."""
    if orientation >= 5:
        image = cv2.transpose(image)
    if orientation in (2, 3, 6, 7):
        image = cv2.flip(image, 1)
    return cv2.flip(image, 0) if orientation in (3, 4, 7, 8) else image


def _unreadable(reason: object) -> DataError:
    return DataError(f"not a readable image ({reason}). Replace the file")


def decode_mask(data: bytes) -> np.ndarray:
    """Decodes a PNG mask to uint8 (H, W) class indices; palette indices are kept (OpenCV would colour them).

    A DataError for other formats, what is too large, and what is not of one channel with at most 8 bits.
    """
    try:
        check_encoded(data)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mode, mask = image.mode, np.array(image)
            turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception as error:  # Pillow's readers raise many types
        raise DataError(f"not a readable PNG mask ({error or type(error).__name__}). Replace the file") from error
    if mode not in ("1", "L", "P"):
        raise DataError(
            "expected a mask of one 8-bit channel (grey or palette PNG) whose pixel values are class "
            f"indices, found mode {mode} with shape {mask.shape}. Convert colours to class indices"
        )
    if turned:
        raise DataError(
            f"a mask with EXIF orientation {image.getexif()[ExifTags.Base.Orientation]}: whether its pixels are those "
            "of the upright photo is not clear. Save it without EXIF"
        )
    return mask.astype(np.uint8, copy=False)


def check_mask(mask: np.ndarray, size: tuple[int, int], *, num_classes: int | None, ignore_label: int) -> None:
    """Raises a DataError where a mask, uint8 (H, W), has not its image's ``size`` (height, width), or other values.

    It may hold ``ignore_label`` and values below ``num_classes`` (None: any). The first wrong ones are named.
    """
    if mask.shape != size:
        raise DataError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]} (width x height). "
            "Resize the mask to its image (nearest neighbour), or replace one"
        )
    if num_classes is None:
        return
    # Two passes of vector instructions; a histogram, or a table to look values up in, takes five times as long.
    allowed = np.count_nonzero(mask == ignore_label) if ignore_label >= num_classes else 0
    if np.count_nonzero(mask >= num_classes) != allowed:
        wrong = [value for value in np.unique(mask).tolist() if value >= num_classes and value != ignore_label]
        raise DataError(
            f"the mask has {'the values ' if len(wrong) > 1 else 'the value '}{', '.join(map(str, wrong[:8]))}"
            f"{' …' if len(wrong) > 8 else ''}, expected 0 … {num_classes - 1} or the ignore label {ignore_label}. "
            "Correct the mask, or the labels (--config.data.labels, .num_classes, .ignore_label)"
        )


def check_encoded(data: bytes) -> tuple[int, int]:
    """Returns height and width, or refuses what should not reach a decoder.

    Found are: another format, more pixels than ``image_processing.reading.MAX_PIXELS``, and a file cut short (JPEG
    without its end marker, PNG without its last chunk, WebP shorter than it says; BMP is left to the decoders, which
    notice). Flipped bits inside the data of a JPEG or BMP cannot be found: neither has a checksum, and a decoder makes
    other pixels of them. The DataError has no name and no full stop, for the caller to complete.
    """
    if not data:
        raise DataError("it is empty")
    read_size = _size_reader(data)
    if read_size is None:
        raise DataError(f"its format is none of {', '.join(FORMATS)}: it begins with {bytes(data[:8])!r}")
    try:
        width, height = read_size(data)
    except (struct.error, IndexError):
        raise DataError("its header is damaged or cut short") from None
    if width <= 0 or height <= 0:
        raise DataError(f"its header says {width}x{height} pixels (width x height)")
    check_pixels(width, height)
    return height, width


def _size_reader(data: bytes) -> Callable[[bytes], tuple[int, int]] | None:
    if data.startswith(_JPEG):
        return _jpeg_size
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_size
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_size
    return _bmp_size if data.startswith(b"BM") else None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    frame, _ = _jpeg_frame(data)
    height, width = struct.unpack_from(">HH", data, frame + 3)
    if data.rfind(b"\xff\xd9", frame) < 0:
        raise DataError("the file is truncated: a JPEG without its end marker")
    return width, height


def _jpeg_frame(data: bytes) -> tuple[int, bool]:
    """Returns where the segment with size and channels is, and whether EXIF or XMP comes before it."""
    at, has_exif = 2, False
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise IndexError
        while data[at] == 0xFF:  # any number of them may precede a marker
            at += 1
        marker, at = data[at], at + 1
        if marker in _START_OF_FRAME:
            return at, has_exif
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            raise IndexError
        has_exif = has_exif or marker == _EXIF_OR_XMP
        if marker not in _WITHOUT_LENGTH:
            at += struct.unpack_from(">H", data, at)[0]


def _may_turn_as_jpeg(data: bytes) -> bool | None:
    """Returns whether a JPEG may have an orientation; None for what OpenCV gives other pixels of than Pillow."""
    if not data.startswith(_JPEG):
        return None
    try:
        frame, has_exif = _jpeg_frame(data)
        return has_exif if data[frame + 7] in (1, 3) else None  # of four channels each makes its own RGB
    except (struct.error, IndexError):
        return None


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
