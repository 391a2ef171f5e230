"""Rows of classification batches: augmented for training, prepared for evaluation, damaged ones named."""

import imagenet_archives
import numpy as np
import pytest

from flax_mnv2.data.decode import decode_rgb
from flax_mnv2.data.loader.batches import eval_batches, train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.errors import DataError
from flax_mnv2.tasks.classification.rows import EvalRow, TrainRow

SIZE = (16, 24)


def _shrink(image):
    """Stands in for the preprocessing of the weights."""
    return np.asarray(image.resize((SIZE[1], SIZE[0])))


def _shift(data, rng):
    return _shrink(decode_rgb(data)) // 2 + rng.integers(0, 100, dtype=np.uint8)


@pytest.fixture
def source():
    """Ten examples of one size, with names of different lengths."""
    return [
        {"image": imagenet_archives.jpeg(seed=i), "label": 7 * i, "file_name": f"{'x' * i}{i}.JPEG"} for i in range(10)
    ]


def _train_row(source, index, *, transform=_shift, num_classes=None):
    row = TrainRow(source=source, transform=transform, num_classes=num_classes)
    return row(index, np.random.default_rng(0))


def _eval_row(source, index, *, transform=_shrink, num_classes=None):
    return EvalRow(source=source, transform=transform, size=SIZE, num_classes=num_classes)(index)


def test_a_training_batch(source):
    row = TrainRow(source=source, transform=_shift)
    with train_batches(row, source, LoaderOptions(batch_size=4, seed=3), start_step=0) as batches:
        batch = next(batches)
    assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
        "image": ((4, 16, 24, 3), "uint8"),
        "label": ((4,), "int32"),
        "index": ((4,), "int64"),
    }
    shifts = []
    for pixels, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
        assert label == 7 * index
        shift = np.unique(pixels - _shrink(decode_rgb(source[index]["image"])) // 2)
        assert shift.shape == (1,)
        shifts.append(shift[0])
    assert len(set(shifts)) > 1


def test_an_evaluation(source):
    with eval_batches(EvalRow(source=source, transform=_shrink, size=SIZE), source, LoaderOptions(batch_size=4)) as it:
        batches = list(it)
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
        np.testing.assert_array_equal(rows["image"][index], _shrink(decode_rgb(example["image"])))
    assert not rows["image"][10:].any()


@pytest.mark.parametrize("make_row", [_train_row, _eval_row])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"rubbish", lambda _: b""])
def test_a_corrupt_image_is_named(source, make_row, damage):
    source[6]["image"] = damage(source[6]["image"])
    with pytest.raises(DataError, match=r"Example 'xxxxxx6\.JPEG': not a readable image"):
        make_row(source, 6)


@pytest.mark.parametrize("make_row", [_train_row, _eval_row])
def test_an_image_that_cannot_be_prepared_is_named(source, make_row):
    def refuse(*_):
        raise DataError("too thin")

    with pytest.raises(DataError, match=r"Example '0\.JPEG': too thin"):
        make_row(source, 0, transform=refuse)


@pytest.mark.parametrize("make_row", [_train_row, _eval_row])
@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_out_of_range_is_named(source, make_row, label):
    source[2]["label"] = label
    with pytest.raises(DataError, match=rf"'xx2\.JPEG': its label is {label}, expected 0 … 4"):
        make_row(source, 2, num_classes=5)
    assert make_row(source, 2)["label"] == label
    source[2]["label"] = 4
    assert make_row(source, 2, num_classes=5)["label"] == 4
