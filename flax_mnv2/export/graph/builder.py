"""Adds operations to a graph one by one, with the shapes that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from flax_mnv2.errors import ConfigError
from flax_mnv2.export.graph import operations as ops
from flax_mnv2.export.graph.ranges import Ranges
from flax_mnv2.models.layers import same_padding

# Activations that writers have, and those that are made of them.
_PLAIN = ("relu", "relu6", "leaky_relu", "sigmoid", "tanh", "elu", "hardswish", "gelu")
_ALIASES = {
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh"), "gelu_tanh"),
    "swish": "silu",
}
_MADE = ("silu", "quick_gelu", "relu2")
_FUSED = ("relu", "relu6")  # what a convolution of any runtime takes along


class GraphBuilder:
    """Makes a ``Graph``; methods take names of edges, add operations and return the name of what these make.

    Attributes:
      edges: all arrays so far.
    """

    def __init__(self, variables: Mapping[str, Any], *, tf_padding: bool, ranges: Ranges | None = None):
        """Takes the folded variables of a model, the padding rule of its convolutions, and ranges, if any."""
        params = traverse_util.flatten_dict(dict(variables["params"]), sep="/")
        self._params = {path: np.asarray(value, np.float32) for path, value in params.items()}
        self._tf_padding, self._ranges = tf_padding, ranges
        self._operations: list[ops.Operation] = []
        self.edges: dict[str, ops.Edge] = {}

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Returns the shape of an edge."""
        return self.edges[name].shape

    def has(self, path: str) -> bool:
        """Says whether there is a parameter."""
        return path in self._params

    def param(self, path: str) -> np.ndarray:
        """Returns a parameter, float32."""
        return self._params[path]

    def graph(self, image: str, outputs: Mapping[str, str]) -> ops.Graph:
        """Returns what was built, of it what the outputs need."""
        return ops.Graph(self.edges, tuple(self._operations), image, dict(outputs)).pruned()

    def edge(self, name: str, shape: Sequence[int | None], dtype: str = "float32", *, like: str | None = None) -> str:
        """Adds an array, on the grid of ``like``; returns its name, with a number behind it where that is taken."""
        unique, number = name, 1
        while unique in self.edges:
            number += 1
            unique = f"{name}_{number}"
        self.edges[unique] = ops.Edge(unique, tuple(shape), dtype, self.edges[like].grid if like else None)
        return unique

    def add(self, operation: type[ops.Operation], inputs: Sequence[str], output: str, **fields: Any) -> str:
        """Adds an operation of one output, which is an edge."""
        self._operations.append(operation(inputs=tuple(inputs), outputs=(output,), **fields))
        return output

    def add_many(
        self, operation: type[ops.Operation], inputs: Sequence[str], outputs: Sequence[str], **fields: Any
    ) -> None:
        """Adds an operation of several."""
        self._operations.append(operation(inputs=tuple(inputs), outputs=tuple(outputs), **fields))

    # ---- grids -------------------------------------------------------------------------------------------

    def rounded(self, x: str, path: str) -> str:
        """Puts an edge on the grid of the range at ``path``; of a model that is not quantised it stays as it is."""
        if self._ranges is None or self.edges[x].grid is not None:
            return self.quantized(x, path)
        self.edges[x] = dataclasses.replace(self.edges[x], grid=self._ranges.map_grid(path))  # what makes it rounds
        return x

    def quantized(self, x: str, path: str) -> str:
        """Adds what puts an edge on that grid, for one that nothing makes or that is on another."""
        if self._ranges is None:
            return x
        y = self.edge(path, self.shape(x))
        self.edges[y] = dataclasses.replace(self.edges[y], grid=self._ranges.map_grid(path))
        return self.add(ops.Quantize, (x,), y)

    def real(self, x: str) -> str:
        """Returns an edge of numbers for one of integers, and any other as it is."""
        if self.edges[x].grid is None:
            return x
        return self.add(ops.Dequantize, (x,), self.edge(f"{x}/real", self.shape(x)))

    def _kernel_grid(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> ops.Grid | None:
        grid = self.edges[x].grid
        return None if grid is None else self._ranges.kernel_grid(kernel, bias, grid.scale)

    # ---- layers ------------------------------------------------------------------------------------------

    def layer(
        self,
        x: str,
        path: str,
        *,
        act: str | None,
        order: np.ndarray | None = None,
        range_at: str | None = None,
        **window: Any,
    ) -> str:
        """Adds the ``ConvNormAct`` at ``path``; the options are those of ``conv``.

        ``order`` is that of the output channels; None leaves them as they are. ``range_at`` is the path of the range
        that the output is rounded in; None stands for its own.
        """
        kernel, bias = (self.param(f"{path}/convolution/{name}") for name in ("kernel", "bias"))
        if order is not None:
            kernel, bias = kernel[..., order], bias[order]
        return self.rounded(self.conv(x, path, kernel, bias, act=act, **window), range_at or f"{path}/output")

    def conv(
        self,
        x: str,
        name: str,
        kernel: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        act: str | None = None,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        pad: bool = True,
    ) -> str:
        """(N, H, W, in) → (N, H', W', out), with the padding of ``models.layers.Convolution``."""
        batch, height, width, _ = self.shape(x)
        padding = self._padding((height, width), kernel.shape[0], stride, dilation) if pad else ((0, 0), (0, 0))
        covered = (kernel.shape[0] - 1) * dilation + 1
        sides = []
        for at, side in enumerate((height, width)):
            if side is None:
                sides.append(None)
            elif padding == ops.SAME:
                sides.append(-(-side // stride))
            else:
                sides.append((side + sum(padding[at]) - covered) // stride + 1)
        bias = np.zeros(kernel.shape[-1], np.float32) if bias is None else bias
        y = self.add(
            ops.DepthwiseConv if depthwise else ops.Conv,
            (x,),
            self.edge(name, (batch, *sides, kernel.shape[-1])),
            kernel=kernel,
            bias=bias,
            grid=self._kernel_grid(x, kernel, bias),
            stride=stride,
            dilation=dilation,
            padding=padding,
            activation=act if act in _FUSED else None,
        )
        return y if act in _FUSED else self.activation(y, act)

    def _padding(self, size: tuple[int | None, int | None], kernel: int, stride: int, dilation: int) -> Any:
        if None in size:
            if self._tf_padding and stride > 1:
                return ops.SAME
            size = (1, 1)  # at stride 1 every size is padded alike
        return same_padding(*size, kernel=kernel, stride=stride, dilation=dilation, tf_padding=self._tf_padding)

    def activation(self, x: str, name: Any) -> str:
        """Adds an activation by its name in the config, None for none; a ConfigError for what no writer has."""
        name = _ALIASES.get(name, name) if isinstance(name, str) else name
        if name in (None, "linear"):
            return x
        if name in (*_PLAIN, "gelu_tanh"):
            return self.elementwise(name, x)
        if name == "silu":
            return self.elementwise("mul", x, self.elementwise("sigmoid", x))
        if name == "quick_gelu":
            gate = self.elementwise("sigmoid", self.elementwise("mul", x, np.float32(1.702)))
            return self.elementwise("mul", x, gate)
        if name == "relu2":
            positive = self.elementwise("relu", x)
            return self.elementwise("mul", positive, positive)
        raise ConfigError(
            f"hidden_act={name!r} is written to StableHLO only; ONNX and TFLite files have "
            f"{', '.join(sorted({*_PLAIN, *_ALIASES, *_MADE, 'linear'}))}. Choose --to stablehlo."
        )

    def elementwise(self, kind: str, x: str, other: str | np.ndarray | np.float32 | None = None) -> str:
        """Adds a function of an edge, or of it and another edge or a constant; of the shape of the first."""
        output = self.edge(f"{x}/{kind}", self.shape(x))
        if isinstance(other, str):
            return self.add(ops.Elementwise, (x, other), output, kind=kind)
        constant = None if other is None else np.asarray(other, np.float32)
        return self.add(ops.Elementwise, (x,), output, kind=kind, constant=constant)

    def pad(self, x: str, side: int) -> str:
        """Adds ``side`` zeros on all sides."""
        batch, height, width, channels = self.shape(x)
        grown = (extent and extent + 2 * side for extent in (height, width))
        output = self.edge(f"{x}/pad", (batch, *grown, channels), like=x)
        return self.add(ops.Pad, (x,), output, padding=((side, side), (side, side)))

    def concat(self, parts: Sequence[str], name: str, *, axis: int = -1) -> str:
        """Joins edges along an axis, -1 or 1."""
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        return self.add(ops.Concat, parts, self.edge(name, shape, like=parts[0]), axis=axis)

    def slice(self, x: str, start: int, stop: int) -> str:
        """Takes a part of the last axis."""
        output = self.edge(f"{x}/slice", (*self.shape(x)[:-1], stop - start), like=x)
        return self.add(ops.Slice, (x,), output, start=start, stop=stop)

    def resize(self, x: str, like: str, *, align_corners: bool) -> str:
        """Resizes (N, h, w, C) to the height and width of ``like``."""
        batch, *sides, channels = self.shape(x)
        size = self.shape(like)[1:3]
        if None not in size and tuple(sides) == tuple(size):
            return x
        known = None if None in size else size
        output = self.edge(f"{x}/resize", (batch, *size, channels), like=x)
        inputs = (x,) if known else (x, like)
        return self.add(ops.Resize, inputs, output, align_corners=align_corners, size=known)

    def pool(
        self,
        x: str,
        kind: str,
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] = (1, 1),
        *,
        keep_map: bool = False,
    ) -> str:
        """Pools (N, h, w, C) over a window, shrunk to the map's sides where it is larger, or over all of it."""
        batch, *sides, channels = self.shape(x)
        if window is None:
            shape = (batch, 1, 1, channels) if keep_map else (batch, channels)
        else:
            if None in sides:
                raise ConfigError(
                    f"This network pools over a window of {window[0]}×{window[1]}, which follows from the size of the "
                    "map; give --size H W in place of dynamic."
                )
            window = tuple(map(min, window, sides))
            places = ((side - w) // step + 1 for side, w, step in zip(sides, window, stride, strict=True))
            shape = (batch, *places, channels)
        rounds_anew = kind == "avg" and window is None
        output = self.edge(f"{x}/{kind}_pool", shape, like=None if rounds_anew else x)
        return self.add(ops.Pool, (x,), output, kind=kind, window=window, stride=stride, keep_map=keep_map)

    def matmul(self, x: str, name: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        """(N, in) → (N, out)."""
        output = self.edge(name, (self.shape(x)[0], kernel.shape[1]))
        return self.add(ops.MatMul, (x,), output, kernel=kernel, bias=bias, grid=self._kernel_grid(x, kernel, bias))

    def rows(self, x: str, depth: int) -> str:
        """(N, h, w, k · depth) → (N, h · w · k, depth)."""
        batch, height, width, channels = self.shape(x)
        output = self.edge(f"{x}/rows", (batch, height * width * (channels // depth), depth), like=x)
        return self.add(ops.Rows, (x,), output, depth=depth)

    def argmax(self, x: str) -> str:
        """Index of the largest of the last axis."""
        return self.add(ops.ArgMax, (x,), self.edge(f"{x}/argmax", self.shape(x)[:-1], "int32"))
