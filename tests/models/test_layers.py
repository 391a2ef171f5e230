"""Padding rules and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structure import drawn, images_of

from flax_mnv2 import MobileNetV2Config, MobileNetV2ForImageClassification
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


@pytest.mark.parametrize("sync", [True, False])
def test_batch_statistics_are_those_of_all_devices_or_of_each(sync, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))
    config = MobileNetV2Config(num_labels=5, classifier_dropout_prob=0.0)
    model = MobileNetV2ForImageClassification(config, axis_name="data", sync_batch_norm=sync)
    images = images_of(2, 2, 32, 32, 3) * np.float32([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
    variables = drawn(model, std=0.02)

    def apply(model, images):
        output, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return output.logits, updated["batch_stats"]

    logits, statistics = jax.jit(jax.vmap(lambda images: apply(model, images), axis_name="data"))(images)
    alone = jax.jit(lambda images: apply(model.clone(axis_name=None), images))
    if sync:
        expected, whole = alone(images.reshape(4, 32, 32, 3))
        logits, statistics = logits.reshape(4, 5), jax.tree.map(lambda leaf: leaf[0], statistics)
    else:
        expected, whole = jax.tree.map(lambda *leaves: jnp.stack(leaves), alone(images[0]), alone(images[1]))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * float(jnp.abs(expected).max()))
    for one, other in zip(jax.tree.leaves(statistics), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()) + 1e-6)
