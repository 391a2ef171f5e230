"""The hot operation: 3×3 depthwise convolution.

On CPU it is a sum of shifted views (``shifts.py``); GPU and TPU get XLA's grouped convolution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from jax import lax

from flax_mnv2.models.numerics import at_least_float32
from flax_mnv2.models.ops import shifts
from flax_mnv2.models.ops.platforms import Form, Implementation, platform_op, vary_like
from flax_mnv2.models.ops.shifts import Padding, Window, for_xla
from flax_mnv2.models.ops.slices import images_per_slice, over_slices


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = ((1, 1), (1, 1)),
    dilation: int = 1,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Convolves each channel of (N, H, W, C) with its own kernel (kh, kw, 1, C), of the dtype of ``x``.

    Returns (N, H', W', C) of that dtype; for the geometry see ``Window``. The default form is XLA's grouped
    convolution, that of CPUs shifted multiply-adds summed in float32 or better.
    """
    images = images_per_slice(x.shape[0], math.prod(x.shape[1:]) * x.dtype.itemsize, min_slices=shifts.MIN_SLICES)
    return _depthwise(_Static(Window(stride, padding, dilation), images), implementation, x, kernel)


class _Static(NamedTuple):
    window: Window
    gradient_images: int  # at once, in the gradient on CPU


def native_depthwise(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's grouped convolution; shapes as in ``depthwise_conv``."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(window.stride, window.stride),
        padding=for_xla(window.padding),
        rhs_dilation=(window.dilation, window.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _native(static, x, kernel):
    return native_depthwise(static.window, x, kernel)


def _shifted_depthwise(static, x, kernel):
    return shifts.shifted_sum(x, kernel, static.window)


def _shifted_depthwise_gradient(static, arrays, cotangent):
    (window, images), (x, kernel) = static, arrays
    gradient = shifts.KernelGradient(images, kernel.shape, cotangent.shape, window)

    def step(total, x, cotangent):
        return gradient.add(total, x, cotangent), shifts.input_gradient(cotangent, kernel, x.shape, window)

    start = vary_like(gradient.zeros(at_least_float32(x.dtype)), cotangent, x)
    total, x_gradient = over_slices(step, start, (x, cotangent), images)
    return x_gradient, gradient.finish(total).astype(kernel.dtype)


_depthwise = platform_op({"default": Form(_native), "cpu": Form(_shifted_depthwise, _shifted_depthwise_gradient)})
