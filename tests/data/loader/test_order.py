"""Which example stands in which row: of training batches, before anything is read."""

import numpy as np
import pytest

from flax_mnv2.data.loader.order import batch_positions, training_order


def _positions(count, **changes):
    settings = {"num_examples": 10, "batch_size": 4, "seed": 3, **changes}
    return np.concatenate([batch_positions(batch=batch, **settings) for batch in range(count)])


def test_epochs_are_complete_and_shuffled_anew():
    order = _positions(5)  # two epochs; the third batch spans both
    assert order.dtype == np.int64
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert list(order[:10]) != list(range(10))
    assert list(order[:10]) != list(order[10:])


def test_the_order_follows_from_the_seed_alone():
    np.testing.assert_array_equal(_positions(5), _positions(20, batch_size=1))
    assert list(_positions(5)) != list(_positions(5, seed=4))


def test_fewer_examples_than_rows():
    assert list(_positions(2, num_examples=1)) == [0] * 8


@pytest.mark.parametrize("repeats", [2, 4])
def test_repetitions_are_far_apart(repeats):
    order = _positions(10, repeats=repeats, batch_size=8).reshape(10, repeats, 8 // repeats)
    for each in range(repeats):
        np.testing.assert_array_equal(order[:, each], order[:, 0])
    distinct = order[:, 0].reshape(-1)
    np.testing.assert_array_equal(distinct, _positions(10, batch_size=8 // repeats))


def test_the_order_has_no_end():
    assert training_order(10, batch_size=4, seed=3)[10**12] in range(10)
