import cv2
import numpy as np
import pytest

from flax_mnv2.data.augment import segmentation as augment


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), rng.integers(0, 5, (24, 32), dtype=np.uint8)


def test_scale_steps(pair):
    rng = np.random.default_rng(0)
    heights = set()
    for _ in range(200):
        image, mask = augment.random_scale(*pair, rng, min_scale=0.5, max_scale=2.0, step=0.25)
        assert image.shape[:2] == mask.shape
        assert set(np.unique(mask)) <= set(range(5))
        heights.add(mask.shape[0])
    assert heights == {12, 18, 24, 30, 36, 42, 48}


def test_scale_uniform_and_fixed(pair):
    rng = np.random.default_rng(0)
    heights = [augment.random_scale(*pair, rng, min_scale=0.5, max_scale=2.0, step=0.0)[1].shape[0] for _ in range(200)]
    assert min(heights) >= 12
    assert max(heights) <= 48
    assert len(set(heights)) > 20
    image, mask = augment.random_scale(*pair, rng, min_scale=1.0, max_scale=1.0, step=0.0)
    assert image is pair[0]
    assert mask is pair[1]


def test_image_and_mask_stay_aligned():
    """Both resizings use half-pixel centres: an edge stays within half a pixel of itself."""
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 17:] = 1
    image = np.repeat(mask[..., None] * 200, 3, axis=2)
    for factor in (0.5, 0.75, 1.25, 1.5, 2.0):
        scaled, label = augment.random_scale(
            image, mask, np.random.default_rng(0), min_scale=factor, max_scale=factor, step=0.25
        )
        assert np.abs((scaled[0, :, 0] >= 100).sum() - (label[0] == 1).sum()) <= 1


def test_pad(pair):
    image, mask = augment.pad_to(*pair, size=(30, 20), ignore_label=255)
    assert mask.shape == (30, 32)
    np.testing.assert_array_equal(image[:24], pair[0])
    assert (image[24:] == 127).all()
    np.testing.assert_array_equal(mask[:24], pair[1])
    assert (mask[24:] == 255).all()


def test_crop_and_flip(pair):
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(400):
        image, mask = augment.random_crop(*pair, rng, size=(22, 30))
        assert mask.shape == (22, 30)
        found = [(y, x) for y in range(3) for x in range(3) if np.array_equal(pair[1][y : y + 22, x : x + 30], mask)]
        np.testing.assert_array_equal(image, pair[0][found[0][0] :, found[0][1] :][:22, :30])
        corners.add(found[0])
    assert len(corners) == 9
    flips = [augment.random_flip(*pair, rng) for _ in range(100)]
    flipped = sum(np.array_equal(mask, cv2.flip(pair[1], 1)) for _, mask in flips)
    assert 30 < flipped < 70
    assert all(
        np.array_equal(image[:, ::-1], pair[0]) == np.array_equal(mask[:, ::-1], pair[1]) for image, mask in flips
    )
