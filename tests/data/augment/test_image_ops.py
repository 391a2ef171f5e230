"""What the operations mean; their pixels are compared with torchvision's in tests/parity/test_augmentation.py."""

import colorsys

import numpy as np
import pytest

from flax_mnv2.data.augment import image_ops as ops

FILL = (9, 200, 77)
EVERY = {
    "brightness": lambda image: ops.brightness(image, 1.7),
    "contrast": lambda image: ops.contrast(image, 1.7),
    "saturation": lambda image: ops.saturation(image, 1.7),
    "hue": lambda image: ops.hue(image, 0.2),
    "sharpness": lambda image: ops.sharpness(image, 1.7),
    "posterize": lambda image: ops.posterize(image, 3),
    "solarize": lambda image: ops.solarize(image, 100),
    "solarize_add": lambda image: ops.solarize_add(image, 50),
    "invert": ops.invert,
    "autocontrast": ops.autocontrast,
    "equalize": ops.equalize,
    "rotate": lambda image: ops.rotate(image, 25, fill=FILL),
    "shear_x": lambda image: ops.shear_x(image, 0.3, fill=FILL),
    "shear_y": lambda image: ops.shear_y(image, 0.3, fill=FILL),
    "translate_x": lambda image: ops.translate_x(image, 5.5, fill=FILL, interpolation="bilinear"),
    "translate_y": lambda image: ops.translate_y(image, 5.5, fill=FILL, interpolation="bicubic"),
}


@pytest.fixture
def image():
    """Noise without its brightest and darkest values, so that every operation has something to change."""
    return np.random.default_rng(0).integers(20, 220, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("size", [(40, 60), (1, 30), (30, 1), (1, 1), (2, 2)])
def test_shape_and_type_stay_and_the_input_is_not_written_to(name, size):
    image = np.random.default_rng(0).integers(20, 220, (*size, 3), dtype=np.uint8)
    before = image.copy()
    result = EVERY[name](image)
    np.testing.assert_array_equal(image, before)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    if size == (40, 60):
        assert not np.array_equal(result, image)


@pytest.mark.parametrize("name", EVERY)
def test_views_and_read_only_images(name, image):
    """Cropped and mirrored views, as crops leave them; images that a source does not let be written."""
    window = image[3:33, 5:45]
    window.flags.writeable = False
    np.testing.assert_array_equal(EVERY[name](window[:, ::-1]), EVERY[name](window[:, ::-1].copy()))


def test_the_factor_one_changes_nothing(image):
    for operation in (ops.brightness, ops.contrast, ops.saturation, ops.sharpness):
        np.testing.assert_array_equal(operation(image, 1.0), image)


def test_the_factor_zero(image):
    assert not ops.brightness(image, 0).any()
    assert len(np.unique(ops.contrast(image, 0))) == 1
    grey = ops.saturation(image, 0)
    assert (grey == grey[..., :1]).all()
    assert len(np.unique(grey)) > 20
    inner = np.s_[1:-1, 1:-1]
    blurred = ops.sharpness(image, 0)
    assert blurred[inner].std() < 0.6 * image[inner].std()
    np.testing.assert_array_equal(blurred[0], image[0])


def test_brightness_and_contrast_of_known_values():
    image = np.array([[[10, 100, 200], [50, 60, 255]]], np.uint8)
    np.testing.assert_array_equal(ops.brightness(image, 1.5), [[[15, 150, 255], [75, 90, 255]]])
    grey = np.array([[[100] * 3, [140] * 3]], np.uint8)
    np.testing.assert_array_equal(ops.contrast(grey, 1.5), [[[90] * 3, [150] * 3]])
    np.testing.assert_array_equal(ops.contrast(grey, 0.5), [[[110] * 3, [130] * 3]])


def test_hue_turns_the_colour_circle():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [30, 30, 200], [80, 80, 80], [200, 150, 10]]], np.uint8)
    np.testing.assert_array_equal(ops.hue(colours, 1 / 3)[0, :4], [[0, 255, 0], [0, 0, 255], [200, 30, 30], [80] * 3])
    for turns in (-0.45, -0.1, 0.0, 0.3, 0.5, 1.0):
        expected = []
        for red, green, blue in colours[0] / 255:
            hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
            expected.append(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
        np.testing.assert_allclose(ops.hue(colours, turns)[0], np.array(expected) * 255, atol=0.51)


def test_tables():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(ops.posterize(ramp, 3), ramp // 32 * 32)
    np.testing.assert_array_equal(ops.posterize(ramp, 8), ramp)
    assert not ops.posterize(ramp, 0).any()
    np.testing.assert_array_equal(ops.solarize(ramp, 256), ramp)
    np.testing.assert_array_equal(ops.solarize(ramp, 0), 255 - ramp)
    np.testing.assert_array_equal(ops.solarize(ramp, 128), np.where(ramp < 128, ramp, 255 - ramp))
    added = ops.solarize_add(ramp, 110)
    np.testing.assert_array_equal(added, np.where(ramp < 128, ramp.astype(int) + 110, ramp))
    np.testing.assert_array_equal(ops.invert(ramp), 255 - ramp)


def test_autocontrast_stretches_each_channel(image):
    image[..., 1] //= 4
    result = ops.autocontrast(image)
    assert result.min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert result.max(axis=(0, 1)).tolist() == [255, 255, 255]
    for channel in range(3):  # in order
        order = np.argsort(image[..., channel], axis=None, kind="stable")
        assert (np.diff(result[..., channel].ravel()[order].astype(int)) >= 0).all()


def test_equalize_makes_values_as_frequent():
    values = np.random.default_rng(0).normal(60, 8, (200, 200, 3)).clip(0, 255).astype(np.uint8)
    result = ops.equalize(values)
    for quarter in range(4):
        share = np.mean((result >= 64 * quarter) & (result < 64 * (quarter + 1)))
        assert abs(share - 0.25) < 0.05
    assert values.max() < 110


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (12, 130, 240)])
@pytest.mark.parametrize("size", [(32, 32), (1, 50), (1, 1)])
def test_one_colour_stays(colour, size):
    image = np.full((*size, 3), colour, np.uint8)
    for operation in (ops.autocontrast, ops.equalize):
        np.testing.assert_array_equal(operation(image), image)
    np.testing.assert_array_equal(ops.sharpness(image, 1.9), image)


