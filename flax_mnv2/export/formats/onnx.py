"""Writes ONNX files, opset 17.

Inside, images and maps are (N, C, H, W), ONNX's only order, and so are normalised pixels that come in and maps that go
out, as of every exporter of PyTorch models: nothing is transposed but, with preprocessing, the bytes of an image, which
decoders give with the channels last, and the predictors of a detector, whose rows have the channels last.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_mnv2.export.formats.onnx_detection import write_suppression
from flax_mnv2.export.graph import operations as ops
from flax_mnv2.export.metadata import Metadata
from flax_mnv2.export.packages import needs_package
from flax_mnv2.version import __version__

OPSET = 17
_IR_VERSION = 8  # that of the releases which brought opset 17, so that runtimes of that time read the file
_ELEMENTWISE = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "elu": "Elu",
    "hardswish": "HardSwish",
    "exp": "Exp",
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "max": "Max",
    "min": "Min",
}
_SIX = 6.0 + 1e-5  # and what rounding a scale adds
_DTYPES = {"float32": np.float32, "uint8": np.uint8, "int32": np.int32, "int64": np.int64}


def write_onnx(graph: ops.Graph, path: pathlib.Path, metadata: Metadata) -> None:
    """Writes a graph to a file, checked by ``onnx.checker``.

    Raises:
      UserError: the package onnx is missing.
    """
    with needs_package("onnx"):
        import onnx
        from onnx import helper
    writer = _Writer(graph, metadata.settings)
    for operation in graph.operations:
        writer.write(operation)
    made = helper.make_graph(writer.nodes, "mobilenet_v2", *writer.ends(), list(writer.constants.values()))
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="flax_mnv2",
        producer_version=__version__,
    )
    values = metadata.to_dict()
    helper.set_model_props(model, {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


class _Writer:
    """Nodes and constants of one graph.

    Attributes:
      nodes: in order of execution.
      constants: initialisers by name.
    """

    def __init__(self, graph: ops.Graph, settings: Any):
        from onnx import helper, numpy_helper

        self._helper, self._to_tensor = helper, numpy_helper.from_array
        self._graph, self._settings = graph, settings
        self._names = {edge: name for name, edge in graph.outputs.items()}
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def ends(self) -> tuple[list[Any], list[Any]]:
        """Returns the descriptions of inputs and outputs."""
        edges = self._graph.edges
        first = [self._describe(edges[self._graph.input], self._graph.input)]
        return first, [self._describe(edges[edge], name) for name, edge in self._graph.outputs.items()]

    def _describe(self, edge: ops.Edge, name: str) -> Any:
        sides = dict(enumerate(("batch", "height", "width"))) if name == self._graph.input else {0: "batch"}
        shape = [sides.get(at) if side is None else side for at, side in enumerate(edge.shape)]
        if len(shape) == 4 and edge.dtype == "float32":
            shape = [shape[at] for at in (0, 3, 1, 2)]
        dtype = self._helper.np_dtype_to_tensor_dtype(np.dtype(_DTYPES[edge.dtype]))
        return self._helper.make_tensor_value_info(name, dtype, shape)

    def _name(self, edge: str) -> str:
        return self._names.get(edge, edge)

    def node(self, kind: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> str:
        """Adds a node, named as its output, which it returns."""
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(self._helper.make_node(kind, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Adds an initialiser and returns its name."""
        self.constants[name] = self._to_tensor(np.asarray(value, dtype=dtype, order="C"), name)
        return name

    def is_map(self, edge: str) -> bool:
        """Says whether an edge has height and width."""
        return len(self.edge(edge).shape) == 4

    def edge(self, name: str) -> ops.Edge:
        """Returns what is known of an edge of the graph."""
        return self._graph.edges[name]

    def write(self, operation: ops.Operation) -> None:
        """Adds an operation's nodes."""
        inputs, outputs = ([self._name(edge) for edge in edges] for edges in (operation.inputs, operation.outputs))
        grid = self.edge(operation.name).grid  # an operation with several outputs makes none with one
        if grid is None:
            _write(operation, self, inputs, outputs)
            return
        made = inputs if isinstance(operation, ops.Quantize) else [f"{outputs[0]}/exact"]
        _write(operation, self, inputs, made)
        steps = self._steps(outputs[0], grid)
        integers = self.node("QuantizeLinear", [*made, *steps], f"{outputs[0]}/integers")
        self.node("DequantizeLinear", [integers, *steps], outputs[0])

    def weights(self, operation: ops.Conv | ops.MatMul, name: str, order: Sequence[int], *, axis: int) -> list[str]:
        """Adds a kernel, its axes in ONNX's order, and its bias; ``axis`` is then that of the output channels."""
        names = [f"{name}/kernel", f"{name}/bias"]
        if operation.grid is None:
            values = (operation.kernel.transpose(order), operation.bias)
            return [self.constant(*pair) for pair in zip(names, values, strict=True)]
        kernel, bias, steps = self._graph.integers(operation)
        stored = ((kernel.transpose(order), operation.grid, axis), (bias, steps, 0))
        for at, (value, grid, channels) in zip(names, stored, strict=True):
            integers = self.constant(f"{at}/integers", value, grid.dtype)
            attributes = {"axis": channels} if np.ndim(grid.scale) else {}
            self.node("DequantizeLinear", [integers, *self._steps(at, grid)], at, **attributes)
        return names

    def _steps(self, name: str, grid: ops.Grid) -> list[str]:
        zero_points = np.full(grid.scale.shape, grid.zero_point)
        return [
            self.constant(f"{name}/scale", grid.scale),
            self.constant(f"{name}/zero_point", zero_points, grid.dtype),
        ]


