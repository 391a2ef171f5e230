import pickle

import numpy as np
import pytest

from flax_mnv2.data.augment import image_ops as ops
from flax_mnv2.data.augment.color_jitter import ColorJitter


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(20, 220, (24, 32, 3), dtype=np.uint8)


def test_the_generator_decides_alone(image):
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    before = image.copy()
    copy = pickle.loads(pickle.dumps(jitter))
    results = [jitter(image, np.random.default_rng(seed)) for seed in range(10)]
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(result, copy(image, np.random.default_rng(seed)))
        assert result.shape == image.shape
        assert result.dtype == np.uint8
    assert len({result.tobytes() for result in results}) == 10
    np.testing.assert_array_equal(image, before)


def test_ranges():
    assert ColorJitter(brightness=0.4).range("brightness") == (0.6, 1.4)
    assert ColorJitter(contrast=1.5).range("contrast") == (0, 2.5)
    assert ColorJitter(hue=0.1).range("hue") == (-0.1, 0.1)
    jitter = ColorJitter(0.4, 1.5, 0.2, 0.5)
    rng = np.random.default_rng(0)
    drawn = {name: [] for name in ("brightness", "contrast", "saturation", "hue")}
    orders = set()
    for _ in range(1000):
        draw = jitter.draw(rng)
        orders.add(tuple(name for name, _ in draw))
        for name, factor in draw:
            drawn[name].append(factor)
    for name, factors in drawn.items():
        low, high = jitter.range(name)
        assert low <= min(factors) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(factors) <= high
    assert len(orders) == 24


def test_what_is_drawn_is_what_is_done(image):
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    for seed in range(5):
        expected = image
        for name, factor in jitter.draw(np.random.default_rng(seed)):
            expected = getattr(ops, name)(expected, factor)
        np.testing.assert_array_equal(jitter(image, np.random.default_rng(seed)), expected)


def test_strength_zero_leaves_out(image):
    assert ColorJitter()(image, np.random.default_rng(0)) is image
    for seed in range(10):
        both = ColorJitter(0.4, hue=0.1).draw(np.random.default_rng(seed))
        assert sorted(name for name, _ in both) == ["brightness", "hue"]
        alone = ColorJitter(0.4).draw(np.random.default_rng(seed))
        assert alone == tuple(each for each in both if each[0] == "brightness")  # the same draws


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (20, 1)])
def test_images_of_few_pixels(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    assert all(ColorJitter(0.9, 0.9, 0.9, 0.5)(image, rng).shape == image.shape for _ in range(20))
