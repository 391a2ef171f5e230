"""Augmentations against torchvision's and timm's: each operation by its pixels."""

import cv2
import numpy as np
import pytest
from augmentation_names import NAMES

from flax_mnv2.data.augment import image_ops
from flax_mnv2.data.augment.auto_augment import RAND_AUGMENT

FACTORS = (0.0, 0.1, 0.37, 0.5, 0.9, 1.0, 1.03, 1.27, 1.9, 1.99)
SIZES = ((128, 128), (37, 53), (1, 9), (9, 1), (1, 1), (2, 2))
FILL = (1, 120, 250)


def _smooth(height, width, rng):
    image = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 5)
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8).reshape(height, width, 3)


@pytest.fixture(scope="module")
def images():
    """Noise, noise of low contrast, one colour, and soft shapes, in several sizes."""
    rng = np.random.default_rng(0)
    kinds = (
        lambda size: rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        lambda size: rng.integers((90, 20, 200), (140, 30, 256), (*size, 3), dtype=np.uint8),
        lambda size: np.full((*size, 3), (77, 0, 255), np.uint8),
        lambda size: _smooth(*size, rng),
    )
    return [kind(size) for size in SIZES for kind in kinds]


@pytest.fixture(scope="module")
def functional(torchvision):
    return pytest.importorskip("torchvision.transforms.v2.functional")


def _differences(ours, theirs):
    theirs = np.asarray(theirs)
    assert ours.dtype == theirs.dtype == np.uint8
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(int) - theirs)


def _assert_close(ours, theirs, *, greatest, share=0.0):
    """At most ``greatest`` levels apart, and apart at all in at most that share of the pixels, or two."""
    difference = _differences(ours, theirs)
    assert difference.max() <= greatest
    assert (difference.max(-1) > 0).sum() <= (max(2, share * difference[..., 0].size) if greatest else 0)


def _enhanced(functional):
    return {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "sharpness": functional.adjust_sharpness,
    }


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("name", "share"), [("brightness", 0), ("contrast", 0), ("saturation", 0.005), ("sharpness", 0)]
)
def test_blends_are_pillows(images, functional, pillow, name, share, factor):
    for image in images:
        theirs = _enhanced(functional)[name](pillow.fromarray(image), factor)
        ours = getattr(image_ops, name)(image, factor)
        _assert_close(ours, theirs, greatest=int(np.ceil(abs(factor - 1))) if share else 0, share=share)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("posterize", range(1, 9)),
        ("solarize", (0, 1, 127.5, 128, 240, 255, 256)),
        ("invert", ()),
        ("autocontrast", ()),
        ("equalize", ()),
    ],
)
def test_tables_are_pillows(images, functional, pillow, name, arguments):
    ours, theirs = getattr(image_ops, name), getattr(functional, name)
    for image in images:
        for given in [(argument,) for argument in arguments] or [()]:
            _assert_close(ours(image, *given), theirs(pillow.fromarray(image), *given), greatest=0)


def test_solarize_add_is_timms(images, timm, pillow):
    from timm.data.auto_augment import solarize_add

    for image in images:
        for amount in (0, 40, 110, 128):
            theirs = solarize_add(pillow.fromarray(image), amount)
            _assert_close(image_ops.solarize_add(image, amount), theirs, greatest=0)


@pytest.mark.parametrize("turns", [-0.5, -0.31, -0.1, 0.0, 0.02, 0.25, 0.5])
def test_hue(images, functional, pillow, turns):
    import torch

    for image in images:
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        theirs = functional.adjust_hue(tensor, turns).numpy().transpose(1, 2, 0)
        ours = image_ops.hue(image, turns)
        assert _differences(ours, theirs).max() <= 1
        pillows = functional.adjust_hue(pillow.fromarray(image), turns)
        assert _differences(ours, pillows).max() <= 16  # whose hue and saturation have 256 steps
        assert _differences(ours, pillows).mean() <= 5


