"""The operations that a MobileNetV2 with any of its heads is made of, as plain dataclasses.

Edges are arrays with the channels last, (N, H, W, C); a writer that wants another order makes it so. What is known of
an edge stands in ``Edge``, apart from the operations that make and take it; one with a grid is an array of integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)
# TensorFlow's rule for a stride of 2 and a size that is known only when the file is run.
SAME = "same"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Integers that stand for numbers: (integer - zero_point) · scale.

    Attributes:
      scale: float32, a scalar, or (C,) of the channels of a kernel.
      zero_point: the integer that stands for 0.
      dtype: ``"int8"`` or ``"uint8"``; of a bias ``"int32"``.
    """

    scale: np.ndarray
    zero_point: int
    dtype: str

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest number of a grid with one scale."""
        limits = np.iinfo(self.dtype)
        return tuple((end - self.zero_point) * float(self.scale) for end in (limits.min, limits.max))

    def integers(self, values: np.ndarray) -> np.ndarray:
        """Returns the integers nearest to numbers (…, C)."""
        limits = np.iinfo(self.dtype)
        steps = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero_point
        return np.clip(steps, limits.min, limits.max).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Edge:
    """An array between operations.

    Attributes:
      name: unique in its graph.
      shape: of the array; None where a side is known only when the file is run.
      dtype: ``"float32"``, ``"uint8"``, ``"int32"`` or ``"int64"``.
      grid: of a quantised array; None where its numbers are themselves.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    grid: Grid | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """What all operations share: the names of the edges that it takes and makes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its first output."""
        return self.outputs[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalize(Operation):
    """(N, H, W, C) uint8 → x · scale + offset, float32; both (C,)."""

    scale: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize(Operation):
    """Numbers, or integers of another grid, to the nearest integers of the output's grid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dequantize(Operation):
    """Integers to the numbers that they stand for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv(Operation):
    """A convolution, its bias, and perhaps an activation.

    Attributes:
      kernel: (k, k, in, out).
      bias: (out,).
      padding: zeros around the input, or ``SAME``.
      activation: ``"relu"`` or ``"relu6"``; None for none.
      grid: of a quantised kernel; its bias is in steps of the product of this scale and that of the input.
    """

    kernel: np.ndarray
    bias: np.ndarray
    grid: Grid | None = None
    stride: int = 1
    dilation: int = 1
    padding: Padding | Literal["same"] = ((0, 0), (0, 0))
    activation: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthwiseConv(Conv):
    """The same for each channel on its own; ``kernel`` is (k, k, 1, channels)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pad(Operation):
    """Zeros around an image."""

    padding: Padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elementwise(Operation):
    """A function of one array, or of two of which the second, perhaps a constant, is broadcast to the first.

    Attributes:
      kind: of one: ``relu``, ``relu6``, ``leaky_relu``, ``sigmoid``, ``tanh``, ``elu``, ``hardswish``, ``gelu``,
        ``gelu_tanh``, ``exp``, and ``softmax`` over the last axis; of two: ``add``, ``sub``, ``mul``, ``max``, ``min``.
      constant: the second array.
    """

    kind: str
    constant: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concat(Operation):
    """Joins arrays along an axis, -1 for the channels."""

    axis: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice(Operation):
    """A part of the last axis."""

    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize(Operation):
    """Bilinear resizing to a size, or where that is not known to that of the second input.

    Attributes:
      align_corners: whether the corner pixels keep their place; otherwise half-pixel centres.
      size: (height, width), or None.
    """

    align_corners: bool
    size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool(Operation):
    """The mean or the maximum over a window inside the map, or over all of it.

    Attributes:
      kind: ``"avg"`` or ``"max"``.
      window: (height, width); None for the whole map.
      stride: (down, right), of a window.
      keep_map: whether the whole map gives (N, 1, 1, C), not (N, C).
    """

    kind: str
    window: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    keep_map: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatMul(Operation):
    """(N, in) → (N, out): ``kernel`` (in, out), ``bias`` (out,), ``grid`` as of a ``Conv``."""

    kernel: np.ndarray
    bias: np.ndarray
    grid: Grid | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(Operation):
    """(N, h, w, k · depth) → (N, h · w · k, depth)."""

    depth: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArgMax(Operation):
    """The index of the largest of the last axis, int32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suppression(Operation):
    """What greedy suppression by class leaves of all boxes: the runtime's own operator.

    Takes boxes (N, A, 4) as corners y, x, y, x, and probabilities (N, A, slots), whose first ``background`` are of no
    class. Gives boxes (N, D, 4), labels (N, D), scores (N, D), the most probable first, and their number (N,); where
    there are fewer than D, the score of the rest is 0.

    Attributes:
      background: slots to pass over, 0 or 1.
      iou: overlap above which the less probable of two boxes goes.
      threshold: scores must be above it.
      max_per_class: boxes of a class that are left.
      max_detections: D.
    """

    background: int
    iou: float
    threshold: float
    max_per_class: int
    max_detections: int


@dataclasses.dataclass(frozen=True)
class Graph:
    """Operations in order of execution.

    Attributes:
      edges: all arrays by name.
      operations: those that the outputs need.
      input: name of the edge that images come in by.
      outputs: edge by the name that users know it by.
    """

    edges: Mapping[str, Edge]
    operations: tuple[Operation, ...]
    input: str
    outputs: Mapping[str, str]

    def integers(self, operation: Conv | MatMul) -> tuple[np.ndarray, np.ndarray, Grid]:
        """Returns the kernel and the bias of a quantised operation as integers, and the bias's grid.

        The bias is in steps of the input's scale times the kernel's.
        """
        steps = Grid(self.edges[operation.inputs[0]].grid.scale * operation.grid.scale, 0, "int32")
        return operation.grid.integers(operation.kernel), steps.integers(operation.bias), steps

    def pruned(self) -> Graph:
        """Returns the graph without operations that no output needs."""
        needed, kept = set(self.outputs.values()), []
        for operation in reversed(self.operations):
            if needed & set(operation.outputs):
                needed |= set(operation.inputs)
                kept.append(operation)
        names = needed.union(*(operation.outputs for operation in kept))
        edges = {name: edge for name, edge in self.edges.items() if name in names}
        return dataclasses.replace(self, edges=edges, operations=tuple(reversed(kept)))
