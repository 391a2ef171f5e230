"""Networks by their shapes alone."""

import jax
import jax.numpy as jnp
from flax import traverse_util

from flax_mnv2.weights.source import variable_shapes


def variables_of(model):
    """The shapes of a model's variables, traced once for each model."""
    structs = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in variable_shapes(model).items()}
    return traverse_util.unflatten_dict(structs)
