"""The depthwise convolution of each platform against a plain convolution in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2.models.depthwise import depthwise_conv, native_depthwise_conv

CASES = [
    # height, width, stride, padding, dilation
    (9, 7, 1, ((1, 1), (1, 1)), 1),
    (8, 10, 2, ((0, 1), (0, 1)), 1),
    (9, 11, 2, ((1, 1), (1, 1)), 1),
    (8, 6, 2, ((1, 1), (1, 1)), 1),
    (8, 9, 1, ((2, 2), (2, 2)), 2),
    (5, 6, 1, ((4, 4), (4, 4)), 4),
    (1, 1, 1, ((2, 2), (2, 2)), 2),
]


def _plain(x, kernel, stride, padding, dilation):
    """The definition, in float64 loops over taps and channels."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    rows = (x.shape[1] - 2 * dilation - 1) // stride + 1
    columns = (x.shape[2] - 2 * dilation - 1) // stride + 1
    out = np.zeros((x.shape[0], rows, columns, x.shape[3]))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            window = x[:, top : top + 2 * dilation + 1 : dilation, left : left + 2 * dilation + 1 : dilation]
            out[:, row, column] = np.einsum("nijc,ijc->nc", window, kernel[:, :, 0])
    return out


def _inputs(height, width, dtype=jnp.float32, channels=5):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, height, width, channels), dtype)
    return x, jax.random.normal(keys[1], (3, 3, 1, channels), dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_forward(case, dtype):
    height, width, *settings = case
    x, kernel = _inputs(height, width, dtype)
    expected = _plain(x, kernel, *settings)
    actual = depthwise_conv(x, kernel, *settings)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_native_convolution(case):
    height, width, stride, padding, dilation = case
    x, kernel = _inputs(height, width)

    def loss(convolve, x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel)))

    ours = functools.partial(loss, lambda x, k: depthwise_conv(x, k, stride, padding, dilation))
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    native = functools.partial(loss, lambda x, k: native_depthwise_conv(x, k, **settings))
    actual = jax.jit(jax.grad(ours, (0, 1)))(x, kernel)
    expected = jax.jit(jax.grad(native, (0, 1)))(x, kernel)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


def test_one_program_holds_the_fast_form_of_its_platform():
    x, kernel = _inputs(8, 8)
    convolve = jax.jit(lambda x, k: depthwise_conv(x, k, 1, ((1, 1), (1, 1)), 1))
    assert "convolution" not in convolve.lower(x, kernel).compile().as_text()
    exported = jax.export.export(convolve, platforms=["tpu"])(x, kernel)
    assert "stablehlo.convolution" in exported.mlir_module()