WARPS = [
    *(("rotate", degrees) for degrees in (-135.0, -30.0, -9.0, 0.0, 4.5, 22.0, 90.0, 180.0)),
    *((name, slope) for name in ("shear_x", "shear_y") for slope in (-0.99, -0.27, 0.0, 0.09, 0.3)),
    *((name, pixels) for name in ("translate_x", "translate_y") for pixels in (-30, 0, 7)),
]


def _affine(name, value):
    """torchvision's arguments."""
    slant = float(np.degrees(np.arctan(value)))
    along = {
        "shear_x": {"shear": [slant, 0.0], "center": [0, 0]},
        "shear_y": {"shear": [0.0, slant], "center": [0, 0]},
        "translate_x": {"translate": [value, 0]},
        "translate_y": {"translate": [0, value]},
    }
    return {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | along[name]


@pytest.mark.parametrize(("name", "value"), WARPS)
def test_geometry_is_pillows(images, functional, pillow, name, value):
    for image in images:
        picture = pillow.fromarray(image)
        if name == "rotate":
            theirs = functional.rotate(picture, value, fill=FILL)
        else:
            theirs = functional.affine(picture, **_affine(name, value), fill=FILL)
        ours = getattr(image_ops, name)(image, value, fill=FILL)
        _assert_close(ours, theirs, greatest=255, share=0.02)


@pytest.mark.parametrize(("name", "value"), [*WARPS, ("translate_x", 10.4), ("translate_y", -3.7)])
@pytest.mark.parametrize(("interpolation", "greatest"), [("bilinear", 2), ("bicubic", 12)])
def test_interpolated_geometry_is_timms(images, timm, pillow, name, value, interpolation, greatest):
    """On soft shapes, for there the two bicubic curves agree; away from where the outside begins."""
    from timm.data import auto_augment

    functions = {"translate_x": "translate_x_abs", "translate_y": "translate_y_abs"}
    theirs = getattr(auto_augment, functions.get(name, name))
    sign = -1 if name in functions else 1  # timm moves the other way; it draws the sign
    options = {"resample": getattr(pillow.Resampling, interpolation.upper()), "fillcolor": FILL}
    image = next(image for image in images[3:] if image.shape[0] == 128)
    assert image.std() > 20
    picture = np.asarray(theirs(pillow.fromarray(image), sign * value, **options))
    ours = getattr(image_ops, name)(image, value, fill=FILL, interpolation=interpolation)
    inside = getattr(image_ops, name)(np.full_like(image, 255), value)[..., 0]
    inside = cv2.erode(inside, np.ones((5, 5)), borderValue=255) > 0
    frame = np.zeros_like(inside)
    frame[2:-2, 2:-2] = True  # the image's own border, where Pillow repeats the outermost pixel
    assert (inside & frame).sum() > 3000
    assert _differences(ours, picture)[inside & frame].max() <= greatest
    outside = cv2.dilate(inside.astype(np.uint8), np.ones((13, 13))) == 0
    np.testing.assert_array_equal(ours[outside], picture[outside])


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_operations_are_torchvisions(images, torchvision, pillow, magnitude):
    """Each row of the table, applied as the policy applies it."""
    from torchvision.transforms import v2

    transform = v2.RandAugment(fill=FILL)
    image = images[0]
    for name, (magnitudes, signed) in transform._AUGMENTATION_SPACE.items():
        row = RAND_AUGMENT[NAMES[name]]
        values = magnitudes(31, *image.shape[:2])
        for sign in (1, -1) if signed else (1,):
            theirs = transform._apply_image_or_video_transform(
                pillow.fromarray(image),
                name,
                0.0 if values is None else sign * float(values[magnitude]),
                interpolation=transform.interpolation,
                fill=transform._fill,
            )
            ours = row.apply(image, sign * row.value(magnitude / 30), fill=FILL, interpolation="nearest")
            _assert_close(ours, theirs, greatest=255, share=0.02)
