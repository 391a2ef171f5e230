"""Encoded images → pixels: what is decoded, and what is refused before a decoder sees it.

What cannot be found, and is tested as such: bits flipped inside the data of a JPEG or a BMP, which have no checksum.
Where the decoder can go on it makes other pixels of them. In a prepared data set a hash of every record finds them.
"""

import io
import struct
import time

import numpy as np
import pytest
from pictures import BOMB, encode, photo
from PIL import Image
from voc_archives import palette_png

from flax_mnv2.data.augment.random_crop import decode_random_crop
from flax_mnv2.data.decode import check_encoded, check_mask, decode_image, decode_mask, decode_rgb
from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import MAX_PIXELS


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def test_decode_image_modes(pixels):
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(decode_image(encode(image, "PNG")), pixels)
    jpeg = encode(image, "JPEG")
    np.testing.assert_allclose(decode_image(jpeg), np.array(Image.open(io.BytesIO(jpeg))), atol=4)
    for mode in ("L", "CMYK"):
        assert decode_image(encode(image.convert(mode), "JPEG")).shape == (24, 32, 3)
    assert decode_image(encode(image.convert("RGBA"), "PNG")).shape == (24, 32, 3)


@pytest.mark.parametrize("data", [b"", b"rubbish"])
def test_undecodable(data):
    with pytest.raises(DataError, match="not a readable image"):
        decode_image(data)
    with pytest.raises(DataError, match="not a readable PNG mask"):
        decode_mask(data)


def test_decode_mask_keeps_indices():
    indices = np.random.default_rng(0).integers(0, 5, (24, 32), dtype=np.uint8)
    np.testing.assert_array_equal(decode_mask(palette_png(indices)), indices)
    np.testing.assert_array_equal(decode_mask(encode(Image.fromarray(indices), "PNG")), indices)
    bits = decode_mask(encode(Image.fromarray(indices > 2), "PNG"))
    np.testing.assert_array_equal(bits, indices > 2)
    assert bits.dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_colour_mode_is_decoded_as_pillow_does_as_stored(mode, orientation):
    """OpenCV turns CMYK into other colours, and rotates by EXIF unless told not to."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG" if mode in ("P", "1") else "JPEG", exif=exif)
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    decoded = decode_rgb(buffer.getvalue(), as_stored=True)
    assert (decoded.mode, decoded.size) == ("RGB", (30, 20))
    np.testing.assert_array_equal(np.asarray(decoded), expected)


@pytest.mark.parametrize(
    ("kind", "options", "mode"),
    [
        ("JPEG", {}, "RGB"),
        ("JPEG", {"progressive": True}, "L"),
        ("JPEG", {"icc_profile": bytes(70_000), "comment": b"\xff\xd9"}, "CMYK"),
        ("PNG", {}, "P"),
        ("WEBP", {}, "RGB"),
        ("WEBP", {"lossless": True}, "RGB"),
        ("WEBP", {"exif": b"Exif\0\0"}, "RGBA"),
        ("BMP", {}, "RGB"),
    ],
)
def test_sizes_are_read_from_headers_and_cut_files_are_refused(kind, options, mode):
    data = encode(photo(40, 64).convert(mode), kind, **options)
    assert check_encoded(data) == (40, 64)
    assert decode_image(data).shape == (40, 64, 3)
    for keep in {0, 1, 2, 10, 20, 40, *range(len(data) // 9, len(data), len(data) // 9), len(data) - 16}:
        for decode in (decode_image, decode_rgb):
            with pytest.raises(DataError, match=r"not a readable image"):
                decode(data[:keep])


def test_a_cut_jpeg_does_not_pass_for_whole_because_of_its_thumbnail():
    exif = b"Exif\0\0" + encode(photo(16, 16), "JPEG")  # as cameras write: a whole JPEG inside the header
    data = encode(photo(64, 64), "JPEG", exif=exif)
    assert data.count(b"\xff\xd9") == 2
    assert decode_image(data).shape == (64, 64, 3)
    with pytest.raises(DataError, match="truncated: a JPEG without its end marker"):
        decode_image(data[:-2])


def test_flipped_bits_give_an_error_or_an_image_of_the_right_size():
    rng, outcomes = np.random.default_rng(0), {"JPEG": [], "PNG": []}
    for kind, found in outcomes.items():
        whole = encode(photo(40, 64), kind)
        for _ in range(100):
            data = bytearray(whole)
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            try:
                image = decode_image(bytes(data))
                found.append(image.shape[0] * image.shape[1] <= MAX_PIXELS)
            except DataError:
                found.append(None)
    assert all(found in (None, True) for found in outcomes["JPEG"] + outcomes["PNG"])
    assert {None, True} == set(outcomes["JPEG"])  # some pass, which is why records have hashes
    assert outcomes["PNG"].count(None) > 70


@pytest.mark.parametrize(
    "decode",
    [
        decode_image,
        decode_rgb,
        decode_mask,
        lambda data: decode_random_crop(data, np.random.default_rng(0), size=32),
    ],
    ids=["image", "rgb", "mask", "crop"],
)
def test_a_bomb_is_refused_before_it_is_decoded(decode):
    assert len(BOMB) < 4_000
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"60000x60000 pixels .*more than the limit of 134,217,728"):
        decode(BOMB)
    assert time.perf_counter() - began < 1.0


def test_a_jpeg_bomb_is_refused():
    data = bytearray(encode(photo(), "JPEG"))
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(DataError, match="65000x65000 pixels"):
        decode_image(bytes(data))


def test_other_formats_never_reach_a_decoder():
    for kind in ("TGA", "PCX", "ICO"):
        with pytest.raises(DataError, match="its format is unknown"):
            decode_image(encode(photo(), kind))


def test_mask_values():
    mask = np.array([[0, 4, 255], [1, 2, 3]], np.uint8)
    check_mask(mask, (2, 3), num_classes=5, ignore_label=255)
    check_mask(mask, (2, 3), num_classes=None, ignore_label=0)
    for classes, ignore, wrong in ((4, 255, "the value 4"), (3, 255, "the values 3, 4"), (5, 2, "the value 255")):
        with pytest.raises(DataError, match=rf"has {wrong}, expected 0 … {classes - 1} or the ignore label {ignore}"):
            check_mask(mask, (2, 3), num_classes=classes, ignore_label=ignore)
    check_mask(mask, (2, 3), num_classes=256, ignore_label=2)
