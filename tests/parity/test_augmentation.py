"""Augmentations against torchvision's and timm's: each operation by its pixels, each policy by what it draws."""

import collections

import cv2
import numpy as np
import pytest

from flax_mnv2.data.augment import image_ops
from flax_mnv2.data.augment.auto_augment import (
    RAND_AUGMENT,
    TIMM_RAND_AUGMENT,
    TRIVIAL_AUGMENT_WIDE,
    RandAugment,
    TimmRandAugment,
    TrivialAugmentWide,
)
from flax_mnv2.data.augment.color_jitter import ColorJitter
from flax_mnv2.data.augment.random_erasing import RandomErasing

FACTORS = (0.0, 0.1, 0.37, 0.5, 0.9, 1.0, 1.03, 1.27, 1.9, 1.99)
SIZES = ((128, 128), (37, 53), (1, 9), (9, 1), (1, 1), (2, 2))
FILL = (1, 120, 250)
# Ours by torchvision's names.
NAMES = {
    "Identity": "identity",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Rotate": "rotate",
    "Brightness": "brightness",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
}
TIMM_NAMES = {name: NAMES[name] for name in NAMES if name not in ("Identity", "TranslateX", "TranslateY")} | {
    "Invert": "invert",
    "SolarizeAdd": "solarize_add",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
}


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


@pytest.fixture(scope="module")
def pillow():
    return pytest.importorskip("PIL.Image")


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


def _theirs(transform):
    """torchvision's table: ours by name → (magnitudes by bin for an image of 224 by 320, signed)."""
    table = {}
    for name, (magnitudes, signed) in transform._AUGMENTATION_SPACE.items():
        values = magnitudes(31, 224, 320)
        table[NAMES[name]] = (None if values is None else values.numpy().astype(float), signed)
    return table


@pytest.mark.parametrize(
    ("name", "table"), [("RandAugment", RAND_AUGMENT), ("TrivialAugmentWide", TRIVIAL_AUGMENT_WIDE)]
)
def test_magnitudes_are_torchvisions(torchvision, name, table):
    from torchvision.transforms import v2

    theirs = _theirs(getattr(v2, name))
    assert list(table) == list(theirs)
    for row, (magnitudes, signed) in theirs.items():
        ours = np.array([table[row].value(step / 30) for step in range(31)])
        assert table[row].signed == signed
        if magnitudes is None:
            assert not ours.any()
            continue
        assert magnitudes.max() > 0
        if name == "RandAugment" and row.startswith("translate"):
            ours *= 320 if row == "translate_x" else 224
        if row == "posterize":
            ours = np.round(ours)
        np.testing.assert_allclose(ours, magnitudes * (255 if row == "solarize" else 1), atol=1e-4)


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


class _Recorded(dict):
    """Stands in for the image ops of timm: keeps what each was called with."""

    def __init__(self, names):
        self.calls = []
        super().__init__({name: self._keeping(name) for name in names})

    def _keeping(self, name):
        def call(image, *arguments, **options):
            self.calls.append((TIMM_NAMES[name], arguments, options))
            return image

        return call


def _kolmogorov_smirnov(ours, theirs):
    """The largest distance of the two distribution functions."""
    both = np.sort(np.concatenate([ours, theirs]))
    ours, theirs = (np.searchsorted(np.sort(each), both, side="right") / len(each) for each in (ours, theirs))
    return np.abs(ours - theirs).max()


@pytest.mark.parametrize("config", ["rand-m9-mstd0.5", "rand-m5-n3-p0.8-mstd2"])
def test_timms_draws(timm, monkeypatch, config):
    """How often each operation comes, with which arguments and which interpolation."""
    import random

    from timm.data import auto_augment

    recorded = _Recorded(TIMM_NAMES)
    monkeypatch.setattr(auto_augment, "NAME_TO_OP", recorded)
    transform = auto_augment.rand_augment_transform(config, {"img_mean": (124, 116, 104)})
    assert {TIMM_NAMES[op.name] for op in transform.ops} == set(TIMM_RAND_AUGMENT)
    state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    for _ in range(6000):
        transform(None)
    random.setstate(state[0])
    np.random.set_state(state[1])

    options = {} if config == "rand-m9-mstd0.5" else {"magnitude": 5, "magnitude_std": 2, "num_ops": 3}
    policy = TimmRandAugment(**options, **({"probability": 0.8} if options else {}))
    rng = np.random.default_rng(0)
    ours = [drawn for _ in range(6000) for drawn in policy.draw(rng)]
    theirs = recorded.calls
    expected = 6000 * policy.num_ops * policy.probability
    assert abs(len(ours) - expected) < 0.05 * expected
    assert abs(len(theirs) - expected) < 0.05 * expected
    assert all(call[2]["fillcolor"] == policy.fill for call in theirs)
    # timm's operation itself chooses one of these.
    assert all([each.name.lower() for each in call[2]["resample"]] == list(policy.interpolations) for call in theirs)
    assert abs(np.mean([drawn.interpolation == "bilinear" for drawn in ours]) - 0.5) < 0.04

    counts = [collections.Counter(each[0] for each in drawn) for drawn in (ours, theirs)]
    whole = {"posterize", "solarize", "solarize_add"}
    for name in TIMM_RAND_AUGMENT:
        for count in counts:  # five standard deviations
            assert abs(count[name] - expected / 15) < 5 * (expected / 15) ** 0.5
        mine = np.array([drawn.value for drawn in ours if drawn.name == name])
        others = [call[1] for call in theirs if call[0] == name]
        if not others[0]:
            assert not mine.any()
            continue
        mine = np.trunc(mine) if name in whole else mine
        others = np.array(others)[:, 0]
        # With about 400 draws each, 0.999 of equal distributions stay below 1.95 × sqrt(2 / 400).
        assert _kolmogorov_smirnov(mine, others) < 1.95 * (1 / len(mine) + 1 / len(others)) ** 0.5
        assert (mine.min() < 0) == (others.min() < 0)


