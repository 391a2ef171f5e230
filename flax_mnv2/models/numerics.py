"""Rules of precision that models and losses share."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def at_least_float32(dtype: Any) -> jnp.dtype:
    """Returns what sums over many values are taken in: float32, or float64 where the computation already is."""
    return jnp.promote_types(dtype, jnp.float32)
