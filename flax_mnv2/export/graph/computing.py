"""A graph as a function in JAX; what is on grids is computed as runtimes of integers do.

An edge with a grid is an array of steps, integers less the zero point, in float32, which holds them and the sums of
their products exactly, or but for the last bits of the largest. Products are scaled and rounded once, to the nearest,
of two to the even one, as XNNPACK and ONNX Runtime do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_mnv2.export.graph import operations as ops
from flax_mnv2.models.layers import same_padding, window_means
from flax_mnv2.models.ops.depthwise import depthwise_conv
from flax_mnv2.models.ops.resize import resize_bilinear
from flax_mnv2.models.ops.shifts import for_xla

Grids = list[ops.Grid | None]
Weights = Mapping[str, dict[str, Any]]  # by the name of the operation

_UNARY: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
    "exp": jnp.exp,
}
_BINARY: dict[str, Callable] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "max": jnp.maximum,
    "min": jnp.minimum,
}


def weights_of(graph: ops.Graph) -> Weights:
    """Returns kernel and bias of all convolutions by name, in steps of their grids where they have one, float32."""
    weights = {}
    for operation in graph.operations:
        if not isinstance(operation, ops.Conv | ops.MatMul):
            continue
        kernel, bias = operation.kernel, operation.bias
        if operation.grid is not None:
            kernel, bias, _ = graph.integers(operation)
            kernel = kernel.astype(np.float32) - operation.grid.zero_point
        weights[operation.name] = {"kernel": np.float32(kernel), "bias": np.float32(bias)}
    return weights


def compute(graph: ops.Graph, weights: Weights, images: jax.Array) -> dict[str, jax.Array]:
    """Images as the graph takes them → its outputs by name, channels last; ``weights`` as ``weights_of`` gives them.

    Raises:
      NotImplementedError: suppression, or an activation that files of integers do not have.
    """
    values = {graph.input: images}
    for operation in graph.operations:
        grids = [graph.edges[name].grid for name in operation.inputs]
        inputs = [values[name] for name in operation.inputs]
        if operation.name in weights:
            inputs += [weights[operation.name][name] for name in ("kernel", "bias")]
        values[operation.name] = _compute(operation, inputs, grids, graph.edges[operation.name].grid)
    return {name: values[edge] for name, edge in graph.outputs.items()}


@functools.singledispatch
def _compute(operation: ops.Operation, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    raise NotImplementedError(type(operation).__name__)


def _rounded(steps: jax.Array, grid: ops.Grid, activation: str | None = None) -> jax.Array:
    """Numbers in steps of a grid → the nearest steps on it, and within what an activation gives."""
    limits = np.iinfo(grid.dtype)
    low, high = limits.min - grid.zero_point, limits.max - grid.zero_point
    if activation is not None:
        low = max(low, 0)
    if activation == "relu6":
        high = min(high, int(np.rint(6.0 / grid.scale)))
    return jnp.clip(jnp.round(steps), low, high)


@_compute.register
def _(operation: ops.Normalize, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    return inputs[0].astype(jnp.float32) * operation.scale.reshape(1, 1, 1, -1) + operation.offset.reshape(1, 1, 1, -1)


@_compute.register
def _(operation: ops.Quantize, inputs: list[jax.Array], grids: Grids, grid: ops.Grid) -> jax.Array:
    [x], [before] = inputs, grids
    return _rounded(x / grid.scale if before is None else x * (before.scale / grid.scale), grid)


@_compute.register
def _(operation: ops.Dequantize, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    return inputs[0] * grids[0].scale


@_compute.register
def _(operation: ops.Conv, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    x, kernel, bias = inputs
    padding = operation.padding
    if padding == ops.SAME:
        window = {"kernel": operation.kernel.shape[0], "stride": operation.stride, "dilation": operation.dilation}
        padding = same_padding(*x.shape[1:3], **window, tf_padding=True)
    window = {"stride": operation.stride, "padding": padding, "dilation": operation.dilation}
    if isinstance(operation, ops.DepthwiseConv):
        y = depthwise_conv(x, kernel, **window)
    else:
        y = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(operation.stride,) * 2,
            padding=for_xla(padding),
            rhs_dilation=(operation.dilation,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return _scaled(y + bias.reshape(1, 1, 1, -1), operation, grids[0], grid, operation.activation)


@_compute.register
def _(operation: ops.MatMul, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    x, kernel, bias = inputs
    return _scaled(x @ kernel + bias.reshape(1, -1), operation, grids[0], grid, None)


def _scaled(
    y: jax.Array,
    operation: ops.Conv | ops.MatMul,
    before: ops.Grid | None,
    grid: ops.Grid | None,
    activation: str | None,
) -> jax.Array:
    """Sums of products (…, C) → on the output's grid, with the activation."""
    if before is None:
        return y if activation is None else _UNARY[activation](y)
    scale = np.asarray(before.scale * operation.grid.scale / grid.scale, np.float32)
    return _rounded(y * scale.reshape(*(1,) * (y.ndim - 1), -1), grid, activation)


@_compute.register
def _(operation: ops.Pad, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    return jnp.pad(inputs[0], ((0, 0), *operation.padding, (0, 0)))


@_compute.register
def _(operation: ops.Elementwise, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    values = [x if of is None else x * of.scale for x, of in zip(inputs, grids, strict=True)]
    if operation.kind in _UNARY:
        return _UNARY[operation.kind](*values)
    if operation.kind not in _BINARY:
        raise NotImplementedError(operation.kind)
    if operation.constant is not None:
        shape = operation.constant.shape
        values.append(operation.constant.reshape(*(1,) * (values[0].ndim - len(shape)), *shape))
    y = _BINARY[operation.kind](*values)
    return y if grid is None else _rounded(y / grid.scale, grid)


@_compute.register
def _(operation: ops.Concat, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    return jnp.concatenate(inputs, axis=operation.axis)


@_compute.register
def _(operation: ops.Slice, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    return inputs[0][..., operation.start : operation.stop]


@_compute.register
def _(operation: ops.Resize, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    size = operation.size or inputs[1].shape[1:3]
    y = resize_bilinear(inputs[0], size, align_corners=operation.align_corners)
    return y if grid is None else _rounded(y, grid)


@_compute.register
def _(operation: ops.Pool, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    [x], [before] = inputs, grids
    if operation.kind == "max":
        window = operation.window or x.shape[1:3]
        y = lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *operation.stride, 1), "VALID")
    else:
        y = window_means(x, operation.window, operation.stride)
    if grid is not None:
        y = _rounded(y * (before.scale / grid.scale), grid)
    return y if operation.keep_map or operation.window is not None else y[:, 0, 0]


@_compute.register
def _(operation: ops.Rows, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    return inputs[0].reshape(len(inputs[0]), -1, operation.depth)


@_compute.register
def _(operation: ops.ArgMax, inputs: list[jax.Array], grids: Grids, grid: ops.Grid | None) -> jax.Array:
    return jnp.argmax(inputs[0], axis=-1).astype(jnp.int32)
