"""What the image processor says of images and maps that it cannot take."""

import io

import numpy as np
import pytest
from PIL import Image

from flax_mnv2 import DataError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "No image given: found an empty list"),
        ([[], []], "No image given"),
        (np.zeros((0, 8, 8, 3), np.uint8), "No image given"),
        (None, "found NoneType"),
        ([1, 2], "found int"),
        ({"image": 1}, "found dict"),
        (np.zeros(7, np.uint8), r"image 0 must have a height and a width.*\(7,\)"),
        (np.zeros((8, 0, 3), np.uint8), r"height and a width of 1 or more.*\(8, 0, 3\)"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"image 0 must be \(height, width\).*found shape \(1, 2, 8, 8, 3\)"),
        (np.zeros((8, 9, 2), np.uint8), r"1, 3 or 4 channels.*\(8, 9, 2\)"),
        (np.zeros((5, 8, 9), np.uint8), r"1, 3 or 4 channels.*\(5, 8, 9\)"),
        (np.zeros((8, 9, 3), complex), "real numbers; found dtype complex128"),
        (np.array([["a", "b"]]), "real numbers; found dtype <U1"),
        ([np.zeros((8, 9, 3), np.uint8), np.full((8, 9, 3), np.nan)], "image 1 holds NaN or infinity"),
        (np.full((8, 9, 3), np.inf, np.float32), "NaN or infinity"),
        (np.full((8, 9, 3), 12.5), r"image 0 cannot be resized.*found float64 values from 12\.5"),
        (np.full((8, 9, 3), -1), "cannot be resized.*from -1"),
        (np.full((8, 9, 3), 300, np.uint16), "cannot be resized.*to 300"),
        (np.full((8, 9, 4), 2.0), r"alpha channel.*in \[0, 1\.0\]"),
        (np.zeros((2, 2_200_000, 3), np.uint8), "would become 256×281600000"),
        (Image.fromarray(np.full((8, 9), -1, np.int32)), "mode I must hold values from 0 to 65535; found -1"),
        (Image.new("La", (8, 9)), "mode La cannot become RGB"),
        ("absent.png", "No image file absent.png"),
        ("data:image/png;base64," + "A" * 10_000, r"Cannot read the image data:image/png;base64,A{100,200}… \("),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_bad_images(bad, message):
    with pytest.raises(DataError, match=message):
        MobileNetV2ImageProcessor()(bad)


def test_a_wrong_input_data_format_is_named(image):
    with pytest.raises(DataError, match="found 40 where input_data_format='channels_first'"):
        MobileNetV2ImageProcessor()(image, input_data_format="channels_first")


@pytest.mark.parametrize("content", ["text", "empty", "truncated png", "truncated jpeg", "folder"])
def test_files_that_cannot_be_read_are_named(image, tmp_path, content):
    path = tmp_path / "broken.img"
    if content == "folder":
        path.mkdir()
    elif content.startswith("truncated"):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, content.split()[1])
        path.write_bytes(buffer.getvalue()[:-600])
    else:
        path.write_text("" if content == "empty" else "not an image")
    with pytest.raises(DataError, match=r"Cannot read the image .*broken\.img"):
        MobileNetV2ImageProcessor()(path)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_opened_truncated_file_is_named_too(image, tmp_path, mode):
    path = tmp_path / "broken.png"
    Image.fromarray(image).convert(mode).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    with Image.open(path) as opened, pytest.raises(DataError, match=r"Cannot read image 0 .*broken\.png.*truncated"):
        MobileNetV2ImageProcessor()(opened)


def test_a_decompression_bomb_is_refused(image, tmp_path, monkeypatch):
    Image.fromarray(image).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.png.*exceeds limit"):
        MobileNetV2ImageProcessor()(tmp_path / "bomb.png")


def test_different_shapes_make_no_tensor(image):
    processor = MobileNetV2ImageProcessor(do_center_crop=False, size=32)
    assert [pixels.shape for pixels in processor([image, image[:, :50]]).pixel_values] == [(32, 48, 3), (32, 40, 3)]
    with pytest.raises(DataError, match=r"one shape.*\(32, 40, 3\), \(32, 48, 3\).*do_center_crop=True"):
        processor([image, image[:, :50]], return_tensors="np")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "No segmentation map given"),
        (np.zeros((2, 40, 60), np.uint8), "one segmentation map per image, 1; found 2"),
        (np.zeros((40, 61), np.uint8), "segmentation map 0 must have its image's size, 40×60; found 40×61"),
        (Image.new("RGB", (60, 40)), r"one channel of class indices.*found shape \(40, 60, 3\)"),
        (np.full((40, 60), 0.5), "whole 32-bit numbers; found float64"),
        (np.full((40, 60), 2**40), "whole 32-bit numbers"),
        (np.full((40, 60), np.nan), "segmentation map 0 holds NaN"),
        ("absent.png", "No image file absent.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_maps(image, bad, message):
    with pytest.raises(DataError, match=message):
        MobileNetV2ImageProcessor()(image, bad)
