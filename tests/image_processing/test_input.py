"""What goes into the image processor: arrays, files and images of every kind become the same pixels."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_mnv2 import DataError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.image_processing.reading import read_picture

RAW = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}


def test_defaults(image):
    processor = MobileNetV2ImageProcessor()
    assert processor.size == {"shortest_edge": 256}
    assert processor.crop_size == {"height": 224, "width": 224}
    assert processor.image_mean == processor.image_std == [0.5, 0.5, 0.5]
    (pixels,) = processor(image).pixel_values
    assert (pixels.shape, pixels.dtype) == ((224, 224, 3), np.float32)
    assert -1 <= pixels.min() < -0.5
    assert 0.5 < pixels.max() <= 1


def test_every_kind_of_image_gives_the_same(processor, image, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = processor(image).pixel_values[0]
    one_each = [
        Image.fromarray(image),
        Image.open(path),
        path,
        str(path),
        jnp.asarray(image),
        torch.from_numpy(image.transpose(2, 0, 1).copy()),
        torch.from_numpy(image.astype(np.float32)).requires_grad_(),
        image.astype(np.float32),
        jnp.asarray(image, jnp.bfloat16),  # whole numbers up to 256 are exact in it
        np.asfortranarray(image).astype(">u2"),
    ]
    for kind in one_each:
        np.testing.assert_array_equal(processor(kind).pixel_values, [expected])
    for pixels in processor([*one_each, [image, image]]).pixel_values:
        np.testing.assert_array_equal(pixels, expected)


def test_a_4d_array_is_a_batch(processor, image):
    batch = np.stack([image, image[::-1], image[:, ::-1]])
    for given in (batch, jnp.asarray(batch), batch.transpose(0, 3, 1, 2), [batch[:2], batch[2:]]):
        pixels = processor(given, return_tensors="np").pixel_values
        np.testing.assert_array_equal(pixels, [processor(one).pixel_values[0] for one in batch])


def test_channel_order_is_inferred_or_given(processor, image):
    np.testing.assert_array_equal(read_picture(image.transpose(2, 0, 1), "image"), image)
    narrow = image[:, :3]  # either axis could be the channels'
    with pytest.warns(UserWarning, match="taking the first"):
        assert read_picture(narrow.transpose(2, 0, 1), "image").shape == (40, 3, 3)
    given = processor(narrow.transpose(2, 0, 1), input_data_format="channels_first", **RAW).pixel_values[0]
    np.testing.assert_array_equal(given, narrow)
    strip = image[:3]
    given = processor(strip, input_data_format="channels_last", **RAW).pixel_values[0]
    np.testing.assert_array_equal(given, strip)


def test_no_data_format_is_that_of_each_image_given(image):
    first = image.transpose(2, 0, 1)
    given = [image, first, Image.fromarray(image), image[..., 0], first[:1]]
    shapes = [pixels.shape for pixels in MobileNetV2ImageProcessor(**RAW)(given, data_format=None).pixel_values]
    assert shapes == [(40, 60, 3), (3, 40, 60), (40, 60, 3), (40, 60, 3), (3, 40, 60)]
    np.testing.assert_array_equal(
        MobileNetV2ImageProcessor(**RAW)(image[:3], data_format=None, input_data_format="channels_last").pixel_values[
            0
        ],
        image[:3],
    )


def test_an_image_without_channels(processor, image):
    grey = image[..., 0]
    expected = processor(grey).pixel_values
    np.testing.assert_array_equal(processor(grey, input_data_format="none").pixel_values, expected)
    np.testing.assert_array_equal(processor([grey], input_data_format="none").pixel_values, expected)
    with pytest.raises(DataError, match=r"image 0 must be \(height, width\) .*found shape \(40, 60, 3\)"):
        processor(image, input_data_format="none")


def test_grey_arrays_become_rgb(image):
    grey = image[..., 0]
    for array in (grey, grey[..., None], grey[None]):
        np.testing.assert_array_equal(read_picture(array, "image"), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_files_and_images_of_other_modes_become_rgb(image, tmp_path, mode):
    converted = Image.fromarray(image).convert(mode)
    expected = np.asarray(converted.convert("RGB"))
    np.testing.assert_array_equal(read_picture(converted, "image"), expected)
    if mode not in ("YCbCr", "HSV"):
        converted.save(tmp_path / "image.tif")
        np.testing.assert_array_equal(read_picture(tmp_path / "image.tif", "image"), expected)


@pytest.mark.parametrize("form", ["RGBA", "LA", "palette", "colour key"])
def test_transparency_is_laid_on_white(tmp_path, form):
    black = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    black.putpixel((1, 0), (0, 0, 0, 0))
    if form == "palette":
        picture, options = Image.fromarray(np.array([[1, 0, 1, 1], [1] * 4], np.uint8)).convert("P"), {}
        picture.putpalette([0] * 768)
        options = {"transparency": b"\x00\xff"}
    elif form == "colour key":
        picture, options = Image.new("RGB", (4, 2)), {"transparency": (9, 9, 9)}
        picture.putpixel((1, 0), (9, 9, 9))
    else:
        picture, options = black.convert(form), {}
    picture.save(tmp_path / "image.png", **options)
    expected = np.zeros((2, 4, 3), np.uint8)
    expected[0, 1] = 255
    np.testing.assert_array_equal(read_picture(tmp_path / "image.png", "image"), expected)


DEEP = np.array([[0, 257, 128 * 257], [65535, 100, 200]])
DEEP_IN_EIGHT_BITS = np.array([[0, 1, 128], [255, 0, 1]])


@pytest.mark.parametrize(
    ("values", "dtype", "suffix", "mode", "expected"),
    [
        (DEEP, np.uint16, "png", "I;16", DEEP_IN_EIGHT_BITS),
        (DEEP, np.int32, "tif", "I", DEEP_IN_EIGHT_BITS),
        (DEEP, np.float32, "tif", "F", DEEP_IN_EIGHT_BITS),
        (DEEP // 257, np.int32, "tif", "I", DEEP // 257),
        (DEEP // 257, np.float32, "tif", "F", DEEP // 257),
        (DEEP // 257, np.uint16, "png", "I;16", DEEP * 0 + [[0, 0, 0], [1, 0, 0]]),
        (DEEP / 65535, np.float32, "tif", "F", DEEP_IN_EIGHT_BITS),
    ],
)
def test_deep_files_are_scaled_to_eight_bits(tmp_path, values, dtype, suffix, mode, expected):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(values.astype(dtype)).save(path)
    with Image.open(path) as opened:
        assert opened.mode == mode
    picture = read_picture(path, "image")
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.stack([expected] * 3, axis=-1))


def test_exif_orientation_counts_for_paths_only(image, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise, to see it upright
    Image.fromarray(image).save(path, exif=exif)
    processor = MobileNetV2ImageProcessor(**RAW)
    for source in (path, str(path)):
        np.testing.assert_array_equal(processor(source).pixel_values[0], np.rot90(image, -1))
    np.testing.assert_array_equal(processor(Image.open(path)).pixel_values[0], image)


def test_fractions_that_would_be_rescaled_again_are_noticed(processor, image):
    fractions = image / np.float32(255)
    with pytest.warns(UserWarning, match="do_rescale=False"):
        processor(fractions)
    expected, found = processor(image).pixel_values[0], processor(fractions, do_rescale=False).pixel_values[0]
    np.testing.assert_allclose(found, expected, atol=2.1 / 255)  # cut to 256 levels on the way
