"""Batches of images with one label each."""

import io

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.data.loader.classification import (
    classification_eval_batches,
    classification_train_batches,
    decode_rgb,
)
from flax_mnv2.errors import ConfigError, DataError

SIZE = (16, 24)


def shrink(image):
    """Stands in for the preprocessing of the weights; a plain function, so that workers can import it."""
    return np.asarray(image.resize((SIZE[1], SIZE[0])))


@pytest.fixture
def source(imagenet):
    """Ten examples of one size, with names of different lengths."""
    return [{"image": imagenet.jpeg(seed=i), "label": 7 * i, "file_name": f"{'x' * i}{i}.JPEG"} for i in range(10)]


def _evaluate(source, **changes):
    with classification_eval_batches(
        source, **{"transform": shrink, "size": SIZE, "batch_size": 4, **changes}
    ) as batches:
        return list(batches)


def _assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_each_example_once(source):
    batches = _evaluate(source)
    assert len(batches) == 3
    shapes = {name: (value.shape, value.dtype.name) for name, value in batches[0].items() if name != "file_name"}
    assert shapes == {
        "image": ((4, 16, 24, 3), "uint8"),
        "label": ((4,), "int32"),
        "mask": ((4,), "bool"),
        "index": ((4,), "int64"),
    }
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert list(rows["mask"]) == [True] * 10 + [False] * 2
    assert list(rows["index"]) == [*range(10), -1, -1]
    assert list(rows["label"]) == [7 * i for i in range(10)] + [0, 0]
    assert list(rows["file_name"]) == [example["file_name"] for example in source] + ["", ""]
    for index, example in enumerate(source):
        np.testing.assert_array_equal(rows["image"][index], shrink(decode_rgb(example["image"])))
    assert not rows["image"][10:].any()


def test_processes_share_the_global_batch(source):
    parts = [_evaluate(source, process_index=index, process_count=2) for index in range(2)]
    joined = [{name: np.concatenate([one[name], two[name]]) for name in one} for one, two in zip(*parts, strict=True)]
    _assert_same(joined, _evaluate(source))


def test_workers_give_the_same(source, tmp_path, monkeypatch):
    _assert_same(_evaluate(source, transform=_Half(), num_workers=2), _evaluate(source, transform=_Half()))


class _Half:
    def __call__(self, image):
        return np.asarray(image.resize((SIZE[1], SIZE[0]))) // 2


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"rubbish", lambda _: b""])
def test_a_corrupt_image_is_named(source, damage):
    source[6]["image"] = damage(source[6]["image"])
    with pytest.raises(DataError, match=r"Example 'xxxxxx6\.JPEG': corrupt image"):
        _evaluate(source)


def test_an_image_that_cannot_be_prepared_is_named(source):
    def refuse(image):
        raise DataError("too thin")

    with pytest.raises(DataError, match=r"Example '0\.JPEG': too thin"):
        _evaluate(source, transform=refuse)


def test_bad_batch_and_empty_split(source):
    with pytest.raises(ConfigError, match="positive multiple of the 3"):
        _evaluate(source, process_count=3)
    with pytest.raises(DataError, match="no examples"):
        _evaluate([])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_colour_mode_is_decoded_as_pillow_does(mode, orientation):
    """OpenCV turns CMYK into other colours, and rotates by EXIF unless told not to."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG" if mode in ("P", "1") else "JPEG", exif=exif)
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    decoded = decode_rgb(buffer.getvalue())
    assert (decoded.mode, decoded.size) == ("RGB", (30, 20))
    np.testing.assert_array_equal(np.asarray(decoded), expected)


class _Photos:
    """Ten PNGs of one colour each."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (index * 20, 0, 0)).save(buffer, "PNG")
        return {"image": buffer.getvalue(), "label": index, "file_name": f"{index}.png"}


def _shift(data, rng):
    return np.asarray(Image.open(io.BytesIO(data))) + rng.integers(0, 20, dtype=np.uint8)


def _train(steps=6, **options):
    options = {"batch_size": 4, "seed": 3, "start_step": 0, "num_threads": 0, **options}
    with classification_train_batches(_Photos(), transform=_shift, **options) as batches:
        return [next(batches) for _ in range(steps)]


def test_training_batches_are_shuffled_augmented_and_labelled():
    batches = _train(5)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert sorted(labels) == sorted([*range(10)] * 2)
    assert list(labels[:10]) != sorted(labels[:10])
    for batch in batches:
        assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (4, 8, 8, 3))
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] // 20, batch["label"])
        np.testing.assert_array_equal(batch["index"], batch["label"])


def test_a_training_batch_follows_from_seed_and_step_alone():
    whole = _train()
    later = _train(2, start_step=4)
    parts = [_train(process_index=index, process_count=2) for index in range(2)]
    for name in ("image", "label", "index"):
        np.testing.assert_array_equal(later[0][name], whole[4][name])
        joined = np.concatenate([parts[0][3][name], parts[1][3][name]])
        np.testing.assert_array_equal(joined, whole[3][name])
    assert not np.array_equal(_train(1, seed=4)[0]["image"], whole[0]["image"])


def test_repetitions_are_augmented_anew_and_never_neighbours():
    batches = _train(5, repeats=2)
    for batch in batches:
        np.testing.assert_array_equal(batch["label"][:2], batch["label"][2:])
        assert batch["label"][0] != batch["label"][1]
    shifts = [batch["image"][:, 0, 0, 0] % 20 for batch in batches]
    assert any(shift[0] != shift[2] for shift in shifts)
    seen = np.concatenate([batch["label"][:2] for batch in batches])
    assert sorted(seen) == list(range(10))


def test_a_training_image_that_cannot_be_read_is_named():
    def broken(data, rng):
        raise DataError("not a readable JPEG or PNG image")

    with (
        classification_train_batches(
            _Photos(), transform=broken, batch_size=2, seed=0, start_step=0, num_threads=0
        ) as batches,
        pytest.raises(DataError, match=r"Example '\d\.png': not a readable"),
    ):
        next(batches)
