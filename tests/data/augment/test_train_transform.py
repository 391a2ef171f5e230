"""The host's part of a classifier's training: crops, the order of steps, determinism."""

import functools
import io
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from flax_mnv2.data.augment.auto_augment import RandAugment, TimmRandAugment, TrivialAugmentWide
from flax_mnv2.data.augment.color_jitter import ColorJitter
from flax_mnv2.data.augment.random_crop import decode_pad_crop, decode_random_crop
from flax_mnv2.data.augment.random_erasing import RandomErasing
from flax_mnv2.data.augment.transform import make_train_transform
from flax_mnv2.errors import DataError
from flax_mnv2.training.config.defaults import default_config


def _png(height=40, width=60, seed=0):
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), pixels


def _data(**fields):
    data = default_config("classification").data
    data.train_size = 32
    data.update(fields)
    return data


def test_the_steps_stand_in_the_order_of_the_recipes():
    data = _data(color_jitter=(0.4, 0.0, 0.0, 0.0), auto_augment="randaugment", random_erasing=0.25)
    transform = make_train_transform(data)
    assert transform.crop.func is decode_random_crop
    assert [type(step) for step in transform.steps] == [ColorJitter, RandAugment, RandomErasing]
    assert make_train_transform(_data()).steps == ()
    for name, cls in (("trivial_augment_wide", TrivialAugmentWide), ("timm_randaugment", TimmRandAugment)):
        assert [type(step) for step in make_train_transform(_data(auto_augment=name)).steps] == [cls]


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (400, 31), (32, 32)])
def test_a_whole_image_is_squashed_and_nothing_is_cut_off(size):
    rows, columns = np.meshgrid(*(np.linspace(10, 240, side) for side in size), indexing="ij")
    pixels = np.stack([rows, columns, 250 - rows], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    transform = make_train_transform(_data(train_crop="whole", flip=False))
    results = [transform(data, np.random.default_rng(seed)) for seed in range(5)]
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR), float)
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_allclose(results[0], expected, atol=4)


def test_settings_reach_the_steps():
    data = _data(
        auto_augment="timm_randaugment",
        randaugment_magnitude=7.0,
        randaugment_ops=3,
        random_erasing=0.2,
        random_erasing_fill="pixel",
        image_mean=(0.2, 0.4, 0.6),
    )
    policy, erasing = make_train_transform(data).steps
    assert (policy.magnitude, policy.num_ops, policy.magnitude_std, policy.fill) == (7.0, 3, 0.5, (51, 102, 153))
    assert (erasing.probability, erasing.mode) == (0.2, "pixel")
    np.testing.assert_allclose(erasing.mean, (51, 102, 153))


def test_everything_follows_from_the_generator_and_survives_pickling():
    data = _data(color_jitter=(0.4, 0.4, 0.4, 0.1), auto_augment="trivial_augment_wide", random_erasing=0.5)
    encoded, _ = _png()
    transform = make_train_transform(data)
    twin = pickle.loads(pickle.dumps(transform))
    results = [transform(encoded, np.random.default_rng(seed)) for seed in range(6)]
    assert {(each.shape, each.dtype) for each in results} == {((32, 32, 3), np.dtype("uint8"))}
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(result, twin(encoded, np.random.default_rng(seed)))
    assert len({each.tobytes() for each in results}) == 6


def test_pad_and_crop_is_a_window_of_the_resized_image_with_black_around():
    encoded, pixels = _png(32, 32)
    crop = functools.partial(decode_pad_crop, size=32, padding=8, flip=True)
    whole = np.pad(pixels, ((8, 8), (8, 8), (0, 0)))
    windows = {
        whole[top : top + 32, left : left + 32][:, ::step].tobytes()
        for top in range(17)
        for left in range(17)
        for step in (1, -1)
    }
    drawn = {crop(encoded, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert drawn <= windows
    assert len(drawn) > 50


@pytest.mark.parametrize(("height", "width"), [(20, 50), (50, 20), (100, 300)])
def test_pad_crop_keeps_the_aspect(height, width):
    encoded, pixels = _png(height, width)
    image = decode_pad_crop(encoded, np.random.default_rng(0), size=32, padding=0, flip=False)
    assert image.shape == (32, 32, 3)
    scale = 32 / min(height, width)
    size = (round(width * scale), round(height * scale))
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    along = [resized[k : k + 32, :32] if height > width else resized[:32, k : k + 32] for k in range(max(size) - 31)]
    assert any(np.array_equal(image, window) for window in along)


@pytest.mark.parametrize("fields", [{"train_crop": "inception"}, {"train_crop": "pad", "crop_padding": 4}])
def test_what_is_no_image_is_said_to_be_none(fields):
    with pytest.raises(DataError, match="not a readable image"):
        make_train_transform(_data(**fields))(b"GIF89a", np.random.default_rng(0))
