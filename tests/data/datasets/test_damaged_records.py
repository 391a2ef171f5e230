"""Prepared data sets whose files are damaged or cut short."""

import pathlib

import numpy as np
import pytest

from flax_mnv2.data.datasets.registry import load_segmentation
from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.data.loader.batches import train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.errors import DataError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load_segmentation({"dataset": "shapes_segmentation", "data_dir": str(tmp_path_factory.mktemp("prepared"))})


@pytest.fixture
def record_file(shapes):
    """The file of the training split, to be damaged; it is whole again afterwards."""
    path = pathlib.Path(shapes.builders["train"]().info.splits["train"].filepaths[0])
    data = path.read_bytes()
    yield path
    path.write_bytes(data)


def _skipping(source, count, *, batch_size):
    """Batches of positions, and the bad examples that were left out of them; at most three may be."""

    def row(index, rng):
        assert source[index]["image"]
        return {"index": np.int64(index)}

    options = LoaderOptions(batch_size=batch_size, seed=3, num_threads=1, skip_bad=True, max_bad=3)
    with train_batches(row, source, options, start_step=0) as batches:
        return [next(batches) for _ in range(count)], batches.bad_examples


def test_a_damaged_record_is_named_and_its_neighbours_are_read(shapes, record_file):
    data = bytearray(record_file.read_bytes())
    for at in range(200_000, 200_010):
        data[at] ^= 0xFF
    record_file.write_bytes(data)
    source = shapes.source("train")
    errors = {}
    for index in range(40, 80):
        try:
            source[index]
        except DataError as error:
            errors[index] = str(error)
    assert len(errors) == 1
    index, message = errors.popitem()
    for words in (f"record {index} of {record_file}", "hash mismatch", "Delete"):
        assert words in message
    batches, bad = _skipping(source, 10, batch_size=40)
    assert list(bad) == [index]
    seen = np.concatenate([batch["index"] for batch in batches])
    assert sorted(set(seen.tolist())) == [position for position in range(400) if position != index]


@pytest.mark.parametrize("keep", [0, 1_000_000])
def test_a_file_cut_short_stops_even_when_skipping(shapes, record_file, keep):
    record_file.write_bytes(record_file.read_bytes()[:keep])
    source = shapes.source("train")
    with pytest.raises(BadExampleError, match="its record cannot be read"):
        source[7]
    with pytest.raises(DataError, match=r"4 examples in a row cannot be read: record \d+ of"):
        _skipping(source, 1, batch_size=4)


def test_a_record_without_a_feature_is_named(shapes, monkeypatch):
    source = shapes.source("train")
    whole, lacking = {"image": b"x", "segmentation_mask": b"y", "image_id": b"a"}, {"image": None, "image_id": b"b"}
    monkeypatch.setattr(source, "_records", [whole, lacking])
    assert source[0] == {"image": b"x", "segmentation_mask": b"y", "image_id": "a"}
    with pytest.raises(BadExampleError, match=r"'record 1 of .*array_record.*': its record has no image, segmentation"):
        source[1]
