"""Rows of segmentation batches: augmented for training, whole for evaluation, damaged ones named."""

import numpy as np
import pytest
import voc_archives
from pictures import BOMB, encode, photo
from PIL import Image

from flax_mnv2.data.decode import decode_image
from flax_mnv2.data.loader.batches import eval_batches, train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.errors import DataError
from flax_mnv2.tasks.segmentation.rows import EvalRow, TrainRow
from flax_mnv2.tasks.segmentation.task import SegmentationTask
from flax_mnv2.training.config.defaults import default_config

TRAIN = {
    "crop_size": (16, 16),
    "min_scale": 0.5,
    "max_scale": 2.0,
    "scale_step": 0.25,
    "flip": True,
    "ignore_label": 255,
    "num_classes": 5,
}
EVAL = {"size": (32, 32), "ignore_label": 255, "num_classes": 5}


@pytest.fixture
def source():
    """Ten examples of 20 … 29 rows."""
    return [
        {
            "image": voc_archives.jpeg(20 + index, 30, seed=index),
            "segmentation_mask": voc_archives.palette_png(voc_archives.mask_array(20 + index, 30)),
            "image_id": f"example{index}",
        }
        for index in range(10)
    ]


def _train_row(source, index=0, seed=0, **changes):
    return TrainRow(source=source, **(TRAIN | changes))(index, np.random.default_rng(seed))


def _eval_row(source, index=0, **changes):
    return EvalRow(source=source, **(EVAL | changes))(index)


def test_a_training_batch(source):
    options = LoaderOptions(batch_size=4, seed=3)
    with train_batches(TrainRow(source=source, **TRAIN | {"crop_size": (16, 24)}), source, options, start_step=0) as it:
        batch = next(it)
    assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
        "image": ((4, 16, 24, 3), "uint8"),
        "label": ((4, 16, 24), "uint8"),
        "index": ((4,), "int64"),
    }


def test_augmentation_follows_from_the_generator(source):
    row, same, other = (_train_row(source, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(row["image"], same["image"])
    np.testing.assert_array_equal(row["label"], same["label"])
    assert not np.array_equal(row["image"], other["image"])


def test_without_augmentation_the_image_comes_back(source):
    for index, example in enumerate(source):
        row = _train_row(source, index, min_scale=1.0, max_scale=1.0, flip=False, crop_size=(40, 40))
        np.testing.assert_array_equal(row["image"][: 20 + index, :30], decode_image(example["image"]))
        np.testing.assert_array_equal(row["label"][: 20 + index, :30], voc_archives.mask_array(20 + index, 30))
        assert (row["label"][20 + index :] == 255).all()
        assert row["index"] == index


def test_the_row_of_a_config(source):
    data = {name: value for name, value in TRAIN.items() if name != "num_classes"}
    config = default_config("segmentation")
    config.data.update(data)
    task = SegmentationTask.for_training(config, tuple("abcde"))
    assert task.train_row(source) == TrainRow(source=source, **TRAIN)


def test_an_evaluation(source):
    options = LoaderOptions(batch_size=4)
    with eval_batches(EvalRow(source=source, **EVAL), source, options) as it:
        batches = list(it)
    assert len(batches) == 3
    assert {name: (values.shape, values.dtype.name) for name, values in batches[0].items()} == {
        "image": ((4, 32, 32, 3), "uint8"),
        "label": ((4, 32, 32), "uint8"),
        "mask": ((4,), "bool"),
        "index": ((4,), "int64"),
        "size": ((4, 2), "int32"),
    }
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert list(rows["mask"]) == [True] * 10 + [False] * 2
    assert list(rows["index"]) == [*range(10), -1, -1]
    assert (rows["label"][10:] == 255).all()
    assert (rows["size"][10:] == 32).all()
    for index in range(10):
        height = 20 + index
        assert list(rows["size"][index]) == [height, 30]
        np.testing.assert_array_equal(rows["image"][index, :height, :30], decode_image(source[index]["image"]))
        np.testing.assert_array_equal(rows["label"][index, :height, :30], voc_archives.mask_array(height, 30))
        assert (rows["label"][index, height:] == 255).all()
        assert (rows["label"][index, :, 30:] == 255).all()


def test_an_image_larger_than_the_canvas(source):
    with pytest.raises(DataError, match=r"'example6' is 26x30 .*25x32.*--config\.data\.eval_size"):
        _eval_row(source, 6, size=(25, 32))


@pytest.mark.parametrize("make_row", [_train_row, _eval_row])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"image": b"rubbish"}, "not a readable image"),
        ({"image": BOMB}, "60000x60000 pixels"),
        ({"image": encode(photo(24, 32), "JPEG")[:-40]}, "truncated"),
        ({"image": encode(photo(24, 40), "JPEG")}, "the mask is 30x20, its image 40x24"),
        ({"segmentation_mask": b"rubbish"}, "not a readable PNG mask"),
        ({"segmentation_mask": BOMB}, "60000x60000 pixels"),
        (
            {"segmentation_mask": encode(Image.fromarray(np.full((20, 30), 77, np.uint8)), "PNG")},
            r"the mask has the value 77, expected 0 … 4 or the ignore label 255",
        ),
    ],
    ids=["rubbish", "bomb", "cut", "size", "mask", "mask bomb", "mask value"],
)
def test_a_damaged_example_is_named_with_the_way_out(source, make_row, damage, message):
    source[0] |= damage
    with pytest.raises(DataError, match=rf"'example0': .*{message}.*--config\.data\.bad_examples=skip"):
        make_row(source)
