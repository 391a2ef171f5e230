"""Pictures: the palette is VOC's, files are written, legends name what occurs."""

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.training.evaluation import Picture
from flax_mnv2.visualize import save_confusion_matrix, save_predictions, voc_palette


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
    save_predictions(tmp_path / "p.png", pictures, ("sky", "road", "tree"))
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    for color in voc_palette()[[1, 255]]:  # the prediction's class and the void are painted
        assert (pixels == color).all(-1).any()


def test_confusion_matrix_is_drawn(tmp_path):
    save_confusion_matrix(tmp_path / "c.png", np.array([[9, 1], [0, 0]]), ("a", "b"))
    with Image.open(tmp_path / "c.png") as image:
        assert image.size[0] > 100
