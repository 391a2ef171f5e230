"""Working through large images a few rows at a time, where one expanded map alone would take gigabytes (CPU)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from flax_mnv2.models.ops.platforms import vary_like
from flax_mnv2.models.ops.shifts import Window, shifted_sum

_LARGE_BYTES = 2**28  # of one image's expanded map: below, whole images are as good
_BAND_BYTES = 2**24


def rows_per_band(image_bytes: int, num_rows: int, window: Window) -> int:
    """Returns how many rows of the output to compute at a time; 0 where whole images are worked through.

    The expanded map of an image has ``image_bytes`` in ``num_rows`` rows; of a symbolic size nothing is cut.
    """
    if not isinstance(image_bytes, int) or image_bytes <= _LARGE_BYTES or min(window.padding[0]) < 0:
        return 0
    return max(1, _BAND_BYTES * num_rows // image_bytes // window.stride)


def convolve_in_bands(
    expand: Callable[[jax.Array], jax.Array], x: jax.Array, kernel: jax.Array, window: Window, rows: int
) -> jax.Array:
    """``shifted_sum(expand(x), kernel, window)``, (N, H', W', C), with ``rows`` rows of it computed at a time.

    ``expand`` makes (N, r, W, C) of any r rows (N, r, W, K), pixel by pixel.
    """
    (top, bottom), sides = window.padding
    height, reach = x.shape[1], (kernel.shape[0] - 1) * window.dilation + 1
    num_rows = (height + top + bottom - reach) // window.stride + 1
    rows = min(rows, num_rows)
    taken = (rows - 1) * window.stride + reach
    inner = Window(window.stride, ((0, 0), sides), window.dilation)

    def band(first: jax.Array) -> jax.Array:
        row = first * window.stride - top + jnp.arange(taken)
        expanded = expand(jnp.take(x, jnp.clip(row, 0, height - 1), axis=1))
        inside = ((row >= 0) & (row < height))[None, :, None, None]  # zeros stand around the expanded map
        return shifted_sum(jnp.where(inside, expanded, 0), kernel, inner)

    def add_band(index: jax.Array, out: jax.Array) -> jax.Array:
        first = jnp.minimum(index * rows, num_rows - rows)  # the last band overlaps the one before
        return lax.dynamic_update_slice_in_dim(out, band(first), first, axis=1)

    shape = jax.eval_shape(band, jax.ShapeDtypeStruct((), jnp.int32))
    # All of it is overwritten. Zeros, which follow from nothing, XLA would make at once for all layers.
    out = jnp.broadcast_to(x[0, 0, 0, 0].astype(shape.dtype), (len(x), num_rows, *shape.shape[2:]))
    out = vary_like(out, kernel)
    return lax.fori_loop(0, -(-num_rows // rows), add_band, out)
