"""Working through a batch a few images at a time, so that what is between two operations stays in the cache (CPU)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from flax_mnv2.models.ops.shifts import largest_divisor

# A slice of about this size stays in a core's part of the last cache while it is worked on.
_SLICE_BYTES = 2_000_000


def images_per_slice(batch: int, bytes_per_image: int, *, min_slices: int = 1) -> int:
    """Returns the largest divisor of ``batch`` of which the images fit a slice together; at least 1.

    It leaves ``min_slices`` slices or more, as far as there are images. Of symbolic sizes, of which nothing is cut, 1.
    """
    if not (isinstance(batch, int) and isinstance(bytes_per_image, int)):
        return 1
    fitting = min(_SLICE_BYTES // max(bytes_per_image, 1), batch // min_slices)
    return largest_divisor(batch, max(1, fitting))


def over_slices(
    step: Callable[..., tuple[Any, Any]], carry: Any, arrays: tuple[jax.Array, ...], images: int
) -> tuple[Any, Any]:
    """``carry, out = step(carry, *slices)`` for each slice of ``images`` images, outputs joined along the batch."""
    batch = arrays[0].shape[0]
    if batch == images:
        return step(carry, *arrays)
    slices = tuple(array.reshape(batch // images, images, *array.shape[1:]) for array in arrays)
    carry, out = lax.scan(lambda carry, slices: step(carry, *slices), carry, slices)
    return carry, jax.tree.map(lambda array: array.reshape(batch, *array.shape[2:]), out)


def map_slices(function: Callable, x: jax.Array, images: int) -> jax.Array:
    """``function`` of each slice of ``x``, joined."""
    return over_slices(lambda carry, x: (carry, function(x)), (), (x,), images)[1]
