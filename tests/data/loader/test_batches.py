"""Batches of any task: what is in them does not depend on who makes them."""

import multiprocessing

import numpy as np
import pytest
from ml_collections import ConfigDict
from toy_rows import EvalRow, TrainRow, assert_same, joined

from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.data.loader.batches import eval_batches, train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.data.loader.order import batch_positions
from flax_mnv2.errors import ConfigError, DataError

SOURCE = [100 + position for position in range(10)]


def _options(**changes):
    return LoaderOptions(**{"batch_size": 4, "seed": 3, "timeout": 120.0, **changes})


def _train(count, *, source=SOURCE, start_step=0, repeats=1, **changes):
    options = _options(**changes)
    with train_batches(TrainRow(source), source, options, start_step=start_step, repeats=repeats) as batches:
        return [next(batches) for _ in range(count)]


def _evaluate(*, source=SOURCE, **changes):
    with eval_batches(EvalRow(source), source, _options(**changes)) as batches:
        return list(batches)


# ---- training ------------------------------------------------------------------------------------------


def test_training_batches_hold_the_examples_in_order_with_noise_of_their_own():
    batches = _train(5)
    for number, batch in enumerate(batches):
        assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
            "index": ((4,), "int64"),
            "value": ((4,), "int64"),
            "noise": ((4, 2, 3), "float64"),
            "opencv": ((4,), "int64"),
        }
        assert list(batch["opencv"]) == [1] * 4  # thread: batches are made in parallel already
        np.testing.assert_array_equal(batch["index"], batch_positions(10, batch_size=4, seed=3, batch=number))
        np.testing.assert_array_equal(batch["value"], 100 + batch["index"])
    noise = np.concatenate([batch["noise"] for batch in batches])
    assert len(np.unique(noise)) == noise.size
    assert not np.array_equal(_train(1, seed=4)[0]["noise"], batches[0]["noise"])


@pytest.mark.parametrize("changes", [{"num_threads": 0}, {"num_threads": 3, "prefetch_buffer_size": 1}])
def test_resumed_and_by_any_number_of_threads(changes):
    assert_same(_train(8)[5:], _train(3, start_step=5, **changes))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(count):
    parts = [_train(4, process_index=index, process_count=count) for index in range(count)]
    assert_same(joined(parts), _train(4))


def test_one_row_a_batch():
    """grain takes the length of an endless data set for a float, which one row a batch made too large."""
    batches = _train(4, batch_size=1)
    assert_same([{name: np.concatenate([each[name] for each in batches]) for name in batches[0]}], _train(1))


def test_fewer_examples_than_rows():
    batch = _train(1, source=SOURCE[:1])[0]
    assert list(batch["index"]) == [0] * 4
    assert not np.array_equal(batch["noise"][0], batch["noise"][1])


def test_repetitions_are_made_anew():
    for batch in _train(5, repeats=2):
        np.testing.assert_array_equal(batch["value"][:2], batch["value"][2:])
        assert batch["value"][0] != batch["value"][1]
        assert not np.array_equal(batch["noise"][:2], batch["noise"][2:])


# ---- evaluation ----------------------------------------------------------------------------------------


def test_an_evaluation_has_every_example_once_and_fillers():
    batches = _evaluate()
    assert len(batches) == 3
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert list(rows["index"]) == [*range(10), -1, -1]
    assert list(rows["mask"]) == [True] * 10 + [False] * 2
    assert list(rows["value"]) == [*SOURCE, 0, 0]
    assert list(rows["name"]) == ["x" * position for position in range(10)] + ["", ""]


@pytest.mark.parametrize("changes", [{"num_threads": 0}, {"num_threads": 4}])
def test_an_evaluation_by_any_number_of_threads(changes):
    assert_same(_evaluate(), _evaluate(**changes))


def test_an_evaluation_over_processes():
    parts = [_evaluate(process_index=index, process_count=2) for index in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    assert_same(joined(parts), _evaluate())


# ---- workers -------------------------------------------------------------------------------------------


def test_workers_make_the_same_batches_and_leave_nothing_behind():
    """Resumed, over processes, with damaged examples that are left out; more workers than an evaluation's batches."""
    source = [*SOURCE[:3], -1, -2, *SOURCE[5:]]
    settings = {"source": source, "skip_bad": True, "process_count": 2, "process_index": 1}
    with_workers = _train(6, start_step=3, num_workers=2, num_threads=1, **settings)
    assert not multiprocessing.active_children()
    assert_same(_train(9, **settings)[3:], with_workers)
    with_workers[0]["noise"][:] = 1  # the memory is the batch's own
    settings = {"source": source, "skip_bad": True, "batch_size": 12}
    assert_same(_evaluate(**settings), _evaluate(num_workers=2, num_threads=0, **settings))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_with_its_type_and_stays(workers):
    source = [-7]
    with train_batches(TrainRow(source), source, _options(num_workers=workers), start_step=0) as batches:
        for _ in range(2):
            with pytest.raises(BadExampleError, match="Example 'example0': its value is -7") as caught:
                next(batches)
            assert (caught.value.name, caught.value.reason) == ("example0", "its value is -7")
    assert not multiprocessing.active_children()


# ---- options and ends ----------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(ConfigError, match="global batch size is 4, expected a positive multiple of the 3"):
        _options(process_count=3)
    with pytest.raises(ConfigError, match="global batch size is 0"):
        _options(batch_size=0)


def test_an_empty_split():
    with pytest.raises(DataError, match="no examples"):
        _train(1, source=[])
    with pytest.raises(DataError, match="no examples"):
        _evaluate(source=[])


def test_the_end_stays_the_end():
    with eval_batches(EvalRow(SOURCE), SOURCE, _options()) as batches:
        assert len(list(batches)) == 3
        assert list(batches) == []


@pytest.mark.parametrize("taken", [0, 1])
def test_close_twice(taken):
    batches = train_batches(TrainRow(SOURCE), SOURCE, _options(), start_step=0)
    for _ in range(taken):
        next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_options_of_a_run():
    data = {"num_threads": 3, "num_workers": 2, "prefetch_buffer_size": 5, "timeout": 7, "bad_examples": "skip"}
    config = ConfigDict(
        {"batch_size": 8, "seed": 5, "eval": {"batch_size": 6}, "data": {**data, "max_bad_examples": 9}}
    )
    shared = {"num_threads": 3, "num_workers": 2, "prefetch_buffer_size": 5, "timeout": 7.0}
    shared |= {"skip_bad": True, "max_bad": 9}
    assert LoaderOptions.for_training(config) == LoaderOptions(batch_size=8, seed=5, **shared)
    assert LoaderOptions.for_evaluation(config) == LoaderOptions(batch_size=6, **shared)
    assert LoaderOptions.for_evaluation(config, 2) == LoaderOptions(batch_size=2, **shared)
    config.data.bad_examples = "fail"
    assert not LoaderOptions.for_training(config).skip_bad
