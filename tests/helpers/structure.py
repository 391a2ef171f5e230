"""Networks by their shapes alone, and with variables for which no program is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from flax_mnv2.weights.source import variable_shapes


def variables_of(model):
    """The shapes of a model's variables, traced once for each model."""
    structs = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in variable_shapes(model).items()}
    return traverse_util.unflatten_dict(structs)


def drawn(model, *, std=None, seed=0):
    """Variables distributed as those of ``model.init``, for which JAX compiles a large program.

    Kernels are normal with ``std``, or where that is None with He's standard deviation; scales and variances are 1,
    offsets and means 0.
    """
    rng, flat = np.random.default_rng(seed), {}
    for path, shape in variable_shapes(model).items():
        if path[-1] == "kernel":
            flat[path] = rng.normal(0.0, (2.0 / np.prod(shape[:-1])) ** 0.5 if std is None else std, shape)
        else:
            flat[path] = np.full(shape, path[-1] in ("scale", "var"))
    return traverse_util.unflatten_dict({path: np.float32(value) for path, value in flat.items()})


def images_of(*shape, seed=0):
    """Normal pixels, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