def test_few_pixels_are_not_equalized():
    image = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    np.testing.assert_array_equal(ops.equalize(image), image)


@pytest.mark.parametrize("interpolation", ops.INTERPOLATIONS)
def test_translations_by_whole_pixels(image, interpolation):
    options = {"fill": FILL, "interpolation": interpolation}
    right, up = ops.translate_x(image, 7, **options), ops.translate_y(image, -4, **options)
    np.testing.assert_array_equal(right[:, 7:], image[:, :-7])
    np.testing.assert_array_equal(up[:-4], image[4:])
    assert (right[:, :7] == FILL).all()
    assert (up[-4:] == FILL).all()
    assert (ops.translate_x(image, 60, **options) == FILL).all()


@pytest.mark.parametrize("interpolation", ops.INTERPOLATIONS)
def test_right_angles(interpolation):
    image = np.random.default_rng(0).integers(0, 256, (31, 31, 3), dtype=np.uint8)
    for turns in range(-2, 5):
        np.testing.assert_array_equal(
            ops.rotate(image, 90 * turns, interpolation=interpolation), np.rot90(image, turns)
        )
    wide = image[:20]
    np.testing.assert_array_equal(ops.rotate(wide, 180, interpolation=interpolation), wide[::-1, ::-1])


def test_rotations_keep_the_middle_and_fill_the_corners():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    for degrees in (-120, -30, 3, 45):
        result = ops.rotate(image, degrees, fill=FILL)
        assert result[20, 20].tolist() == [255] * 3
        if abs(degrees) > 10:
            assert result[0, 0].tolist() == list(FILL)


def test_shears():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    result = ops.shear_x(image, 0.5, fill=FILL)
    for row in range(40):
        shift = int((row + 0.5) * 0.5 + 0.5)  # the centre of the row, rounded
        np.testing.assert_array_equal(result[row, : 60 - shift], image[row, shift:])
        assert (result[row, 60 - shift :] == FILL).all()
    np.testing.assert_array_equal(ops.shear_y(image.swapaxes(0, 1).copy(), 0.5, fill=FILL), result.swapaxes(0, 1))
    back = ops.shear_x(image, -0.5, fill=FILL)
    assert (back[-1, :19] == FILL).all()
