"""MixUp and CutMix: partners, fractions, boxes, and independence of the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2.mixing import box_mask, mix

N, SIZE, CLASSES = 8, 16, 5


def _batch():
    """Each image is filled with its own number, so that pixels show whose they are."""
    images = jnp.broadcast_to(jnp.arange(N, dtype=jnp.float32)[:, None, None, None], (N, SIZE, SIZE, 3))
    return images, jax.nn.one_hot(jnp.arange(N) % CLASSES, CLASSES)


PARTNER = np.array([1, 0, 3, 2, 5, 4, 7, 6])


def test_mixup_gives_pixels_and_labels_of_the_same_share():
    images, targets = _batch()
    fractions = []
    for seed in range(4):
        mixed, labels = mix(jax.random.key(seed), images, targets, mixup_alpha=0.5, cutmix_alpha=0.0)
        pixels = np.asarray(mixed)[:, 0, 0, 0]
        assert np.ptp(mixed, axis=(1, 2, 3)).max() == 0
        fraction = (pixels[0] - PARTNER[0]) / (0 - PARTNER[0])
        np.testing.assert_allclose(pixels, np.arange(N) * fraction + PARTNER * (1 - fraction), atol=1e-5)
        np.testing.assert_allclose(labels, targets * fraction + targets[PARTNER] * (1 - fraction), atol=1e-5)
        fractions.append(fraction)
    assert len(set(fractions)) == 4


def test_cutmix_takes_a_box_and_labels_by_its_true_area():
    images, targets = _batch()
    for seed in range(6):
        mixed, labels = mix(jax.random.key(seed), images, targets, mixup_alpha=0.0, cutmix_alpha=1.0)
        foreign = np.asarray(mixed)[..., 0] == PARTNER[:, None, None]
        assert set(np.unique(mixed)) <= set(range(N))
        area = foreign[0].mean()
        assert (foreign == foreign[0]).all()
        rows, columns = foreign[0].any(1), foreign[0].any(0)
        np.testing.assert_array_equal(foreign[0], rows[:, None] & columns[None])
        np.testing.assert_allclose(labels, targets * (1 - area) + targets[PARTNER] * area, atol=1e-5)


def test_with_both_each_takes_about_half_of_the_batches():
    images, targets = _batch()
    mixer = jax.jit(lambda key: mix(key, images, targets, mixup_alpha=0.8, cutmix_alpha=1.0)[0])
    whole = [np.ptp(mixer(key), axis=(1, 2, 3)).max() == 0 for key in jax.random.split(jax.random.key(0), 200)]
    assert 70 < sum(whole) < 130  # six standard deviations are 42; an empty or full box counts as whole too


def test_the_shares_are_beta_distributed():
    images, targets = _batch()
    mixer = jax.jit(lambda key: mix(key, images, targets, mixup_alpha=0.2, cutmix_alpha=0.0)[1][0, 0])
    fractions = np.array([mixer(key) for key in jax.random.split(jax.random.key(1), 400)])
    assert abs(fractions.mean() - 0.5) < 0.07
    assert abs(fractions.var() - 1 / (4 * (2 * 0.2 + 1))) < 0.03  # of a symmetric Beta: 1 / (4 (2 α + 1))


def test_boxes_cover_the_expected_area_where_they_are_not_cut_off():
    draw = jax.jit(lambda key: box_mask(key, jnp.float32(0.75), (64, 64)))
    areas = np.array([draw(key).sum() for key in jax.random.split(jax.random.key(2), 300)])
    assert areas.max() == 32 * 32
    assert areas.min() >= 16 * 16  # a centre in a corner
    assert areas.mean() == pytest.approx(64 * 64 * 0.25 * 0.875**2, rel=0.06)  # the mean fraction that stays inside


def test_four_devices_mix_as_one_does():
    images, targets = _batch()

    def run(images, targets):
        return mix(jax.random.key(5), images, targets, mixup_alpha=0.4, cutmix_alpha=1.0)

    whole = run(images, targets)
    split = jax.pmap(run)(images.reshape(4, 2, SIZE, SIZE, 3), targets.reshape(4, 2, CLASSES))
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_array_equal(one, other.reshape(one.shape))


def test_an_odd_share_is_refused_and_nothing_happens_without_alphas():
    images, targets = _batch()
    with pytest.raises(ValueError, match="must be even; found 3"):
        mix(jax.random.key(0), images[:3], targets[:3], mixup_alpha=1.0, cutmix_alpha=0.0)
    same = mix(jax.random.key(0), images, targets, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert same[0] is images
    assert same[1] is targets
