"""1×1 convolutions and what follows them, against their definitions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from operations import assert_close, with_gradients

from flax_mnv2.models.ops.pointwise import affine_act, moments, pointwise

TOLERANCES = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 1e-2}  # of the largest value
DTYPES = list(TOLERANCES)


def _arrays(dtype, *, batch=2, size=(5, 4), channels=(3, 6)):
    """x, weights and a cotangent for the output."""
    rng = np.random.default_rng(0)
    shapes = (batch, *size, channels[0]), channels, (batch, *size, channels[1])
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def _definition(x, weights, cotangent):
    x, weights, cotangent = (np.asarray(array, np.float64) for array in (x, weights, cotangent))
    return x @ weights, cotangent @ weights.T, np.einsum("nhwk,nhwc->kc", x, cotangent)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("implementation", ["auto", "cpu", "default"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradients(implementation, dtype):
    arrays = _arrays(dtype)
    run = with_gradients(functools.partial(pointwise, implementation=implementation))
    results = jax.jit(run)(*arrays)
    assert [result.dtype for result in results] == [jnp.dtype(dtype)] * 3
    assert_close(results, _definition(*arrays), TOLERANCES[dtype])
    assert_close(jax.jit(with_gradients(jax.checkpoint(pointwise)))(*arrays), results, TOLERANCES[dtype])


@pytest.mark.parametrize(("batch", "size", "channels"), [(1, (1, 1), (1, 1)), (3, (1, 7), (5, 1)), (1, (6, 1), (1, 4))])
def test_small_shapes(batch, size, channels):
    arrays = _arrays("float64", batch=batch, size=size, channels=channels)
    assert_close(jax.jit(with_gradients(pointwise))(*arrays), _definition(*arrays), 1e-13)


def test_gradient_of_the_gradient():
    x, weights, cotangent = _arrays("float64")

    def penalty(implementation, x, weights):
        """The squared norm of the gradients, as in a gradient penalty."""
        convolve = functools.partial(pointwise, implementation=implementation)
        gradients = jax.grad(lambda x, w: jnp.sum(jnp.sin(convolve(x, w)) * cotangent), (0, 1))(x, weights)
        return sum(jnp.sum(gradient**2) for gradient in gradients)

    ours, native = (
        jax.jit(jax.grad(functools.partial(penalty, each), (0, 1)))(x, weights) for each in ("auto", "default")
    )
    assert_close(ours, native, 1e-12)


@pytest.mark.parametrize("implementation", ["auto", "cpu", "default"])
def test_forward_mode_is_refused(implementation):
    x, weights, _ = _arrays("float32")
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(functools.partial(pointwise, implementation=implementation), (x, weights), (x, weights))


@pytest.mark.parametrize("weights_axis", [0, None])
def test_vmap_equals_a_loop(weights_axis):
    x, weights, cotangent = (jnp.stack([array, array[::-1] * 0.5, array + 1.0]) for array in _arrays("float64"))
    weights = weights if weights_axis == 0 else weights[0]
    run = with_gradients(pointwise)
    actual = jax.jit(jax.vmap(run, (0, weights_axis, 0)))(x, weights, cotangent)
    expected = [_definition(x[n], weights if weights_axis is None else weights[n], cotangent[n]) for n in range(3)]
    assert_close(actual, [np.stack(parts) for parts in zip(*expected, strict=True)], 1e-13)


@pytest.mark.parametrize("how", ["pmap", "shard_map", "jit"])
def test_four_devices_equal_one(how):
    x, weights, cotangent = _arrays("float64", batch=8)
    run = with_gradients(pointwise)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("batch"), PartitionSpec()
    if how == "jit":
        put = [NamedSharding(mesh, spec) for spec in (split, whole, split)]
        actual = jax.jit(run)(*jax.device_put((x, weights, cotangent), tuple(put)))
        assert len(actual[0].sharding.device_set) == 4
    elif how == "shard_map":
        # The gradient of what every device holds alike is summed over the devices.
        mapped = jax.shard_map(run, mesh=mesh, in_specs=(split, whole, split), out_specs=(split, split, whole))
        actual = jax.jit(mapped)(x, weights, cotangent)
    else:
        parts = [array.reshape(4, 2, *array.shape[1:]) for array in (x, cotangent)]
        out, x_gradient, weights_gradient = jax.pmap(run, in_axes=(0, None, 0))(parts[0], weights, parts[1])
        actual = out.reshape(cotangent.shape), x_gradient.reshape(x.shape), weights_gradient.sum(0)
    assert_close(actual, _definition(x, weights, cotangent), 1e-13)


def test_one_program_holds_the_fast_form_of_its_platform():
    """A product of two dimensions on CPU; on a TPU one without a change of shape."""
    arrays = _arrays("float32")
    run = jax.jit(with_gradients(pointwise))
    assert "tensor<40x3xf32>, tensor<3x6xf32>" in run.lower(*arrays).as_text()
    exported = jax.export.export(run, platforms=["tpu"])(*arrays).mlir_module()
    assert exported.count("stablehlo.dot_general") == 3
    assert "stablehlo.reshape" not in exported


@pytest.mark.parametrize("dtype", DTYPES)
def test_affine_act(dtype):
    x = 4.0 * _arrays(dtype)[0]
    multiplier, offset = np.array([0.5, -2.0, 1.5], np.float32), np.array([1.0, 0.25, -3.0], np.float32)
    exact = np.asarray(x, np.float64)
    for act, clip in ((None, lambda y: y), (jax.nn.relu6, lambda y: np.clip(y, 0.0, 6.0))):
        scaled = affine_act(x, jnp.asarray(multiplier), jnp.asarray(offset), act)
        moved = affine_act(x, None, jnp.asarray(offset), act)
        assert scaled.dtype == moved.dtype == x.dtype
        assert_close((scaled, moved), (clip(exact * multiplier + offset), clip(exact + offset)), TOLERANCES[dtype])


def test_affine_act_rounds_bfloat16_once():
    x, multiplier, offset = jnp.full((1, 1, 1, 1), 1.0, jnp.bfloat16), jnp.array([1.0 / 3.0]), jnp.array([-1.0 / 3.0])
    assert float(affine_act(x, multiplier, offset, None)[0, 0, 0, 0]) == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments(dtype):
    x = _arrays(dtype)[0] + jnp.asarray(0.5, dtype)
    shift = jnp.linspace(-1.0, 1.0, x.shape[-1], dtype=jnp.promote_types(dtype, jnp.float32))
    actual = moments(x, shift)
    assert {array.dtype for array in actual} == {jnp.promote_types(dtype, jnp.float32)}
    exact = np.asarray(x, np.float64) - np.asarray(shift, np.float64)
    expected = exact.mean((0, 1, 2)), (exact**2).mean((0, 1, 2))
    assert_close(actual, expected, 1e-6 if dtype != "float64" else 1e-14)
