"""Exponential moving average of weights and statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def update_ema(average: Any, variables: Any, step: jax.Array, config: Any) -> Any:
    """The average after one more step: ``decay * average + (1 - decay) * variables``.

    Args:
      average: the average so far, float32; a pytree like ``variables``.
      variables: after the step.
      step: int32 scalar, steps made, this one included.
      config: ``config.ema`` of a run, durations in steps. With ``ramp`` the decay is at most
        ``(1 + step) / (10 + step)``, as in TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``. Other than
        every ``every_steps`` the average stays; up to ``start_steps`` it is a copy.
    """
    decay = jnp.float32(config.decay)
    if config.ramp:
        made = step.astype(jnp.float32)
        decay = jnp.minimum(decay, (1.0 + made) / (10.0 + made))
    keep = jnp.where(step <= config.start_steps, 0.0, jnp.where(step % config.every_steps == 0, decay, 1.0))
    return jax.tree.map(lambda old, new: old + (1.0 - keep) * (new - old), average, variables)
