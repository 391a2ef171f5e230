"""Any image that a user may hand over → a NumPy array of known shape.

Pictures become (H, W, 3): PIL images, files and tensors of any colour mode, bit depth and channel order.
Segmentation maps become (H, W) with their indices untouched.
"""

from __future__ import annotations

import io
import os
import pathlib
import threading
import warnings
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from flax_mnv2.errors import DataError
from flax_mnv2.files import shown
from flax_mnv2.image_processing.fetching import fetch, is_url

CHANNELS_FIRST, CHANNELS_LAST, NO_CHANNELS = "channels_first", "channels_last", "none"
CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGBA
MAX_PIXELS = 2**27  # of one image: a camera of 134 megapixels, 400 MB as RGB; checked before anything is decoded
# Pillow's names; what users have photos and maps in
FILE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
IMAGE_SUFFIXES = (  # of files in these formats, in lower case
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif"),
    *(".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
_REFUSED = (  # what a file that nobody here reads begins with, or has from its fifth byte on
    *((b"%!PS", "PostScript"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"%PDF", "PDF"), (b"8BPS", "Photoshop")),
    *((b"<svg", "SVG"), (b"<!DOCTYPE", "HTML"), (b"<!doctype", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML")),
    *((b"ftyphei", "HEIC"), (b"ftyphev", "HEIC"), (b"ftypmif1", "HEIC"), (b"ftypmsf1", "HEIC"), (b"ftyp", "video")),
    *((b"\xff\x0a", "JPEG XL"), (b"JXL ", "JPEG XL")),
)
_OPENING = threading.Lock()  # the list of warning filters belongs to all threads
_KINDS = "a PIL image, a path, an http(s) address, or a NumPy, JAX, PyTorch or TensorFlow array"


def flatten_batch(images: Any, *, rank: int, what: str) -> list[Any]:
    """Returns one or many, nested or batched, as a flat list of PIL images, paths and NumPy arrays.

    An array of ``rank`` dimensions is one image, of one more a batch; ``what`` messages call it. Raises a DataError for
    nothing at all, and for what is no image.
    """
    flat = list(_flatten(images, rank, what))
    if not flat:
        raise DataError(f"No {what} given: found an empty {type(images).__name__}; give at least one {what}.")
    return flat


def layout_of(source: Any, name: str, input_data_format: str | None) -> str:
    """Returns where an image of ``flatten_batch`` has its channels.

    As ``input_data_format`` says, else as its shape does by Hugging Face's rule; last where it has one channel only,
    and for files and PIL images. Raises a DataError where neither end can be the channels'.
    """
    rank = source.ndim if isinstance(source, np.ndarray) else 2
    if input_data_format == NO_CHANNELS and rank != 2:
        raise DataError(
            f"{name} must be (height, width) where input_data_format='none'; found shape {source.shape}. Leave "
            "input_data_format out, or say where the channels are."
        )
    return CHANNELS_LAST if rank != 3 else input_data_format or _infer_data_format(source.shape, name)


def read_picture(source: Any, name: str, input_data_format: str | None = None) -> np.ndarray:
    """Reads one picture as RGB.

    A file, or what an address gives, is one of :data:`FILE_FORMATS` with at most :data:`MAX_PIXELS`, and its EXIF
    orientation is honoured; of an animation the first picture is read. A PIL image is taken as it stands. An array is
    (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4; None as ``input_data_format`` infers which from its shape, as
    Hugging Face does. Transparency is laid on white, which is Hugging Face's rule under ``do_convert_rgb``. Returns
    (H, W, 3): uint8 from files and PIL images, 16 bits and floats too; of an array its own type and values.

    Raises:
      DataError: unreadable, truncated or too large, of another rank or channel count, empty, or not finite.
    """
    if isinstance(source, (str, os.PathLike)):
        return _picture_from_pil(_open(source), name=f"{name} ({source})")
    if isinstance(source, Image.Image):
        return _picture_from_pil(source, name)
    return _to_rgb(_channels_last(_check_values(source, name), name, input_data_format), name)


def decode_picture(data: bytes) -> Image.Image:
    """Reads an image file that lies in memory, as a PIL image in mode RGB with the pixels of :func:`read_picture`.

    Raises a DataError with the reason alone, without a name or a full stop, for the caller to complete.
    """
    try:
        with _open_header(io.BytesIO(data)) as image:
            image = _whole(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(_kind(data)) from None
    except Exception as error:  # as in _open
        raise DataError(str(error) or type(error).__name__) from None
    return _rgb_from_pil(image, "it")


def read_orientation(data: bytes) -> int:
    """Returns the EXIF orientation of an image file in memory, from 1 (upright) to 8; 1 too where it is unknown."""
    try:
        with _open_header(io.BytesIO(data)) as image:
            return _orientation(image)
    except Exception:  # as in _open; who decodes the file says what is wrong
        return 1


def read_map(source: Any, name: str) -> np.ndarray:
    """Reads one segmentation map as (H, W) int32; palette and grey images keep their indices.

    Raises a DataError where it is unreadable or has more than one channel or other values than class indices.
    """
    if isinstance(source, (str, os.PathLike)):
        name = f"{name} ({source})"
        source = _open(source)
    array = _check_values(_pil_to_array(source, name) if isinstance(source, Image.Image) else source, name)
    if array.ndim != 2:
        raise DataError(
            f"{name} must have one channel of class indices, shape (height, width); found shape {array.shape}. "
            "Save it as a grey or palette PNG."
        )
    info = np.iinfo(np.int32)
    if array.min() < info.min or array.max() > info.max or (array.dtype.kind == "f" and np.any(array % 1)):
        raise DataError(
            f"{name} must hold class indices, whole 32-bit numbers; found {array.dtype} values from {array.min()} to "
            f"{array.max()}."
        )
    return array.astype(np.int32)


def _flatten(images: Any, rank: int, what: str):
    if isinstance(images, (list, tuple)):
        for item in images:
            yield from _flatten(item, rank, what)
    elif isinstance(images, (str, os.PathLike, Image.Image)):
        yield images
    else:
        array = to_numpy(images, what)
        yield from array if array.ndim == rank + 1 else [array]


def to_numpy(value: Any, what: str) -> np.ndarray:
    """Converts an array of any of the four libraries, none of which is imported for it; bfloat16 becomes float32.

    Raises a DataError where it is no array; ``what`` says what it should have been.
    """
    if type(value).__module__.partition(".")[0] == "torch":
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if not hasattr(value, "__array__"):
        raise DataError(f"A {what} must be {_KINDS}, or a list of these; found {type(value).__name__}.")
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return array.astype(np.uint8) if array.dtype == bool else array


def _check_values(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "uif":
        raise DataError(f"{name} must hold real numbers; found dtype {array.dtype}.")
    if array.ndim < 2 or 0 in array.shape:
        raise DataError(f"{name} must have a height and a width of 1 or more; found shape {array.shape}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name} holds NaN or infinity; expected finite pixel values. Repair or drop it.")
    return array


def _channels_last(array: np.ndarray, name: str, input_data_format: str | None) -> np.ndarray:
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise DataError(
            f"{name} must be (height, width), (height, width, channels) or (channels, height, width), or a 4-D batch "
            f"of the latter two; found shape {array.shape}."
        )
    data_format = input_data_format or _infer_data_format(array.shape, name)
    array = np.moveaxis(array, 0, -1) if data_format == CHANNELS_FIRST else array
    if array.shape[-1] not in CHANNEL_COUNTS:
        raise DataError(
            f"{name} must have 1, 3 or 4 channels; found {array.shape[-1]} where input_data_format={data_format!r} "
            "has them."
        )
    return array


def _infer_data_format(shape: tuple[int, ...], name: str) -> str:
    first, last = shape[0] in CHANNEL_COUNTS, shape[-1] in CHANNEL_COUNTS
    if not (first or last):
        raise DataError(f"{name} must have 1, 3 or 4 channels, as its first or its last axis; found shape {shape}.")
    if first and last:
        warnings.warn(
            f"{name}: either axis of shape {shape} may be the channels; taking the first, as transformers does. "
            "Say which with input_data_format.",
            stacklevel=2,
        )
    return CHANNELS_FIRST if first else CHANNELS_LAST


def _to_rgb(array: np.ndarray, name: str) -> np.ndarray:
    channels = array.shape[-1]
    if channels == 1:
        return np.repeat(array, 3, axis=-1)
    if channels == 3:
        return array
    floating = array.dtype.kind == "f"
    white = 1.0 if floating else 255
    if array.min() < 0 or array.max() > white:
        raise DataError(
            f"{name} has an alpha channel, so its values must lie in [0, {white}]; found {array.min()} to "
            f"{array.max()}. Scale it, or drop the fourth channel."
        )
    alpha = array[..., 3:] / white
    blended = alpha * array[..., :3] + (1 - alpha) * white
    return (blended if floating else np.round(blended)).astype(array.dtype)


def check_pixels(width: int, height: int) -> None:
    """Raises a DataError that says the size and the limit, for an image of more than :data:`MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{width}x{height} pixels (width x height), more than the limit of {MAX_PIXELS:,}: a decompression "
            "bomb, or an image to be made smaller first"
        )


def _open(source: str | os.PathLike) -> Image.Image:
    """Reads a whole file, or what an address gives, and turns it as its EXIF orientation says."""
    name = shown(str(source))[1:-1]  # without quotes, and short where somebody gives a whole image as text
    try:
        with _stream(source) as file:
            start = file.read(16)
            file.seek(0)
            with _open_header(file) as image:
                return _whole(image)
    except FileNotFoundError:
        raise DataError(f"No image file {name}; give the path of an image on this machine.") from None
    except UnidentifiedImageError:
        raise DataError(
            f"Cannot read the image {name}: {_kind(start)}. Expected a file in one of the formats "
            f"{', '.join(FILE_FORMATS)}; convert it, or leave it out."
        ) from None
    except Exception as error:  # Pillow's readers raise many types, from SyntaxError to struct.error
        raise DataError(
            f"Cannot read the image {name}: {error or type(error).__name__}. Expected a whole image of at most "
            f"{MAX_PIXELS:,} pixels; replace it or leave it out."
        ) from None


def _stream(source: str | os.PathLike) -> BinaryIO:
    if is_url(source):
        return io.BytesIO(fetch(source))
    path = pathlib.Path(source)
    return (path if path.exists() else path.expanduser()).open("rb")


def _open_header(file: BinaryIO) -> Image.Image:
    """Opens a file without decoding it. Pillow warns well below our limit, where there is nothing to warn of.

    It takes no path: of one Pillow would map a TIFF into memory, and forget to turn it.
    """
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=FILE_FORMATS)


def _whole(image: Image.Image) -> Image.Image:
    """Decodes a file that was opened, unless it is too large, and turns it as its EXIF orientation says."""
    check_pixels(*image.size)
    image.load()  # first: Pillow turns a TIFF itself, and takes the orientation out
    if _orientation(image) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, which Pillow reports by many types, is none
        return 1
    return found if found in range(2, 9) else 1


def _kind(data: bytes) -> str:
    """Says what a file is that no reader of ours knows, judged by its first bytes alone."""
    start = data[:16]
    if not start:
        return "it is empty"
    name = next((name for magic, name in _REFUSED if start.startswith(magic) or start[4:].startswith(magic)), None)
    return f"it is a {name} file" if name else f"its format is unknown (it begins with {start!r})"


def _picture_from_pil(image: Image.Image, name: str) -> np.ndarray:
    if 0 in image.size:
        raise DataError(f"{name} must have a height and a width of 1 or more; found {image.height}×{image.width}.")
    return _pil_to_array(_rgb_from_pil(image, name), name)


def _rgb_from_pil(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_eight_bits(_pil_to_array(image, name), image.mode, name))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    _load(image, name)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except Exception as error:  # as in _open, where a file tells nonsense of its transparency
        raise DataError(f"{name}: mode {image.mode} cannot become RGB ({error}). Save it as RGB.") from None


def _to_eight_bits(array: np.ndarray, mode: str, name: str) -> np.ndarray:
    """Converts (H, W) of a 16-bit, 32-bit or float image to uint8, so that its white stays white.

    Only the modes ``I;16`` say what white is. Of the others the values tell: float up to 1, else 8 bits up to 255,
    else 16 bits.
    """
    array = _check_values(array, name)
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        raise DataError(f"{name}: mode {mode} must hold values from 0 to 65535; found {low} to {high}. Rescale it.")
    white = 255
    if mode.startswith("I;16") or high > 255:
        white = 65535
    elif mode == "F" and high <= 1:
        white = 1
    return np.round(array * np.float64(255 / white)).astype(np.uint8)


def _pil_to_array(image: Image.Image, name: str) -> np.ndarray:
    _load(image, name)
    array = np.asarray(image)
    return array.astype(np.uint8) if array.dtype == bool else array


def _load(image: Image.Image, name: str) -> None:
    """Reads the pixels of a file that was opened but not yet read."""
    try:
        if isinstance(image, ImageFile.ImageFile):
            check_pixels(*image.size)
        image.load()
    except Exception as error:  # as in _open
        file = getattr(image, "filename", "")
        raise DataError(
            f"Cannot read {name}{f' ({file})' if file else ''}: {error or type(error).__name__}. Expected a whole "
            "image, still open; replace it or leave it out."
        ) from None
