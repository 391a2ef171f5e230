"""What the tests of single operations share."""

import jax
import numpy as np


def with_gradients(function):
    """(x, weights, cotangent) → (output, gradient of x, gradient of the weights)."""

    def run(x, weights, cotangent):
        out, pull = jax.vjp(function, x, weights)
        return out, *pull(cotangent)

    return run


def assert_close(actual, expected, tolerance):
    """Leaf by leaf, to ``tolerance`` of the largest value of the leaf."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())