@functools.singledispatch
def _write(operation: ops.Operation, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    raise NotImplementedError(type(operation).__name__)


@_write.register
def _(operation: ops.Normalize, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [y] = outputs
    x = to.node("Transpose", inputs, f"{y}/channels_first", perm=[0, 3, 1, 2])
    x = to.node("Cast", [x], f"{y}/cast", to=1)
    scale, offset = (
        to.constant(f"{y}/{name}", value[:, None, None])
        for name, value in (("scale", operation.scale), ("offset", operation.offset))
    )
    to.node("Add", [to.node("Mul", [x, scale], f"{y}/scaled"), offset], y)


@_write.register
def _(operation: ops.Quantize, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    """Nothing: the writer rounds whatever is on a grid."""


@_write.register
def _(operation: ops.Dequantize, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [x], [y] = inputs, outputs
    to.node("DequantizeLinear", [f"{x}/integers", f"{x}/scale", f"{x}/zero_point"], y)


@_write.register
def _(operation: ops.Conv, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [x], [y] = inputs, outputs
    depthwise = isinstance(operation, ops.DepthwiseConv)
    weights = to.weights(operation, y, (3, 2, 0, 1), axis=0)
    attributes = {"kernel_shape": list(operation.kernel.shape[:2]), "strides": [operation.stride] * 2}
    attributes["dilations"] = [operation.dilation] * 2
    attributes["group"] = operation.kernel.shape[-1] if depthwise else 1
    if operation.padding == ops.SAME:
        attributes["auto_pad"] = "SAME_UPPER"
    else:
        attributes["pads"] = _pads(operation.padding)
    after = None if _is_implied(operation.activation, to.edge(operation.name).grid) else operation.activation
    result = to.node("Conv", [x, *weights], f"{y}/before_{after}" if after else y, **attributes)
    if after == "relu6":
        _clip(to, result, y)
    elif after:
        to.node(_ELEMENTWISE[after], [result], y)


def _is_implied(activation: str | None, grid: ops.Grid | None) -> bool:
    """Says whether rounding to a grid already cuts what an activation does; without it runtimes find the pattern."""
    if grid is None or activation is None:
        return False
    low, high = grid.ends
    return low >= 0 and (activation == "relu" or high <= _SIX)


def _pads(padding: ops.Padding) -> list[int]:
    (top, bottom), (left, right) = padding
    return [top, left, bottom, right]


def _clip(to: _Writer, x: str, y: str) -> None:
    to.node("Clip", [x, to.constant("zero", 0.0), to.constant("six", 6.0)], y)


@_write.register
def _(operation: ops.Pad, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    top, left, bottom, right = _pads(operation.padding)
    pads = to.constant(f"{outputs[0]}/pads", [0, 0, top, left, 0, 0, bottom, right], np.int64)
    to.node("Pad", [*inputs, pads], outputs[0])


@_write.register
def _(operation: ops.Elementwise, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [y], kind = outputs, operation.kind
    if operation.constant is not None:
        inputs = [*inputs, to.constant(f"{y}/constant", operation.constant)]
    if kind == "relu6":
        _clip(to, inputs[0], y)
    elif kind == "softmax":
        to.node("Softmax", inputs, y, axis=1 if to.is_map(operation.inputs[0]) else -1)
    elif kind == "leaky_relu":
        to.node("LeakyRelu", inputs, y, alpha=0.01)
    elif kind in ("gelu", "gelu_tanh"):
        _gelu(to, inputs[0], y, exact=kind == "gelu")
    else:
        to.node(_ELEMENTWISE[kind], inputs, y)


def _gelu(to: _Writer, x: str, y: str, *, exact: bool) -> None:
    """Adds x·Φ(x), or the approximation of Φ by tanh; the operator Gelu came with opset 20."""
    half, one = to.constant("half", 0.5), to.constant("one", 1.0)
    if exact:
        inner = to.node("Mul", [x, to.constant("sqrt_of_half", np.sqrt(0.5))], f"{y}/inner")
        outer = to.node("Erf", [inner], f"{y}/erf")
    else:
        square = to.node("Mul", [x, x], f"{y}/square")
        cubic = to.node("Mul", [square, to.constant("gelu_cubic", 0.044715)], f"{y}/cubic")
        factor = to.node("Mul", [x, to.constant("gelu_scale", np.sqrt(2 / np.pi))], f"{y}/factor")
        inner = to.node("Mul", [factor, to.node("Add", [cubic, one], f"{y}/polynomial")], f"{y}/inner")
        outer = to.node("Tanh", [inner], f"{y}/tanh")
    gate = to.node("Mul", [to.node("Add", [outer, one], f"{y}/twice"), half], f"{y}/gate")
    to.node("Mul", [x, gate], y)


@_write.register
def _(operation: ops.Concat, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    to.node("Concat", inputs, outputs[0], axis=1 if to.is_map(operation.inputs[0]) else operation.axis)


@_write.register
def _(operation: ops.Slice, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    start, stop, axis = (
        to.constant(f"{outputs[0]}/{name}", [value], np.int64)
        for name, value in (("start", operation.start), ("stop", operation.stop), ("axis", -1))
    )
    to.node("Slice", [*inputs, start, stop, axis], outputs[0])


@_write.register
def _(operation: ops.Resize, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [y] = outputs
    if operation.size is None:
        first = 1 if to.edge(operation.inputs[1]).dtype == "uint8" else 2  # bytes have the channels last
        sides = to.node("Shape", [inputs[1]], f"{y}/sides", start=first, end=first + 2)
        ends = to.node("Shape", [inputs[0]], f"{y}/ends", start=0, end=2)
    else:
        ends = to.node("Shape", [inputs[0]], f"{y}/ends", start=0, end=2)
        sides = to.constant(f"{y}/sides", operation.size, np.int64)
    size = to.node("Concat", [ends, sides], f"{y}/size", axis=0)
    mode = "align_corners" if operation.align_corners else "half_pixel"
    to.node("Resize", [inputs[0], "", "", size], y, mode="linear", coordinate_transformation_mode=mode)


@_write.register
def _(operation: ops.Pool, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [y], mean = outputs, operation.kind == "avg"
    if operation.window is not None:
        attributes = {"kernel_shape": list(operation.window), "strides": list(operation.stride)}
        to.node("AveragePool" if mean else "MaxPool", inputs, y, **attributes)
        return
    kind = "GlobalAveragePool" if mean else "GlobalMaxPool"
    if operation.keep_map:
        to.node(kind, inputs, y)
    else:
        to.node("Flatten", [to.node(kind, inputs, f"{y}/map")], y)


@_write.register
def _(operation: ops.MatMul, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [y] = outputs
    weights = to.weights(operation, y, (0, 1), axis=1)
    to.node("Gemm", [*inputs, *weights], y)


@_write.register
def _(operation: ops.Rows, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [y] = outputs
    last = to.node("Transpose", inputs, f"{y}/channels_last", perm=[0, 2, 3, 1])
    shape = to.constant(f"{y}/shape", [0, -1, operation.depth], np.int64)  # 0 keeps the batch
    to.node("Reshape", [last, shape], y)


@_write.register
def _(operation: ops.ArgMax, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    [y] = outputs
    axis = 1 if to.is_map(operation.inputs[0]) else -1
    to.node("Cast", [to.node("ArgMax", inputs, f"{y}/int64", axis=axis, keepdims=0)], y, to=6)


@_write.register
def _(operation: ops.Suppression, to: _Writer, inputs: list[str], outputs: list[str]) -> None:
    _, num_anchors, slots = to.edge(operation.inputs[1]).shape
    write_suppression(operation, to, inputs, outputs, num_anchors=num_anchors, slots=slots)
