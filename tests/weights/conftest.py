import jax
import numpy as np
import pytest
from flax import traverse_util

from flax_mnv2.weights.checkpoint import make_model, variable_shapes


@pytest.fixture(scope="session")
def random_variables():
    """Variables of a model as nested dicts, all different, in the range of useful ones."""

    def make(config, task, seed=0):
        rng = np.random.default_rng(seed)
        shapes = variable_shapes(make_model(config, task))
        flat = {path: rng.uniform(0.1, 1.0, shape).astype(np.float32) for path, shape in shapes.items()}
        return traverse_util.unflatten_dict(flat)

    return make


@pytest.fixture(scope="session")
def assert_same():
    """Two trees or dicts of arrays, equal to the bit, types included."""

    def check(one, other):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, strict=True)

    return check
