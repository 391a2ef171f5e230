import pickle

import numpy as np
import pytest

from flax_mnv2.data.augment.random_erasing import RandomErasing

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture
def image():
    return np.full((96, 120, 3), (1, 2, 3), np.uint8)


@pytest.mark.parametrize("mode", ["constant", "pixel"])
def test_the_generator_decides_alone(image, mode):
    erasing = RandomErasing(probability=1.0, mode=mode)
    copy = pickle.loads(pickle.dumps(erasing))
    before = image.copy()
    image.flags.writeable = False
    results = [erasing(image, np.random.default_rng(seed)) for seed in range(10)]
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(result, copy(image, np.random.default_rng(seed)))
        assert result.shape == image.shape
        assert result.dtype == np.uint8
    assert len({result.tobytes() for result in results}) == 10
    np.testing.assert_array_equal(image, before)


def test_one_rectangle_of_the_mean(image):
    erasing = RandomErasing(probability=1.0)
    for seed in range(20):
        erased = (erasing(image, np.random.default_rng(seed)) != image).any(-1)
        rows, columns = erased.any(1).nonzero()[0], erased.any(0).nonzero()[0]
        assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert erased.sum() == len(rows) * len(columns)
        assert 0.015 < erased.mean() < 0.35
        assert 0.25 < len(rows) / len(columns) < 4
        result = erasing(image, np.random.default_rng(seed))
        assert (result[erased] == (124, 116, 104)).all()


def test_noise_normalises_to_the_standard_normal_distribution():
    """But for what does not fit in 0..255; compared where it does."""
    image = np.zeros((400, 400, 3), np.uint8)
    erasing = RandomErasing(probability=1.0, mode="pixel", area=(0.3, 0.3), aspect=(1.0, 1.0), mean=MEAN, std=STD)
    rng = np.random.default_rng(0)
    box = erasing.draw_box(400, 400, np.random.default_rng(1))
    assert box.height == box.width == 219
    result = erasing(image, rng)
    erased = result[result.any(-1)].astype(float)
    assert len(erased) > 40000
    noise = (erased - MEAN) / STD
    np.testing.assert_allclose(np.median(noise, axis=0), 0, atol=0.03)
    for share, expected in ((0.1587, -1.0), (0.8413, 1.0)):
        np.testing.assert_allclose(np.quantile(noise, share, axis=0), expected, atol=0.03)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.02


def test_as_often_as_asked(image):
    for probability, expected in ((0.0, 0), (0.2, 80), (1.0, 400)):
        rng = np.random.default_rng(0)
        erasing = RandomErasing(probability=probability)
        assert abs(sum(erasing(image, rng) is not image for _ in range(400)) - expected) <= (
            30 if expected == 80 else 0
        )


def test_rectangles_are_smaller_than_the_image():
    rng = np.random.default_rng(0)
    for size in ((96, 120), (10, 10), (5, 60), (3, 3)):
        erasing = RandomErasing(area=(0.02, 0.9))
        boxes = [box for _ in range(300) if (box := erasing.draw_box(*size, rng))]
        assert len(boxes) > 50
        for box in boxes:
            assert 0 <= box.top <= size[0] - box.height
            assert 0 <= box.left <= size[1] - box.width
            assert box.height < size[0]
            assert box.width < size[1]


def test_nothing_where_no_rectangle_fits(image):
    assert RandomErasing(area=(1.0, 1.0)).draw_box(96, 120, np.random.default_rng(0)) is None
    assert RandomErasing(probability=1.0, area=(1.0, 1.0))(image, np.random.default_rng(0)) is image
    pixel = np.zeros((1, 1, 3), np.uint8)
    for mode in ("constant", "pixel"):
        result = RandomErasing(probability=1.0, mode=mode)(pixel, np.random.default_rng(0))
        np.testing.assert_array_equal(result, pixel)
