"""Batches of segmentation, and the workers behind every task's."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from flax_mnv2.data.augment.segmentation import decode_image
from flax_mnv2.data.loader.batches import eval_batches, train_batches
from flax_mnv2.errors import ConfigError, DataError

SETTINGS = {
    "crop_size": 16,
    "min_scale": 0.5,
    "max_scale": 2.0,
    "scale_step": 0.25,
    "flip": True,
    "ignore_label": 255,
    "batch_size": 4,
    "seed": 3,
    "start_step": 0,
}


@pytest.fixture
def source(archives):
    """Ten examples of 20 … 29 rows."""
    return [
        {
            "image": archives.jpeg(20 + index, 30, seed=index),
            "segmentation_mask": archives.palette_png(archives.mask_array(20 + index, 30)),
            "image_id": f"example{index}",
        }
        for index in range(10)
    ]


def _take(source, count, **changes):
    with train_batches(source, **{**SETTINGS, **changes}) as batches:
        return [next(batches) for _ in range(count)]


def _assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_train_batch(source):
    batch = _take(source, 1, crop_size=(16, 24))[0]
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 16, 24, 3), "uint8"),
        "label": ((4, 16, 24), "uint8"),
        "index": ((4,), "int64"),
    }


def test_epochs_are_complete_shuffled_and_augmented_anew(source):
    batches = _take(source, 5)  # two epochs
    order = np.concatenate([batch["index"] for batch in batches])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert list(order[:10]) != list(range(10))
    assert list(order[:10]) != list(order[10:])
    images = np.concatenate([batch["image"] for batch in batches])
    again = [(i, j) for i in range(10) for j in range(10, 20) if order[i] == order[j]]
    assert not any(np.array_equal(images[i], images[j]) for i, j in again)


def test_without_augmentation_the_image_comes_back(source):
    batch = _take(source, 1, min_scale=1.0, max_scale=1.0, flip=False, crop_size=(40, 40))[0]
    for row, index in enumerate(batch["index"]):
        image = decode_image(source[index]["image"])
        np.testing.assert_array_equal(batch["image"][row, : 20 + index, :30], image)
        assert (batch["label"][row, 20 + index :] == 255).all()


@pytest.mark.parametrize("changes", [{"num_threads": 0}, {"num_threads": 3, "prefetch_buffer_size": 1}])
def test_resume_and_threads(source, changes):
    whole = _take(source, 8)
    _assert_same(whole[5:], _take(source, 3, start_step=5, **changes))


def test_resume_with_workers(source):
    _assert_same(_take(source, 8)[3:], _take(source, 5, start_step=3, num_workers=2, num_threads=1))


def test_seed_matters(source):
    assert not np.array_equal(_take(source, 1)[0]["image"], _take(source, 1, seed=4)[0]["image"])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(source, count):
    parts = [_take(source, 4, process_index=index, process_count=count) for index in range(count)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)
    ]
    _assert_same(joined, _take(source, 4))


def test_one_row_a_batch(source):
    """grain takes the length of an endless data set for a float, which one row a batch made too large."""
    batches = _take(source, 4, batch_size=1)
    _assert_same([{key: np.concatenate([each[key] for each in batches]) for key in batches[0]}], _take(source, 1))


def test_fewer_examples_than_rows(source):
    batch = _take(source[:1], 1)[0]
    assert list(batch["index"]) == [0] * 4
    assert not np.array_equal(batch["image"][0], batch["image"][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_decode_error_names_the_example(source, workers):
    broken = [{**source[0], "image": b"rubbish"}]
    with pytest.raises(DataError, match="Example 'example0': not a readable JPEG"):
        _take(broken, 1, num_workers=workers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": 0}, "crop size is 0"),
        ({"crop_size": (16, -1)}, "crop size is"),
        ({"min_scale": 0.0}, "min_scale"),
        ({"min_scale": 3.0}, "min_scale"),
        ({"scale_step": -1.0}, "scale_step"),
        ({"process_count": 3}, "global batch size is 4, expected a positive multiple of the 3"),
        ({"batch_size": 0}, "global batch size is 0"),
    ],
)
def test_bad_settings(source, changes, message):
    with pytest.raises(ConfigError, match=message):
        _take(source, 1, **changes)


def test_empty_split():
    with pytest.raises(DataError, match="no examples"):
        _take([], 1)
    with pytest.raises(DataError, match="no examples"):
        eval_batches([], size=(8, 8), batch_size=1, ignore_label=255)


def test_close_twice(source):
    batches = train_batches(source, **SETTINGS)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def _evaluate(source, **changes):
    settings = {"size": (32, 32), "batch_size": 4, "ignore_label": 255}
    with eval_batches(source, **{**settings, **changes}) as batches:
        return list(batches)


def test_eval_gives_each_example_once(archives, source):
    batches = _evaluate(source)
    assert len(batches) == 3
    assert {key: (value.shape, value.dtype.name) for key, value in batches[0].items()} == {
        "image": ((4, 32, 32, 3), "uint8"),
        "label": ((4, 32, 32), "uint8"),
        "mask": ((4,), "bool"),
        "index": ((4,), "int64"),
        "size": ((4, 2), "int32"),
    }
    rows = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    assert list(rows["mask"]) == [True] * 10 + [False] * 2
    assert list(rows["index"]) == [*range(10), -1, -1]
    assert (rows["label"][10:] == 255).all()
    for index in range(10):
        height = 20 + index
        assert list(rows["size"][index]) == [height, 30]
        np.testing.assert_array_equal(rows["image"][index, :height, :30], decode_image(source[index]["image"]))
        np.testing.assert_array_equal(rows["label"][index, :height, :30], archives.mask_array(height, 30))
        assert (rows["label"][index, height:] == 255).all()
        assert (rows["label"][index, :, 30:] == 255).all()


def test_eval_over_processes(source):
    parts = [_evaluate(source, process_index=index, process_count=2) for index in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    joined = [{key: np.concatenate([one[key], other[key]]) for key in one} for one, other in zip(*parts, strict=True)]
    _assert_same(joined, _evaluate(source))


def test_eval_with_workers(source):
    _assert_same(_evaluate(source, num_workers=2), _evaluate(source))


def test_eval_image_too_large(source):
    with pytest.raises(DataError, match=r"'example6' is 26x30 .*25x32.*--config\.data\.eval_size"):
        _evaluate(source, size=(25, 32))


def test_eval_decode_error_names_the_example(source):
    source[9]["segmentation_mask"] = b"rubbish"
    with pytest.raises(DataError, match="Example 'example9': not a readable PNG mask"):
        _evaluate(source)


def test_workers_end_with_a_parent_that_is_killed():
    script = pathlib.Path(__file__).parents[2] / "helpers" / "orphan_worker.py"
    root = script.parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
        assert all(os.getpgid(worker) != os.getpgid(parent.pid) for worker in workers)  # group signals pass them by
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 30
    while alive := [worker for worker in workers if _runs(worker)]:
        assert time.monotonic() < deadline, f"still alive: {alive}"
        time.sleep(0.1)


def _runs(pid):
    """Whether a process runs; one that has ended may wait for somebody to take note."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
