"""Batch normalisation as a multiplier and an offset per channel, so that it can be folded into a convolution."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flax_mnv2.models.ops.pointwise import Moments


class BatchNorm(nn.Module):
    """Variables and rules of ``nn.BatchNorm``, without the pass over the data.

    Parameters: ``scale`` and ``bias`` (features,). Statistics: ``mean`` and ``var`` (features,), biased, float32.
    """

    features: int
    use_running_average: bool  # and leave the running statistics as they are
    momentum: float  # fraction of the old running statistics that is kept per step
    epsilon: float
    axis_name: str | None = None  # mapped axis over which statistics are shared

    @nn.compact
    def __call__(self, moments: Callable[[jax.Array], Moments]) -> tuple[jax.Array, jax.Array]:
        """(multiplier, offset), each (features,): the layer is ``x * multiplier + offset``.

        ``moments`` takes a shift (features,) and gives the mean and the mean square of the batch less the shift, each
        (features,), float32 or better; it is called only where the statistics of the batch are wanted. The shift is the
        running mean: near that of the batch, so that little is lost where the square of the mean is subtracted.
        """
        shape = (self.features,)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            shift = lax.stop_gradient(running_mean.value)
            mean, square = moments(shift)
            if self.axis_name is not None and not self.is_initializing():
                mean, square = lax.pmean((mean, square), self.axis_name)
            var = jnp.maximum(square - lax.square(mean), 0.0)
            mean = mean + shift
            if not self.is_initializing():
                for running, batch in ((running_mean, mean), (running_var, var)):
                    running.value = self.momentum * running.value + (1.0 - self.momentum) * batch
        multiplier = scale * lax.rsqrt(var + self.epsilon)
        return multiplier, bias - mean * multiplier
