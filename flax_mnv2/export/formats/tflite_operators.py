"""The operations as operators of TFLite."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from flax_mnv2.export.formats.tflite_detection import write_suppression
from flax_mnv2.export.formats.tflite_writer import Writer
from flax_mnv2.export.graph import operations as ops
from flax_mnv2.models.layers import same_padding

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


@functools.singledispatch
def write_operation(operation: ops.Operation, to: Writer) -> None:
    """Adds an operation's operators to a file."""
    raise NotImplementedError(type(operation).__name__)


def _ends(operation: ops.Operation, to: Writer) -> tuple[list[int], list[int]]:
    return [to.index(name) for name in operation.inputs], [to.index(name) for name in operation.outputs]


@write_operation.register
def _(operation: ops.Normalize, to: Writer) -> None:
    inputs, outputs = _ends(operation, to)
    name, shape = operation.name, to.edge(operation.name).shape
    types = to.schema.TensorType
    levels, scaled = (to.intermediate(f"{name}/{what}", shape) for what in ("levels", "scaled"))
    to.add("CAST", inputs, [levels], table="CastOptions", inDataType=types.UINT8, outDataType=types.FLOAT32)
    to.add("MUL", [levels, to.constant(f"{name}/scale", operation.scale)], [scaled], table="MulOptions")
    to.add("ADD", [scaled, to.constant(f"{name}/offset", operation.offset)], outputs, table="AddOptions")


@write_operation.register
def _(operation: ops.Quantize, to: Writer) -> None:
    to.add("QUANTIZE", *_ends(operation, to), table="QuantizeOptions")


@write_operation.register
def _(operation: ops.Dequantize, to: Writer) -> None:
    to.add("DEQUANTIZE", *_ends(operation, to), table="DequantizeOptions")


@write_operation.register
def _(operation: ops.Conv, to: Writer) -> None:
    [x], outputs = _ends(operation, to)
    name, depthwise = operation.name, isinstance(operation, ops.DepthwiseConv)
    is_same = _is_same(operation, to.edge(operation.inputs[0]).shape[1:3])
    if not is_same and operation.padding != ((0, 0), (0, 0)):
        batch, height, width, channels = to.edge(operation.inputs[0]).shape
        grown = [side and side + sum(pair) for side, pair in zip((height, width), operation.padding, strict=True)]
        padded = to.intermediate(f"{name}/padded", (batch, *grown, channels), grid=to.edge(operation.inputs[0]).grid)
        _pad(to, name, x, padded, operation.padding)
        x = padded
    weights = to.weights(operation, (2, 0, 1, 3) if depthwise else (3, 0, 1, 2), axis=3 if depthwise else 0)
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


def _pad(to: Writer, name: str, x: int, y: int, padding: ops.Padding) -> None:
    pads = to.constant(f"{name}/pads", [(0, 0), *padding, (0, 0)], "int32")
    to.add("PAD", [x, pads], [y], table="PadOptions")


@write_operation.register
def _(operation: ops.Pad, to: Writer) -> None:
    [x], [y] = _ends(operation, to)
    _pad(to, operation.name, x, y, operation.padding)


@write_operation.register
def _(operation: ops.Elementwise, to: Writer) -> None:
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


@write_operation.register
def _(operation: ops.Concat, to: Writer) -> None:
    inputs, outputs = _ends(operation, to)
    axis = operation.axis % len(to.edge(operation.name).shape)
    to.add("CONCATENATION", inputs, outputs, table="ConcatenationOptions", axis=axis)


@write_operation.register
def _(operation: ops.Slice, to: Writer) -> None:
    inputs, outputs = _ends(operation, to)
    others = len(to.edge(operation.name).shape) - 1
    begin = to.constant(f"{operation.name}/begin", [0] * others + [operation.start], "int32")
    size = to.constant(f"{operation.name}/size", [-1] * others + [operation.stop - operation.start], "int32")
    to.add("SLICE", [*inputs, begin, size], outputs, table="SliceOptions")


@write_operation.register
def _(operation: ops.Resize, to: Writer) -> None:
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


@write_operation.register
def _(operation: ops.Pool, to: Writer) -> None:
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


@write_operation.register
def _(operation: ops.MatMul, to: Writer) -> None:
    inputs, outputs = _ends(operation, to)
    weights = to.weights(operation, (1, 0), axis=0)
    to.add("FULLY_CONNECTED", [*inputs, *weights], outputs, table="FullyConnectedOptions")


@write_operation.register
def _(operation: ops.Rows, to: Writer) -> None:
    inputs, outputs = _ends(operation, to)
    shape = [-1 if side is None else side for side in to.edge(operation.name).shape]
    target = to.constant(f"{operation.name}/shape", shape, "int32")
    to.add("RESHAPE", [*inputs, target], outputs, table="ReshapeOptions", newShape=shape)


@write_operation.register
def _(operation: ops.ArgMax, to: Writer) -> None:
    inputs, outputs = _ends(operation, to)
    axis = to.constant(f"{operation.name}/axis", [len(to.edge(operation.inputs[0]).shape) - 1], "int32")
    to.add("ARG_MAX", [*inputs, axis], outputs, table="ArgMaxOptions", outputType=to.schema.TensorType.INT32)


@write_operation.register
def _(operation: ops.Suppression, to: Writer) -> None:
    write_suppression(operation, to, *_ends(operation, to))
