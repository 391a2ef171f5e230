"""Depthwise convolution and its gradients as shifted multiply-adds, in the forms that XLA's CPU compiler runs fast.

XLA's grouped convolution is 5 to 40 times slower than PyTorch's on CPU. Sums of shifted, weighted views fuse into
one vectorised loop instead. What is written here follows what was measured (``benchmarks/NOTES.md``).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_mnv2.models.numerics import at_least_float32

Padding = tuple[tuple[int, int], tuple[int, int]]

# XLA gives a value that a loop reads more often than 15 times a buffer of its own. Below that it computes the value
# again at every read, which for a slice of the batch costs the loop its vectorisation: 5 times slower, measured.
_MIN_TERMS = 16

# Outside a loop XLA makes every view of a kernel's gradient a program of its own, 144 of them for nine taps: with two
# slices, hence in a loop, a layer compiles in 1.3 s in place of 5, and runs up to a quarter faster.
MIN_SLICES = 2


class Window(NamedTuple):
    """Steps between outputs and between kernel taps, along both axes, and ((top, bottom), (left, right)) zeros."""

    stride: int
    padding: Padding
    dilation: int


def for_xla(padding: Padding) -> Padding | str:
    """Returns a padding as XLA's convolutions take it.

    They take no symbolic one; the only rule that depends on a symbolic side is TensorFlow's, which XLA has by name.
    """
    return padding if all(isinstance(zeros, int) for axis in padding for zeros in axis) else "SAME"


class _Block(NamedTuple):
    """Some rows of some images of the output."""

    first: int  # image
    images: int
    start: int  # row
    rows: int


def shifted_sum(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Returns the convolution: (N, H, W, C) with (kh, kw, 1, C) → (N, H', W', C), summed in float32 or better."""
    accumulator = at_least_float32(x.dtype)
    weights = kernel.astype(accumulator)
    padded = _pad(x, window)
    rows, columns = _output_size(padded.shape, kernel.shape, window)
    block = _Block(0, len(x), 0, rows)
    total = None
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            view = lax.convert_element_type(_view(padded, i, j, block, columns, window), accumulator)
            weight = lax.slice(weights, (i, j, 0, 0), (i + 1, j + 1, 1, weights.shape[-1]))
            term = lax.mul(view, jnp.broadcast_to(weight, view.shape))
            total = term if total is None else lax.add(total, term)
    return total.astype(x.dtype)


def input_gradient(cotangent: jax.Array, kernel: jax.Array, x_shape: tuple[int, ...], window: Window) -> jax.Array:
    """(N, H', W', C) → (N, H, W, C): the convolution of the spread cotangent with the flipped kernel."""
    stride, padding, dilation = window
    spread = [(0, 0, 0)]
    for axis in (0, 1):
        low = (kernel.shape[axis] - 1) * dilation - padding[axis][0]
        covered = (cotangent.shape[axis + 1] - 1) * stride + 1
        size = x_shape[axis + 1] + (kernel.shape[axis] - 1) * dilation
        spread.append((low, size - low - covered, stride - 1))
    spread = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), (*spread, (0, 0, 0)))
    return shifted_sum(spread, kernel[::-1, ::-1], Window(1, ((0, 0), (0, 0)), dilation))


class KernelGradient:
    """The gradient of the kernel, added up over slices of the batch.

    Each tap is the sum of a product over all pixels. Whole blocks of images and rows are added first, element by
    element, and the small rest is summed once at the end: XLA's reductions would each write and read the product.
    """

    def __init__(self, images: int, kernel_shape: tuple[int, ...], output_shape: tuple[int, ...], window: Window):
        """For slices of ``images`` images, with outputs (·, H', W', C)."""
        groups = largest_divisor(images, _MIN_TERMS)
        self._images = images // groups
        self._firsts = range(0, images, self._images)
        self._kernel_shape = kernel_shape
        self._window = window
        self._rows, self._columns, self._channels = output_shape[1:]
        self._block = max(1, self._rows // min(self._rows, -(-_MIN_TERMS // groups)))
        self._blocks = self._rows // self._block
        self._left_over = self._rows - self._block * self._blocks

    def zeros(self, dtype: Any) -> tuple[jax.Array, ...]:
        """Returns the empty sum."""
        taps = self._kernel_shape[0] * self._kernel_shape[1]
        sizes = [self._block] * taps + [self._left_over] * (taps if self._left_over else 0)
        return tuple(jnp.zeros((self._images, size, self._columns, self._channels), dtype) for size in sizes)

    def add(self, total: tuple[jax.Array, ...], x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        """Adds a slice: x (images, H, W, C), cotangent (images, H', W', C)."""
        padded = _pad(x, self._window)
        cast = functools.partial(lax.convert_element_type, new_dtype=total[0].dtype)
        sums = []
        for blocks in self._groups():
            factors = [cast(_rows_of(cotangent, block)) for block in blocks]
            for i, j in np.ndindex(self._kernel_shape[:2]):
                accumulated = total[len(sums)]
                for block, factor in zip(blocks, factors, strict=True):
                    view = cast(_view(padded, i, j, block, self._columns, self._window))
                    accumulated = lax.add(accumulated, lax.mul(view, factor))
                sums.append(accumulated)
        return tuple(sums)

    def _groups(self) -> list[list[_Block]]:
        """Blocks that are added to the same sum: the whole ones, and what is left over at the bottom."""
        tops = [block * self._block for block in range(self._blocks)]
        groups = [[_Block(first, self._images, top, self._block) for top in tops for first in self._firsts]]
        if self._left_over:
            top = self._blocks * self._block
            groups.append([_Block(first, self._images, top, self._left_over) for first in self._firsts])
        return groups

    def finish(self, total: tuple[jax.Array, ...]) -> jax.Array:
        """Returns the gradient (kh, kw, 1, C)."""
        taps = self._kernel_shape[0] * self._kernel_shape[1]
        sums = [jnp.sum(part, axis=(0, 1, 2)) for part in total]
        return jnp.stack([sum(sums[tap::taps]) for tap in range(taps)]).reshape(self._kernel_shape)


def largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of ``number`` that is at most ``limit``."""
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)


def _pad(x: jax.Array, window: Window) -> jax.Array:
    return jnp.pad(x, ((0, 0), *window.padding, (0, 0)))


def _output_size(padded_shape, kernel_shape, window: Window) -> tuple[int, int]:
    return tuple(
        (padded_shape[axis + 1] - (kernel_shape[axis] - 1) * window.dilation - 1) // window.stride + 1
        for axis in (0, 1)
    )


def _rows_of(x: jax.Array, block: _Block) -> jax.Array:
    """Returns a block of the output or its cotangent: (images, rows, columns, C)."""
    return lax.slice(
        x, (block.first, block.start, 0, 0), (block.first + block.images, block.start + block.rows, *x.shape[2:])
    )


def _view(padded: jax.Array, i: int, j: int, block: _Block, columns: int, window: Window) -> jax.Array:
    """Returns what tap (i, j) multiplies for a block of the output: (images, rows, columns, C).

    Here and around it operations of ``lax`` stand in place of NumPy's: a network has thousands, and they trace faster.
    """
    top, left = i * window.dilation + block.start * window.stride, j * window.dilation
    bottom, right = top + (block.rows - 1) * window.stride + 1, left + (columns - 1) * window.stride + 1
    return lax.slice(
        padded,
        (block.first, top, left, 0),
        (block.first + block.images, bottom, right, padded.shape[-1]),
        (1, window.stride, window.stride, 1),
    )