def _frequencies(names, count):
    counted = collections.Counter(names)
    return np.array([counted[name] / count for name in RAND_AUGMENT])


@pytest.mark.parametrize("name", ["RandAugment", "TrivialAugmentWide"])
def test_torchvisions_draws(torchvision, pillow, monkeypatch, name):
    import torch
    from torchvision.transforms import v2

    transform, policy = (
        getattr(v2, name)(),
        {"RandAugment": RandAugment, "TrivialAugmentWide": TrivialAugmentWide}[name](),
    )
    calls = []

    def record(image, transform_id, magnitude, **options):
        calls.append((NAMES[transform_id], magnitude))
        return image

    monkeypatch.setattr(transform, "_apply_image_or_video_transform", record)
    picture = pillow.new("RGB", (224, 224))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3000):
            transform(picture)
    rng = np.random.default_rng(0)
    ours = [drawn for _ in range(3000) for drawn in policy.draw(rng)]
    assert len(ours) == len(calls) == 3000 * (2 if name == "RandAugment" else 1)
    for drawn in (ours, calls):
        np.testing.assert_allclose(_frequencies([each[0] for each in drawn], len(drawn)), 1 / 14, atol=0.025)
    scale = {"translate_x": 224, "translate_y": 224} if name == "RandAugment" else {}
    for row in RAND_AUGMENT:
        mine = np.array([drawn.value for drawn in ours if drawn.name == row]) * scale.get(row, 1)
        others = np.array([magnitude for each, magnitude in calls if each == row]) * (255 if row == "solarize" else 1)
        mine = np.round(mine) if row == "posterize" else mine
        mine, others = np.round(mine, 3), np.round(others, 3)  # torchvision's are float32
        assert _kolmogorov_smirnov(mine, others) < 1.95 * (1 / len(mine) + 1 / len(others)) ** 0.5


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4, 0.1), (1.5, 0.2, 0.0, 0.5)])
def test_colour_jitters_draws(torchvision, strengths):
    import torch
    from torchvision import transforms

    theirs, ours = transforms.ColorJitter(*strengths), ColorJitter(*strengths)
    names = ("brightness", "contrast", "saturation", "hue")
    drawn = {name: ([], []) for name in names}
    first = ([], [])
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(2000):
            mine = ours.draw(rng)
            order, *factors = theirs.get_params(theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue)
            for name, factor in mine:
                drawn[name][0].append(factor)
            for name, factor in zip(names, factors, strict=True):
                if factor is not None:
                    drawn[name][1].append(factor)
            first[0].append(mine[0][0])
            first[1].append(next(names[index] for index in order if factors[index] is not None))
    for name, strength in zip(names, strengths, strict=True):
        assert len(drawn[name][0]) == len(drawn[name][1]) == (2000 if strength else 0)
        if strength:
            assert _kolmogorov_smirnov(*map(np.array, drawn[name])) < 0.0617  # with probability 0.999
        expected = 1 / sum(strength > 0 for strength in strengths) if strength else 0
        for each in first:
            assert abs(each.count(name) / 2000 - expected) < 0.05


@pytest.mark.parametrize("size", [(224, 224), (96, 200), (20, 7)])
def test_erased_boxes_are_distributed_as_torchvisions(torchvision, size):
    import torch
    from torchvision import transforms

    erasing = RandomErasing()
    rng = np.random.default_rng(0)
    ours = [erasing.draw_box(*size, rng) for _ in range(4000)]
    image = torch.zeros((3, *size))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [
            transforms.RandomErasing.get_params(image, erasing.area, erasing.aspect, [0.0])[:4] for _ in range(4000)
        ]
    # torchvision says with the whole image that it found none.
    theirs = [None if box == (0, 0, *size) else box for box in theirs]
    assert abs(sum(box is None for box in ours) - sum(box is None for box in theirs)) < 50
    ours, theirs = (np.array([box for box in boxes if box is not None]) for boxes in (ours, theirs))
    for column in range(4):
        assert _kolmogorov_smirnov(ours[:, column], theirs[:, column]) < 0.0437  # with probability 0.999
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    assert _kolmogorov_smirnov(*areas) < 0.0437
