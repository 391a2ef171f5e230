"""Fake quantisation: numbers rounded to those that integers of a range stand for, with a gradient as if they were not.

Outputs are those of TensorFlow's ``FakeQuantWithMinMaxVars`` and ``…PerChannel`` to the bit, and so are the gradients,
but for the order of their sums.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_BITS = 8


class Grid(NamedTuple):
    """Real numbers that integers stand for: from ``low`` to ``high`` in steps of ``scale``, 0 among them.

    ``below_zero`` is how many of them lie below 0, float32 as the others; all have the shape of a range's ends.
    """

    low: jax.Array
    high: jax.Array
    scale: jax.Array
    below_zero: jax.Array


def nudged_grid(low: jax.Array, high: jax.Array, *, num_bits: int = _BITS, narrow_range: bool = False) -> Grid:
    """Returns the grid that is nearest to a range and has 0 on it; ``low`` and ``high`` are float32 of one shape.

    ``narrow_range`` leaves out the lowest integer, so that a symmetric range has its 0 in the middle.
    """
    lowest, highest = _integers(num_bits, narrow_range)
    scale = (high - low) / _opaque(highest - lowest, low)
    zero_point = lax.round(jnp.clip(lowest - low / scale, lowest, highest), lax.RoundingMethod.AWAY_FROM_ZERO)
    return Grid((lowest - zero_point) * scale, (highest - zero_point) * scale, scale, zero_point - lowest)


def fake_quant(
    x: jax.Array, low: jax.Array, high: jax.Array, *, num_bits: int = _BITS, narrow_range: bool = False
) -> jax.Array:
    """Rounds to the grid of a range; what lies outside becomes its end, and of an empty range at 0 all becomes 0.

    Args:
      x: numbers (…, C), floating point; the computation is in float32.
      low: lower end, a scalar, or (C,) for a range for each channel; 0 at most, else the range is moved to begin there.
      high: upper end of the same shape; 0 at least, else likewise.
      num_bits: of the integers.
      narrow_range: leave out the lowest integer.

    Returns:
      An array of the shape and dtype of ``x``. Its gradient goes to ``x`` inside the range, ends included, and to the
      end beyond which a number lies outside (arXiv 1712.05877; TensorFlow's ``fake_quant_ops``).
    """
    wide = jnp.asarray(x, jnp.float32)
    ends = (jnp.asarray(end, jnp.float32) for end in (low, high))
    return _fake_quant(num_bits, narrow_range, wide, *ends).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fake_quant(num_bits: int, narrow_range: bool, x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    grid = nudged_grid(low, high, num_bits=num_bits, narrow_range=narrow_range)
    ends = _along(grid, x)
    place = jnp.clip(x, ends.low, ends.high) - ends.low
    if low.ndim:  # TensorFlow multiplies by the number of steps per unit where each channel has a range
        lowest, highest = _integers(num_bits, narrow_range)
        place = place * _along(_opaque(highest - lowest, low) / (high - low), x)
    else:
        place = place / jnp.maximum(ends.scale, -jnp.abs(place))  # the scale; XLA inverts a divisor that all share
    # At least 0, as it is anyway; but now the product is rounded before the difference, and they are not made one.
    place = jnp.maximum(place, 0.0)
    steps = jnp.floor(place - ends.below_zero + 0.5)
    return jnp.where(_along(_is_empty(low, high), x), 0.0, steps * ends.scale)


def _forward(num_bits, narrow_range, x, low, high):
    return _fake_quant(num_bits, narrow_range, x, low, high), (x, low, high)


def _backward(num_bits, narrow_range, kept, cotangent):
    x, low, high = kept
    grid, empty = nudged_grid(low, high, num_bits=num_bits, narrow_range=narrow_range), _is_empty(low, high)
    grid, empty = _along((grid, empty), x)
    below, above = (x < grid.low) & ~empty, (x > grid.high) & ~empty
    axes = tuple(range(x.ndim - low.ndim))
    ends = (jnp.sum(jnp.where(outside, cotangent, 0.0), axis=axes) for outside in (below, above))
    return jnp.where(below | above, 0.0, cotangent), *ends


_fake_quant.defvjp(_forward, _backward)


def _integers(num_bits: int, narrow_range: bool) -> tuple[np.float32, np.float32]:
    return np.float32(1 if narrow_range else 0), np.float32(2**num_bits - 1)


def _opaque(value: np.float32, like: jax.Array) -> jax.Array:
    """Returns a constant as XLA cannot see it, which would divide by it as by a product with its rounded reciprocal."""
    return lax.optimization_barrier(jnp.full(jnp.shape(like), value))


def _is_empty(low: jax.Array, high: jax.Array) -> jax.Array:
    return (low == 0) & (high == 0)


def _along(tree, x: jax.Array):
    """Gives scalars and arrays (C,) the rank of ``x``."""
    return jax.tree.map(lambda end: end.reshape(*(1,) * (x.ndim - 1), -1) if x.ndim else end, tree)
