"""Batch normalisation beside flax.linen.BatchNorm."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flax_mnv2.models.layers import BatchNorm

FEATURES = 4
SETTINGS = {"momentum": 0.9, "epsilon": 1e-3}


class _Layer(nn.Module):
    """One of the two layers, by the name that both have here."""

    norm: type[nn.Module]
    use_running_average: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        settings = {"use_running_average": self.use_running_average, "axis_name": self.axis_name, **SETTINGS}
        return self.norm(name="normalization", **settings)(x)


_Ours, _Theirs = functools.partial(_Layer, BatchNorm), functools.partial(_Layer, nn.BatchNorm)


def _inputs(dtype="float64", batch=3):
    """Variables, x and a cotangent for the output."""
    rng = np.random.default_rng(0)
    exact = jnp.promote_types(dtype, jnp.float32)
    params = {"scale": rng.uniform(0.5, 1.5, FEATURES), "bias": rng.normal(size=FEATURES)}
    stats = {"mean": rng.normal(size=FEATURES), "var": rng.uniform(0.5, 1.5, FEATURES)}
    variables = {"params": {"normalization": params}, "batch_stats": {"normalization": stats}}
    x, cotangent = rng.normal(0.5, 2.0, (2, batch, 5, 4, FEATURES))
    cast = functools.partial(jnp.asarray, dtype=dtype)
    return jax.tree.map(lambda array: jnp.asarray(array, exact), variables), cast(x), cast(cotangent)


def _with_gradients(model):
    """(variables, x, cotangent) → (output, updated statistics, gradients of parameters and x)."""

    def run(variables, x, cotangent):
        def apply(params, x):
            return model.apply({**variables, "params": params}, x, mutable=["batch_stats"])

        out, pull, updated = jax.vjp(apply, variables["params"], x, has_aux=True)
        return out, updated["batch_stats"], pull(cotangent)

    return run


def _assert_close(actual, expected, tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        atol = tolerance * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def test_variables_are_those_of_flax():
    """Of the same names, types and initial values, which initialising leaves as they are."""
    x = _inputs("float32")[1]
    ours, theirs = (jax.jit(model.init)(jax.random.key(0), x) for model in (_Ours(False), _Theirs(False)))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("use_running_average", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 2e-2)])
def test_output_statistics_and_gradients(use_running_average, dtype, tolerance, float64):
    inputs = _inputs(dtype)
    actual = jax.jit(_with_gradients(_Ours(use_running_average)))(*inputs)
    expected = jax.jit(_with_gradients(_Theirs(use_running_average)))(*_inputs("float64"))
    assert actual[0].dtype == jnp.dtype(dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual[1])} == {jnp.promote_types(dtype, jnp.float32)}
    _assert_close(actual, expected, tolerance)


def test_running_statistics_do_not_look_at_the_batch():
    variables = _inputs("float32")[0]

    def fail(shift):
        raise AssertionError("moments were asked for")

    norm = BatchNorm(True, **SETTINGS)
    variables = {collection: values["normalization"] for collection, values in variables.items()}
    (multiplier, offset), updated = norm.apply(variables, fail, mutable=["batch_stats"], method="affine")
    stats, params = variables["batch_stats"], variables["params"]
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)
    expected = params["scale"] / np.sqrt(stats["var"] + SETTINGS["epsilon"])
    np.testing.assert_allclose(multiplier, expected, rtol=1e-6)
    np.testing.assert_allclose(offset, params["bias"] - stats["mean"] * expected, rtol=1e-5)


def test_constant_channels_have_no_negative_variance():
    """Of a constant, mean square less squared mean is rounding, of either sign."""
    variables, x, cotangent = _inputs("float32")
    x = jnp.zeros_like(x) + jnp.asarray([1000.1, -333.3, 0.0, 1e-3], x.dtype).reshape(1, 1, 1, -1)
    results = jax.jit(_with_gradients(_Ours(False)))(variables, x, cotangent)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
    var = results[1]["normalization"]["var"]
    assert (var >= SETTINGS["momentum"] * variables["batch_stats"]["normalization"]["var"]).all()


@pytest.mark.parametrize("use_running_average", [False, True])
@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_statistics_are_shared_over_a_mapped_axis(how, use_running_average, float64):
    """Four devices give what one gives for the whole batch."""
    variables, x, cotangent = _inputs(batch=8)
    expected = jax.jit(_with_gradients(_Theirs(use_running_average)))(variables, x, cotangent)
    model = _Ours(use_running_average, axis_name="batch")
    if how == "pmap":
        parts = [array.reshape(4, 2, *array.shape[1:]) for array in (x, cotangent)]
        run = jax.pmap(_with_gradients(model), "batch", in_axes=(None, 0, 0))
        out, stats, (params_gradient, x_gradient) = run(variables, *parts)
        for leaf in jax.tree.leaves(stats):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        stats = jax.tree.map(lambda leaf: leaf[0], stats)
        params_gradient = jax.tree.map(lambda leaf: leaf.sum(0), params_gradient)
        actual = out.reshape(x.shape), stats, (params_gradient, x_gradient.reshape(x.shape))
    else:
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        split, whole = PartitionSpec("batch"), PartitionSpec()
        run = jax.shard_map(
            _with_gradients(model),
            mesh=mesh,
            in_specs=(whole, split, split),
            out_specs=(split, whole, (whole, split)),
        )
        actual = jax.jit(run)(variables, x, cotangent)
    _assert_close(actual, expected, 1e-12)


def test_without_an_axis_each_device_has_its_own_statistics(float64):
    variables, x, cotangent = _inputs(batch=8)
    parts = [array.reshape(4, 2, *array.shape[1:]) for array in (x, cotangent)]
    actual = jax.pmap(_with_gradients(_Ours(False)), in_axes=(None, 0, 0))(variables, *parts)
    one = jax.jit(_with_gradients(_Theirs(False)))
    expected = [one(variables, parts[0][n], parts[1][n]) for n in range(4)]
    _assert_close(actual, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected), 1e-12)
