"""Padding rules and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2.models.layers import ChannelDropout, same_padding


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "expected"),
    [(224, 2, 1, (0, 1)), (225, 2, 1, (1, 1)), (7, 1, 1, (1, 1)), (8, 1, 2, (2, 2)), (5, 1, 4, (4, 4))],
)
def test_tensorflow_padding_depends_on_the_size(size, stride, dilation, expected):
    padding = same_padding(size, size, kernel=3, stride=stride, dilation=dilation, tf_padding=True)
    assert padding == (expected, expected)


def test_symmetric_padding_does_not():
    for size in (224, 225):
        assert same_padding(size, 7, kernel=3, stride=2, dilation=2, tf_padding=False) == ((2, 2), (2, 2))


def _drop(rate, x, deterministic=False):
    return ChannelDropout(rate).apply({}, x, deterministic=deterministic, rngs={"dropout": jax.random.key(1)})


def test_dropout_drops_whole_channels_and_keeps_the_mean():
    x = jnp.ones((64, 3, 3, 100))
    y = np.asarray(_drop(0.25, x))
    per_channel = y.reshape(64, 9, 100)
    assert (per_channel == per_channel[:, :1]).all()
    assert set(np.unique(y)) <= {np.float32(0.0), np.float32(1 / 0.75)}
    assert abs(y.mean() - 1.0) < 0.03


def test_dropout_of_an_example_does_not_depend_on_the_batch_size():
    x = jnp.ones((8, 2, 2, 50))
    np.testing.assert_array_equal(_drop(0.5, x)[:3], _drop(0.5, x[:3]))


def test_dropout_edges():
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(_drop(0.5, x, deterministic=True), x)
    np.testing.assert_array_equal(_drop(0.0, x), x)
    np.testing.assert_array_equal(_drop(1.0, x), 0 * x)
