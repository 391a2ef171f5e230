"""Pictures that users hand over: formats that are read or refused, and images made to exhaust memory."""

import struct

import pytest
from pictures import BOMB, encode, photo
from PIL import Image

from flax_mnv2.errors import DataError
from flax_mnv2.image_processing import reading
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor


@pytest.mark.parametrize("kind", reading.FILE_FORMATS)
def test_documented_formats_are_read(tmp_path, kind):
    photo(24, 32).save(tmp_path / "a.img", kind)
    assert reading.read_picture(tmp_path / "a.img", "image 0").shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PostScript file"),
        (b"%PDF-1.4\n", "it is a PDF file"),
        (encode(photo(), "TGA"), r"its format is unknown \(it begins with b"),
        (b"<!DOCTYPE html><html>404</html>", "it is a HTML file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIC file"),
        (b"", "it is empty"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, data, message):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.png: {message}.*formats JPEG, PNG, WEBP, BMP, GIF, TIFF"):
        reading.read_picture(tmp_path / "a.png", "image 0")


def _gif(width, height):
    data = bytearray(encode(Image.new("L", (8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BOMB, "3600000000 pixels"),
        (lambda: _gif(12_000, 12_000), r"12000x12000 pixels .*limit of 134,217,728"),  # Pillow would only warn
        (lambda: _gif(65_535, 65_535), "4294836225 pixels"),
        (lambda: encode(Image.new("1", (12_000, 12_000)), "TIFF", compression="group4"), "12000x12000 pixels"),
    ],
    ids=["png", "gif", "large gif", "tiff"],
)
def test_the_processor_refuses_bombs_once_and_clearly(tmp_path, make, message):
    (tmp_path / "bomb").write_bytes(make())
    with pytest.raises(DataError, match=rf"bomb: .*{message}.*at most 134,217,728 pixels"):
        MobileNetV2ImageProcessor()(tmp_path / "bomb")


def test_an_opened_file_has_the_same_limit(tmp_path, monkeypatch):
    photo(24, 32).save(tmp_path / "a.png")
    monkeypatch.setattr(reading, "MAX_PIXELS", 24 * 32 - 1)
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(DataError, match=r"image 0 .*32x24 pixels.* limit"):
        MobileNetV2ImageProcessor()(opened)
    monkeypatch.setattr(reading, "MAX_PIXELS", 24 * 32)
    assert reading.read_picture(tmp_path / "a.png", "image 0").shape == (24, 32, 3)


def test_pillow_does_not_warn_below_our_limit(tmp_path, monkeypatch):
    photo(24, 32).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # it warns from there, and raises at twice as many
    assert reading.read_picture(tmp_path / "a.png", "image 0").shape == (24, 32, 3)  # warnings are errors here
