"""Writes TFLite files, through LiteRT's schema: channels last as here, so nothing is transposed."""

from __future__ import annotations

import functools
import json
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_mnv2.errors import ConfigError
from flax_mnv2.export.graph import operations as ops
from flax_mnv2.export.metadata import KEY, Metadata
from flax_mnv2.export.packages import needs_package
from flax_mnv2.models.layers import same_padding
from flax_mnv2.version import __version__

SIGNATURE = "serving_default"  # TensorFlow's name for the only one
LABELS_NAME = "labels.txt"  # in the zip behind the graph, where TFLite's own metadata keep labels
_ELEMENTWISE = {
    "relu": "RELU",
    "relu6": "RELU6",
    "sigmoid": "LOGISTIC",
    "tanh": "TANH",
    "elu": "ELU",
    "hardswish": "HARD_SWISH",
    "exp": "EXP",
    "max": "MAXIMUM",
    "min": "MINIMUM",
}
_VERSIONS = {"DEPTHWISE_CONV_2D": 2, "RESIZE_BILINEAR": 3}  # dilation; half-pixel centres
_TYPES = {"float32": "FLOAT32", "uint8": "UINT8", "int32": "INT32", "int64": "INT64"}
_SUPPRESSION = "TFLite_Detection_PostProcess"
_LEAST_SIDE = 1e-5  # of a box, as a share of the image
_PLACEHOLDER_PX = 224  # of a size that is any: what the file says until it is set


