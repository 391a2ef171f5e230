"""Large images are expanded and convolved a few rows at a time, with the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2.models.ops import bands
from flax_mnv2.models.ops.bands import convolve_in_bands
from flax_mnv2.models.ops.expansion import Expansion
from flax_mnv2.models.ops.shifts import Window, shifted_sum


@pytest.mark.parametrize(
    "window",
    [
        Window(1, ((1, 1), (1, 1)), 1),
        Window(2, ((0, 1), (0, 1)), 1),
        Window(2, ((1, 1), (1, 0)), 1),
        Window(1, ((2, 2), (2, 2)), 2),
        Window(1, ((0, 0), (0, 0)), 1),
    ],
)
def test_bands_give_what_the_whole_gives(window):
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights = jax.random.normal(keys[0], (2, 11, 9, 3)), jax.random.normal(keys[1], (3, 5))
    kernel = jax.random.normal(keys[2], (3, 3, 1, 5))

    def expand(x):
        return jnp.clip(x @ weights + 0.7, 0.0, 6.0)  # not 0 where x is 0, as after batch norm

    expected = jax.jit(lambda x: shifted_sum(expand(x), kernel, window))(x)
    for rows in (1, 3, 4, 100):
        found = jax.jit(lambda x, rows=rows: convolve_in_bands(expand, x, kernel, window, rows))(x)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_rows_of_a_band_follow_from_the_size_of_the_map():
    window = Window(2, ((0, 1), (0, 1)), 1)
    whole = 1824 * 2736 * 96 * 4
    assert bands.rows_per_band(513 * 513 * 96 * 4 // 4, 257, window) == 0  # crops and photos of usual sizes
    assert bands.rows_per_band(whole, 1824, window) * 2 * whole // 1824 <= 2**24
    assert bands.rows_per_band(whole, 1824, window) >= 1


def _depthwise(x, weights, offset, kernel):
    return Expansion(x, weights).depthwise(None, offset, kernel, act=jax.nn.relu6)


def test_a_block_takes_bands_where_its_map_is_large(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((2, 15, 14, 4), (4, 6), (6,), (3, 3, 1, 6))
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    expected = _depthwise(*arrays)
    monkeypatch.setattr(bands, "_LARGE_BYTES", 0)
    monkeypatch.setattr(bands, "_BAND_BYTES", 14 * 6 * 4 * 4)
    np.testing.assert_allclose(_depthwise(*arrays), expected, rtol=1e-6, atol=1e-6)


def test_the_expanded_map_of_twenty_megapixels_is_never_there():
    shapes = ((1, 1824, 2736, 16), (16, 96), (96,), (3, 3, 1, 96))
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]

    def block(x, weights, offset, kernel):
        window = {"stride": 2, "padding": ((0, 1), (0, 1))}
        return Expansion(x, weights).depthwise(None, offset, kernel, act=jax.nn.relu6, **window)

    used = jax.jit(block).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    assert used < 1824 * 2736 * 96 * 4 / 4
