"""Pictures: the palette is VOC's, files are written, legends name what occurs, overlays leave the photo its size."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.visualize.legend import percent, voc_palette
from flax_mnv2.visualize.masks import save_mask, save_overlay
from flax_mnv2.visualize.plots import save_confusion_matrix, save_predictions


@dataclasses.dataclass
class Picture:
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


def test_palette_is_that_of_the_voc_development_kit():
    palette = voc_palette()
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for index, color in known.items():
        assert tuple(palette[index]) == color
    assert len(np.unique(palette, axis=0)) == 256


@pytest.mark.parametrize("count", [1, 3])
def test_predictions_of_any_size_make_a_picture(tmp_path, count):
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(count):
        size = (40 + 10 * index, 60)
        label = np.full(size, 255, np.uint8)
        label[10:] = index
        pictures.append(Picture(rng.integers(0, 255, (*size, 3)).astype(np.uint8), label, np.full(size, 1, np.uint8)))
    save_predictions(tmp_path / "p.png", pictures, ("sky", r"$\road$", "tree"), captions=("IoU",) * count)
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    for color in voc_palette()[[1, 255]]:  # the prediction's class and the void are painted
        assert (pixels == color).all(-1).any()


@pytest.mark.parametrize("name", ["a", r"$\no formula$"])
def test_confusion_matrix_is_drawn(tmp_path, name):
    save_confusion_matrix(tmp_path / "c.png", np.array([[9, 1], [0, 0]]), (name, "b"))
    with Image.open(tmp_path / "c.png") as image:
        assert image.size[0] > 100


def _read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("size", [(24, 30), (300, 256), (900, 1600)])
def test_an_overlay_is_the_photo_in_the_classes_colours_above_a_legend(tmp_path, size):
    photo = np.full((*size, 3), 200, np.uint8)
    mask = np.zeros(size, np.uint8)
    height, width = size
    mask[:, width // 2 :] = 3
    mask[: height // 2, width // 2 :] = 1
    classes = [(0, "background", 0.5), (1, "aeroplane", 0.25), (3, "bird", 0.25)]
    save_overlay(tmp_path / "o.png", photo, mask, classes)
    pixels = _read(tmp_path / "o.png")
    picture, legend = pixels[:height, :width], pixels[height:]
    palette = voc_palette().astype(int)
    for index, fraction in ((0, 0.25), (1, 0.5), (3, 0.5)):  # the background is dimmed less
        expected = (1 - fraction) * 200 + fraction * palette[index]
        inside = picture[mask == index]
        near = np.abs(inside - expected).max(-1) <= 1
        white = (inside == 255).all(-1)
        assert (near | white).all()
        assert near.mean() > 0.8
        assert (legend == palette[index]).all(-1).sum() > 100  # its colour in the legend
    assert (picture[:, width // 2 - 1] == 255).all()  # a white line between classes
    assert (picture[height // 2 - 1, width // 2 :] == 255).all()
    assert pixels.shape[1] >= width
    assert (pixels[:height, width:] == 255).all()  # beside a photo narrower than its legend
    assert (legend[-3:] == 255).all()  # nothing is cut off
    assert (legend[:, -3:] == 255).all()
    text_rows = (legend < 128).all(-1).any(1).sum()
    assert text_rows >= 14  # legible, however small the photo


def test_a_legend_lists_every_class_and_shortens_long_names(tmp_path):
    photo = np.full((40, 400, 3), 255, np.uint8)
    mask = np.repeat(np.arange(20, dtype=np.uint8), 20)[None].repeat(40, 0)
    heights = []
    for name in ("a", "a" * 5000):
        save_overlay(tmp_path / "o.png", photo, mask, [(index, name, 0.05) for index in range(20)])
        pixels = _read(tmp_path / "o.png")
        heights.append(pixels.shape[0])
        for color in voc_palette(20)[1:]:
            assert (pixels[40:] == color).all(-1).sum() > 100
        assert pixels.shape[1] < 1000
    assert heights[0] < heights[1]  # short names stand in several columns


def test_masks_keep_their_indices(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_mask(tmp_path / "m.png", mask)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(_read(tmp_path / "m.png"), voc_palette()[mask])
    save_mask(tmp_path / "m.png", mask.astype(np.uint16) * 257)
    with Image.open(tmp_path / "m.png") as image:
        np.testing.assert_array_equal(np.asarray(image), mask.astype(int) * 257)


def test_small_shares_do_not_look_like_none():
    fractions = [1.0, 0.1234, 0.0006, 0.0004, 0.0]
    assert [percent(fraction) for fraction in fractions] == ["100.0 %", "12.3 %", "0.1 %", "<0.1 %", "0.0 %"]