def write_tflite(graph: ops.Graph, path: pathlib.Path, metadata: Metadata) -> None:
    """Writes a graph to a file.

    Raises:
      UserError: the package ai-edge-litert is missing.
      ConfigError: something that TFLite cannot say.
    """
    with needs_package("tflite"):
        import flatbuffers
        from ai_edge_litert import schema_py_generated
    writer = _Writer(graph, schema_py_generated)
    for operation in graph.operations:
        _write(operation, writer)
    content = json.dumps(metadata.to_dict(), ensure_ascii=False).encode()
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(writer.model(content).Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    labels = metadata.to_dict()["labels"]
    if labels:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(LABELS_NAME, "\n".join(labels))


class _Writer:
    """Tensors, buffers and operators of one graph."""

    def __init__(self, graph: ops.Graph, schema: Any):
        self.schema, self._graph = schema, graph
        self._buffers, self._tensors, self._operators = [schema.BufferT()], [], []
        self._codes: dict[str, int] = {}
        public = {edge: name for name, edge in graph.outputs.items()}
        found = {name for item in graph.operations if isinstance(item, ops.Suppression) for name in item.outputs}
        self._indices = {
            name: self._tensor(public.get(name, name), edge.shape, "float32" if name in found else edge.dtype)
            for name, edge in graph.edges.items()  # TFLite's suppression gives labels and their number as floats
        }

    def edge(self, name: str) -> ops.Edge:
        """Returns what is known of an edge."""
        return self._graph.edges[name]

    def index(self, name: str) -> int:
        """Returns the number of an edge's tensor."""
        return self._indices[name]

    def intermediate(self, name: str, shape: Sequence[int | None], dtype: str = "float32") -> int:
        """Adds a tensor between two operators of one operation and returns its number."""
        return self._tensor(name, shape, dtype)

    def constant(self, name: str, value: Any, dtype: str = "float32") -> int:
        """Adds a tensor with its data and returns its number."""
        value = np.ascontiguousarray(value, dtype=dtype)
        buffer = self.schema.BufferT()
        buffer.data = value.reshape(-1).view(np.uint8)
        self._buffers.append(buffer)
        return self._tensor(name, value.shape, dtype, buffer=len(self._buffers) - 1)

    def _tensor(self, name: str, shape: Sequence[int | None], dtype: str, buffer: int = 0) -> int:
        tensor = self.schema.TensorT()
        sides = (1, _PLACEHOLDER_PX, _PLACEHOLDER_PX)
        tensor.name, tensor.buffer = name, buffer
        tensor.shape = [sides[at] if side is None else side for at, side in enumerate(shape)]
        tensor.type = getattr(self.schema.TensorType, _TYPES[dtype])
        if None in shape:
            tensor.shapeSignature = [-1 if side is None else side for side in shape]
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def add(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Adds a builtin operator; ``options`` are fields of the ``table`` of options, by the schema's names."""
        operator = self._operator(kind, inputs, outputs)
        table = options.pop("table", None)
        if table is not None:
            made = getattr(self.schema, f"{table}T")()
            for name, value in options.items():
                setattr(made, name, value)
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            operator.builtinOptions = made

    def add_custom(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: dict[str, Any]) -> None:
        """Adds an operator that is none of the schema's."""
        from flatbuffers import flexbuffers

        operator = self._operator(name, inputs, outputs)
        operator.customOptions = np.frombuffer(flexbuffers.Dumps(options), np.uint8)

    def _operator(self, kind: str, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(kind, len(self._codes))
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        self._operators.append(operator)
        return operator

    def model(self, metadata: bytes) -> Any:
        """Returns the whole, a ``ModelT``."""
        schema, model, subgraph = self.schema, self.schema.ModelT(), self.schema.SubGraphT()
        image = self._graph.input
        subgraph.tensors, subgraph.operators, subgraph.name = self._tensors, self._operators, "main"
        subgraph.inputs = [self.index(image)]
        subgraph.outputs = [self.index(edge) for edge in self._graph.outputs.values()]
        signature = schema.SignatureDefT()
        signature.signatureKey = SIGNATURE
        signature.inputs = [self._entry(image, image)]
        signature.outputs = [self._entry(name, edge) for name, edge in self._graph.outputs.items()]
        buffer, about = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(metadata, np.uint8)
        about.name, about.buffer = KEY, len(self._buffers)
        model.version, model.description = 3, f"flax_mnv2 {__version__}"
        model.operatorCodes = [self._code(kind) for kind in self._codes]
        model.subgraphs, model.signatureDefs = [subgraph], [signature]
        model.buffers, model.metadata = [*self._buffers, buffer], [about]
        return model

    def _entry(self, name: str, edge: str) -> Any:
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = name, self.index(edge)
        return entry

    def _code(self, kind: str) -> Any:
        code, numbers = self.schema.OperatorCodeT(), self.schema.BuiltinOperator
        number = getattr(numbers, kind, numbers.CUSTOM)
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)  # the older field is a byte
        code.version = _VERSIONS.get(kind, 1)
        if number == numbers.CUSTOM:
            code.customCode = kind
        return code


@functools.singledispatch
def _write(operation: ops.Operation, to: _Writer) -> None:
    raise NotImplementedError(type(operation).__name__)


def _ends(operation: ops.Operation, to: _Writer) -> tuple[list[int], list[int]]:
    return [to.index(name) for name in operation.inputs], [to.index(name) for name in operation.outputs]


@_write.register
def _(operation: ops.Normalize, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    name, shape = operation.name, to.edge(operation.name).shape
    types = to.schema.TensorType
    levels, scaled = (to.intermediate(f"{name}/{what}", shape) for what in ("levels", "scaled"))
    to.add("CAST", inputs, [levels], table="CastOptions", inDataType=types.UINT8, outDataType=types.FLOAT32)
    to.add("MUL", [levels, to.constant(f"{name}/scale", operation.scale)], [scaled], table="MulOptions")
    to.add("ADD", [scaled, to.constant(f"{name}/offset", operation.offset)], outputs, table="AddOptions")


@_write.register
def _(operation: ops.Conv, to: _Writer) -> None:
    [x], outputs = _ends(operation, to)
    name, depthwise = operation.name, isinstance(operation, ops.DepthwiseConv)
    is_same = _is_same(operation, to.edge(operation.inputs[0]).shape[1:3])
    if not is_same and operation.padding != ((0, 0), (0, 0)):
        batch, height, width, channels = to.edge(operation.inputs[0]).shape
        grown = [side and side + sum(pair) for side, pair in zip((height, width), operation.padding, strict=True)]
        padded = to.intermediate(f"{name}/padded", (batch, *grown, channels))
        _pad(to, name, x, padded, operation.padding)
        x = padded
    weights = [
        to.constant(f"{name}/kernel", operation.kernel.transpose((2, 0, 1, 3) if depthwise else (3, 0, 1, 2))),
        to.constant(f"{name}/bias", operation.bias),
    ]
    activations = to.schema.ActivationFunctionType
    options = {"padding": to.schema.Padding.SAME if is_same else to.schema.Padding.VALID}
    options |= dict.fromkeys(("strideH", "strideW"), operation.stride)
    options |= dict.fromkeys(("dilationHFactor", "dilationWFactor"), operation.dilation)
    options["fusedActivationFunction"] = getattr(activations, (operation.activation or "none").upper())
    if depthwise:
        to.add(
            "DEPTHWISE_CONV_2D", [x, *weights], outputs, table="DepthwiseConv2DOptions", depthMultiplier=1, **options
        )
    else:
        to.add("CONV_2D", [x, *weights], outputs, table="Conv2DOptions", **options)


def _is_same(operation: ops.Conv, size: Sequence[int | None]) -> bool:
    """Says whether TensorFlow's SAME, at this size, is the padding of a convolution."""
    if operation.padding == ops.SAME:
        return True
    if None in size:
        if operation.stride > 1:
            return False
        size = (1, 1)  # at stride 1 every size is padded alike
    window = {"kernel": operation.kernel.shape[0], "stride": operation.stride, "dilation": operation.dilation}
    return operation.padding == same_padding(*size, **window, tf_padding=True)


def _pad(to: _Writer, name: str, x: int, y: int, padding: ops.Padding) -> None:
    pads = to.constant(f"{name}/pads", [(0, 0), *padding, (0, 0)], "int32")
    to.add("PAD", [x, pads], [y], table="PadOptions")


@_write.register
def _(operation: ops.Pad, to: _Writer) -> None:
    [x], [y] = _ends(operation, to)
    _pad(to, operation.name, x, y, operation.padding)


@_write.register
def _(operation: ops.Elementwise, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    kind = operation.kind
    if operation.constant is not None:
        inputs.append(to.constant(f"{operation.name}/constant", operation.constant))
    if kind in ("add", "sub", "mul"):
        to.add(kind.upper(), inputs, outputs, table=f"{kind.capitalize()}Options")
    elif kind == "softmax":
        to.add("SOFTMAX", inputs, outputs, table="SoftmaxOptions", beta=1.0)
    elif kind == "leaky_relu":
        to.add("LEAKY_RELU", inputs, outputs, table="LeakyReluOptions", alpha=0.01)
    elif kind in ("gelu", "gelu_tanh"):
        to.add("GELU", inputs, outputs, table="GeluOptions", approximate=kind == "gelu_tanh")
    else:
        to.add(_ELEMENTWISE[kind], inputs, outputs)


@_write.register
def _(operation: ops.Concat, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    axis = operation.axis % len(to.edge(operation.name).shape)
    to.add("CONCATENATION", inputs, outputs, table="ConcatenationOptions", axis=axis)


@_write.register
def _(operation: ops.Slice, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    others = len(to.edge(operation.name).shape) - 1
    begin = to.constant(f"{operation.name}/begin", [0] * others + [operation.start], "int32")
    size = to.constant(f"{operation.name}/size", [-1] * others + [operation.stop - operation.start], "int32")
    to.add("SLICE", [*inputs, begin, size], outputs, table="SliceOptions")


@_write.register
def _(operation: ops.Resize, to: _Writer) -> None:
    [x, *like], outputs = _ends(operation, to)
    name = operation.name
    if operation.size is None:
        shape = to.intermediate(f"{name}/shape", (4,), "int32")
        to.add("SHAPE", like, [shape], table="ShapeOptions", outType=to.schema.TensorType.INT32)
        size = to.intermediate(f"{name}/size", (2,), "int32")
        ends = [to.constant(f"{name}/{what}", value, "int32") for what, value in (("begin", [1]), ("count", [2]))]
        to.add("SLICE", [shape, *ends], [size], table="SliceOptions")
    else:
        size = to.constant(f"{name}/size", operation.size, "int32")
    rule = {"alignCorners": operation.align_corners, "halfPixelCenters": not operation.align_corners}
    to.add("RESIZE_BILINEAR", [x, size], outputs, table="ResizeBilinearOptions", **rule)


@_write.register
def _(operation: ops.Pool, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    mean = operation.kind == "avg"
    if operation.window is None:
        axes = to.constant(f"{operation.name}/axes", [1, 2], "int32")
        kind = "MEAN" if mean else "REDUCE_MAX"
        to.add(kind, [*inputs, axes], outputs, table="ReducerOptions", keepDims=operation.keep_map)
        return
    (height, width), (down, right) = operation.window, operation.stride
    options = {"filterHeight": height, "filterWidth": width, "strideH": down, "strideW": right}
    kind = "AVERAGE_POOL_2D" if mean else "MAX_POOL_2D"
    to.add(kind, inputs, outputs, table="Pool2DOptions", padding=to.schema.Padding.VALID, **options)


@_write.register
def _(operation: ops.MatMul, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    weights = [
        to.constant(f"{operation.name}/kernel", operation.kernel.T),
        to.constant(f"{operation.name}/bias", operation.bias),
    ]
    to.add("FULLY_CONNECTED", [*inputs, *weights], outputs, table="FullyConnectedOptions")


@_write.register
def _(operation: ops.Rows, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    shape = [-1 if side is None else side for side in to.edge(operation.name).shape]
    target = to.constant(f"{operation.name}/shape", shape, "int32")
    to.add("RESHAPE", [*inputs, target], outputs, table="ReshapeOptions", newShape=shape)


@_write.register
def _(operation: ops.ArgMax, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    axis = to.constant(f"{operation.name}/axis", [len(to.edge(operation.inputs[0]).shape) - 1], "int32")
    to.add("ARG_MAX", [*inputs, axis], outputs, table="ArgMaxOptions", outputType=to.schema.TensorType.INT32)


@_write.register
def _(operation: ops.Suppression, to: _Writer) -> None:
    inputs, outputs = _ends(operation, to)
    batch, num_anchors, slots = to.edge(operation.inputs[1]).shape
    if batch != 1:
        raise ConfigError(f"TFLite suppresses boxes of one image at a time; choose batch 1, not {batch or 'dynamic'}.")
    options = {
        "max_detections": operation.max_detections,
        "max_classes_per_detection": 1,
        "detections_per_class": operation.max_per_class,
        "use_regular_nms": True,
        "nms_score_threshold": float(operation.threshold),
        "nms_iou_threshold": float(operation.iou),
        "num_classes": slots - operation.background,
        **dict.fromkeys(("y_scale", "x_scale", "h_scale", "w_scale"), 1.0),
    }
    # The operator decodes, and does not cut boxes to the image: so it is given boxes as codes, and anchors that are
    # the image.
    anchors = to.constant("anchors", np.broadcast_to(np.float32([0, 0, 1, 1]), (num_anchors, 4)))
    to.add_custom(_SUPPRESSION, [_codes(to, inputs[0], num_anchors), inputs[1], anchors], outputs, options)


def _codes(to: _Writer, corners: int, num_anchors: int) -> int:
    """Adds (1, A, 4) centres and logarithms of sizes, of which none is 0: the operator refuses empty boxes."""

    def step(kind: str, inputs: list[int], name: str, **options: Any) -> int:
        y = to.intermediate(f"codes/{name}", (1, num_anchors, 2))
        to.add(kind, inputs, [y], **options)
        return y

    pair = to.constant("codes/pair", [-1, -1, 2], "int32")
    starts = [to.constant(f"codes/from_{at}", [0, 0, at], "int32") for at in (0, 2)]
    low, high = (
        step("SLICE", [corners, start, pair], name, table="SliceOptions")
        for start, name in zip(starts, ("low", "high"), strict=True)
    )
    centre = step("ADD", [low, high], "sum", table="AddOptions")
    centre = step("MUL", [centre, to.constant("codes/half", 0.5)], "centre", table="MulOptions")
    size = step("SUB", [high, low], "size", table="SubOptions")
    size = step("MAXIMUM", [size, to.constant("codes/least", _LEAST_SIDE)], "least_size")
    y = to.intermediate("codes", (1, num_anchors, 4))
    to.add("CONCATENATION", [centre, step("LOG", [size], "log_size")], [y], table="ConcatenationOptions", axis=2)
    return y
