"""The policies' behaviour; their tables and draws are compared with torchvision's and timm's in tests/parity."""

import pickle

import numpy as np
import pytest

from flax_mnv2.data.augment import image_ops as ops
from flax_mnv2.data.augment.auto_augment import (
    RAND_AUGMENT,
    TIMM_RAND_AUGMENT,
    TRIVIAL_AUGMENT_WIDE,
    RandAugment,
    TimmRandAugment,
    TrivialAugmentWide,
)

POLICIES = {
    "rand_augment": (RandAugment(), RAND_AUGMENT),
    "trivial_augment": (TrivialAugmentWide(), TRIVIAL_AUGMENT_WIDE),
    "timm": (TimmRandAugment(), TIMM_RAND_AUGMENT),
}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(20, 220, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", POLICIES)
def test_the_generator_decides_alone(name, image):
    policy, _ = POLICIES[name]
    before = image.copy()
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy
    state = np.random.get_state()[1].copy()
    results = []
    for seed in range(40):
        results.append(policy(image, np.random.default_rng(seed)))
        np.testing.assert_array_equal(results[-1], copy(image, np.random.default_rng(seed)))
        assert results[-1].shape == image.shape
        assert results[-1].dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert len({result.tobytes() for result in results}) > 20


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (3, 3)])
def test_images_of_few_pixels(name, size):
    policy, table = POLICIES[name]
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert policy(image, rng).shape == image.shape
    for row in table.values():
        assert row.apply(image, row.strongest, fill=(1, 2, 3), interpolation="nearest").shape == image.shape


@pytest.mark.parametrize("name", POLICIES)
def test_every_row_comes_as_often_in_every_place(name):
    policy, table = POLICIES[name]
    rng = np.random.default_rng(0)
    draws = [policy.draw(rng) for _ in range(6000)]
    for place in range(2 if name == "rand_augment" else 1):
        names = [drawn[place].name for drawn in draws if drawn]
        for row in table:
            expected = len(names) / len(table)
            assert abs(names.count(row) - expected) < 5 * expected**0.5


@pytest.mark.parametrize("name", POLICIES)
def test_values_stay_in_the_table(name):
    policy, table = POLICIES[name]
    rng = np.random.default_rng(0)
    values = {row: [] for row in table}
    for _ in range(3000):
        for drawn in policy.draw(rng):
            values[drawn.name].append(drawn.value)
            assert drawn.interpolation in ops.INTERPOLATIONS
    for row, operation in table.items():
        drawn = np.array(values[row])
        low, high = sorted((operation.weakest, operation.strongest))
        assert (np.abs(drawn) >= low).all()
        assert (np.abs(drawn) <= high).all()
        assert (drawn < 0).any() == operation.signed
        if operation.signed:
            assert abs((drawn < 0).mean() - 0.5) < 0.2
        if name == "trivial_augment" and high:
            assert len(np.unique(np.abs(drawn))) == 31


def test_what_a_policy_draws_is_what_it_does(image):
    policy = RandAugment(num_ops=3, magnitude=20)
    for seed in range(30):
        expected = image
        for drawn in policy.draw(np.random.default_rng(seed)):
            row = RAND_AUGMENT[drawn.name]
            expected = row.apply(expected, drawn.value, fill=ops.BLACK, interpolation="nearest")
        np.testing.assert_array_equal(policy(image, np.random.default_rng(seed)), expected)


def test_known_values(image):
    """Magnitude 9 of 31 bins, as torchvision's recipes have it."""
    value = {name: row.value(9 / 30) for name, row in RAND_AUGMENT.items()}
    assert value["rotate"] == pytest.approx(9)
    assert value["brightness"] == pytest.approx(0.27)
    assert value["shear_x"] == pytest.approx(0.09)
    assert value["solarize"] == pytest.approx(178.5)
    shifted = RAND_AUGMENT["translate_x"].apply(image, value["translate_x"], fill=(0, 0, 0), interpolation="nearest")
    np.testing.assert_array_equal(shifted, ops.translate_x(image, 8))  # 0.3 × 150 / 331 × 64 = 8.7, cut
    posterized = RAND_AUGMENT["posterize"].apply(image, value["posterize"])
    np.testing.assert_array_equal(posterized, ops.posterize(image, 7))  # 8 - 1.2
    brighter = RAND_AUGMENT["brightness"].apply(image, value["brightness"])
    np.testing.assert_array_equal(brighter, ops.brightness(image, 1.27))
    whole = TRIVIAL_AUGMENT_WIDE["translate_y"]
    moved = whole.apply(image, whole.value(15 / 30), fill=(0, 0, 0), interpolation="nearest")
    np.testing.assert_array_equal(moved, ops.translate_y(image, 16))
    timms = TIMM_RAND_AUGMENT["posterize"]
    np.testing.assert_array_equal(timms.apply(image, timms.value(0.9)), ops.posterize(image, 3))


def test_the_fill_reaches_the_image():
    white = np.full((64, 64, 3), 255, np.uint8)
    for policy in (RandAugment(), TrivialAugmentWide(), TimmRandAugment(fill=(250, 10, 20), probability=1.0)):
        geometric = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
        seen = 0
        for seed in range(200):
            drawn = policy.draw(np.random.default_rng(seed))
            if len({each.name for each in drawn} & set(geometric)) == len(drawn):
                result = policy(white, np.random.default_rng(seed))
                seen += (result == policy.fill).all(-1).any()
        assert seen > 10


def test_timms_magnitudes_vary_and_are_cut():
    rng = np.random.default_rng(0)
    policy = TimmRandAugment(magnitude=9.8, magnitude_std=0.5, probability=1.0)
    drawn = [each.value for _ in range(4000) for each in policy.draw(rng) if each.name == "brightness"]
    level = (np.array(drawn) - 0.1) / 0.18
    assert level.max() == pytest.approx(10)
    assert np.isclose(level, 10).mean() == pytest.approx(0.345, abs=0.1)  # P(z > 0.4)
    still = TimmRandAugment(magnitude=7, magnitude_std=0, probability=1.0)
    drawn = {each.value for _ in range(300) for each in still.draw(rng) if each.name == "brightness"}
    assert drawn == {0.1 + (1.9 - 0.1) * 0.7}


def test_none_and_all():
    rng = np.random.default_rng(0)
    assert RandAugment(num_ops=0).draw(rng) == ()
    assert all(TimmRandAugment(probability=0.0).draw(rng) == () for _ in range(50))
    assert all(len(TimmRandAugment(probability=1.0, num_ops=3).draw(rng)) == 3 for _ in range(50))
