"""The expanded map of a block: normalised, activated and convolved depthwise; on CPU without ever being held whole.

It is the largest map of a block, six times the block's input. On accelerators it is an array like any other. On CPU,
where memory is slow beside the arithmetic, its moments follow from those of the input, and both directions of what
comes behind it expand a few images at a time, so that the expanded ones stay in the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_mnv2.models.numerics import at_least_float32
from flax_mnv2.models.ops import shifts
from flax_mnv2.models.ops.activations import Activation
from flax_mnv2.models.ops.bands import convolve_in_bands, rows_per_band
from flax_mnv2.models.ops.depthwise import native_depthwise
from flax_mnv2.models.ops.platforms import Form, Implementation, platform_op, vary_like
from flax_mnv2.models.ops.pointwise import Moments, affine_act, contraction, matrix_product, moments
from flax_mnv2.models.ops.shifts import Padding, Window
from flax_mnv2.models.ops.slices import images_per_slice, map_slices, over_slices


class Expansion:
    """``pointwise(x, weights)``, of which only what is asked for is computed."""

    def __init__(self, x: jax.Array, weights: jax.Array | None, implementation: Implementation = "auto"):
        """Expands ``x`` (N, H, W, K) by ``weights`` (K, C); with None ``x`` itself is the map, and K = C."""
        self._x = x
        self._weights = weights
        self._implementation = implementation
        # Used by the default form alone, and there by both operations below, so that its gradients are added up before
        # they go through the product. On CPU it stands for nothing and is never computed.
        self._product = None if weights is None else _product(None, implementation, x, weights)

    def moments(self, shift: jax.Array) -> Moments:
        """Returns mean and mean square of each channel of ``map - shift``: two of (C,), float32 or better."""
        if self._weights is None:
            return moments(self._x, shift)
        return _moments(None, self._implementation, self._product, self._x, self._weights, shift)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self._x.shape[1:3]

    def depthwise(
        self,
        multiplier: jax.Array | None,
        offset: jax.Array,
        kernel: jax.Array,
        *,
        act: Activation | None,
        stride: int = 1,
        padding: Padding = ((1, 1), (1, 1)),
        dilation: int = 1,
    ) -> jax.Array:
        """``depthwise_conv(act(map * multiplier + offset), kernel)``, (N, H', W', C) of the dtype of ``x``.

        ``multiplier`` (None for 1) and ``offset`` are (C,), ``act`` goes element by element; the rest is as there.
        """
        batch, height, width, _ = self._x.shape
        image_bytes = height * width * kernel.shape[-1] * self._x.dtype.itemsize
        images = images_per_slice(batch, image_bytes)
        gradient_images = images_per_slice(batch, image_bytes, min_slices=shifts.MIN_SLICES)
        window = Window(stride, padding, dilation)
        rows = rows_per_band(image_bytes, height, window)
        static = _Static(act, window, images, gradient_images, rows)
        arrays = (self._product, self._x, self._weights, multiplier, offset, kernel)
        return _depthwise(static, self._implementation, *arrays)


class _Static(NamedTuple):
    act: Activation | None
    window: Window
    images: int  # expanded at once on CPU
    gradient_images: int  # the same for the gradient
    rows: int  # of an image's output computed at once on CPU; 0 for all


def _no_product(_, x, weights):
    return vary_like(jnp.zeros((*x.shape[:-1], weights.shape[-1]), x.dtype), x, weights)


def _no_gradient(_, arrays, cotangent):
    return vary_like(jax.tree.map(jnp.zeros_like, arrays), cotangent, arrays)


def _native_moments(_, product, x, weights, shift):
    del x, weights
    return moments(product, shift)


def _gram_moments(_, product, x, weights, shift):
    """Moments of x·W - shift without the product.

    The mean of x·W is the product of the mean of x, and its variance the diagonal of WᵀGW with G the covariance of x.
    This reads K values of a pixel where the product has C.
    """
    del product
    accumulator = at_least_float32(x.dtype)
    exact = {"precision": lax.Precision.HIGHEST, "preferred_element_type": accumulator}
    rows = x.reshape(-1, x.shape[-1]).astype(accumulator)
    mean = jnp.mean(rows, axis=0)
    rows = rows - mean[None]
    covariance = lax.dot_general(rows, rows, (((0,), (0,)), ((), ())), **exact) / rows.shape[0]
    shifted = jnp.matmul(mean, weights, **exact) - shift
    variance = jnp.sum(weights * jnp.matmul(covariance, weights, **exact), axis=0)
    return shifted, variance + lax.square(shifted)


def _native(static, product, x, weights, multiplier, offset, kernel):
    expanded = x if weights is None else product
    return native_depthwise(static.window, affine_act(expanded, multiplier, offset, static.act), kernel)


def _expand_slice(act, x, weights, multiplier, offset):
    """Returns the activated map of a few images, the multiplier folded into the weights."""
    if weights is None:
        return affine_act(x, multiplier, offset, act)
    weights = weights if multiplier is None else weights * multiplier[None]
    return affine_act(matrix_product(x, weights), None, offset, act)


def _sliced(static, product, x, weights, multiplier, offset, kernel):
    del product

    def expand(x):
        return _expand_slice(static.act, x, weights, multiplier, offset)

    def expand_and_convolve(x):
        if static.rows:
            return convolve_in_bands(expand, x, kernel, static.window, static.rows)
        return shifts.shifted_sum(expand(x), kernel, static.window)

    return map_slices(expand_and_convolve, x, static.images)


def _sliced_gradient(static, arrays, cotangent):
    product, x, weights, multiplier, offset, kernel = arrays
    gradient = shifts.KernelGradient(static.gradient_images, kernel.shape, cotangent.shape, static.window)
    parameters = (weights, multiplier, offset)

    def step(totals, x, cotangent):
        kernel_total, parameters_total = totals
        expanded, pull = jax.vjp(lambda *inputs: _expand_slice(static.act, *inputs), x, *parameters)
        kernel_total = gradient.add(kernel_total, expanded, cotangent)
        x_gradient, *gradients = pull(shifts.input_gradient(cotangent, kernel, expanded.shape, static.window))
        return (kernel_total, jax.tree.map(jnp.add, parameters_total, tuple(gradients))), x_gradient

    start = (gradient.zeros(at_least_float32(x.dtype)), jax.tree.map(jnp.zeros_like, parameters))
    start = vary_like(start, cotangent, x)
    (kernel_total, parameters_total), x_gradient = over_slices(step, start, (x, cotangent), static.gradient_images)
    kernel_gradient = gradient.finish(kernel_total).astype(kernel.dtype)
    return vary_like(jax.tree.map(jnp.zeros_like, product), x), x_gradient, *parameters_total, kernel_gradient


_product = platform_op(
    {"default": Form(lambda _, x, weights: contraction(x, weights)), "cpu": Form(_no_product, _no_gradient)}
)
_moments = platform_op({"default": Form(_native_moments), "cpu": Form(_gram_moments)})
_depthwise = platform_op({"default": Form(_native), "cpu": Form(_sliced, _sliced_gradient)})
