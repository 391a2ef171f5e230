"""Activations by their names in ``transformers``, with its numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Activation = Callable[[jax.Array], jax.Array]

_exact_gelu = functools.partial(nn.gelu, approximate=False)


def _relu6(x: jax.Array) -> jax.Array:
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


def _clipped_gelu(x: jax.Array) -> jax.Array:
    return jnp.clip(_exact_gelu(x), -10, 10)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * nn.sigmoid(1.702 * x)


def _laplace(x: jax.Array) -> jax.Array:
    """Laplace's function of MEGA (arXiv 2209.10655), with its mean and deviation."""
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1 + lax.erf((x - mean) / (deviation * math.sqrt(2))))


ACTIVATION_FUNCTIONS: dict[str, Activation] = {  # one for each of config.checks.ACTIVATIONS
    "relu6": _relu6,
    "relu": nn.relu,
    "relu2": lambda x: lax.square(nn.relu(x)),
    "leaky_relu": nn.leaky_relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "hardswish": nn.hard_swish,
    "elu": nn.elu,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "linear": lambda x: x,
    "gelu_10": _clipped_gelu,
    "quick_gelu": _quick_gelu,
    "laplace": _laplace,
    "sqrtsoftplus": lambda x: jnp.sqrt(nn.softplus(x)),
    **dict.fromkeys(("gelu", "gelu_python"), _exact_gelu),
    # The approximation by tanh, which transformers writes in five ways.
    **dict.fromkeys(
        ("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh"),
        functools.partial(nn.gelu, approximate=True),
    ),
}


def activation(hidden_act: str | Activation) -> Activation:
    """Returns the function that ``config.hidden_act`` names, or is."""
    return ACTIVATION_FUNCTIONS[hidden_act] if isinstance(hidden_act, str) else hidden_act
