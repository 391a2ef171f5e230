"""Tensors, buffers and operators of a TFLite file, by the object API of LiteRT's schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_mnv2.export.graph import operations as ops
from flax_mnv2.export.metadata import KEY
from flax_mnv2.version import __version__

_SIGNATURE = "serving_default"  # TensorFlow's name for the only one
_VERSIONS = {"DEPTHWISE_CONV_2D": 2, "RESIZE_BILINEAR": 3}  # dilation; half-pixel centres
# Those that brought integers with a sign, and of FULLY_CONNECTED a scale for each channel.
_INT8_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 12,
    "RESIZE_BILINEAR": 3,
    **dict.fromkeys(("ADD", "CONCATENATION", "DEQUANTIZE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "PAD"), 2),
    **dict.fromkeys(("QUANTIZE", "SLICE", "REDUCE_MAX"), 2),
}
_TYPES = {"float32": "FLOAT32", "uint8": "UINT8", "int8": "INT8", "int32": "INT32", "int64": "INT64"}
_PLACEHOLDER_PX = 224  # of a size that is any: what the file says until it is set


class Writer:
    """Tensors, buffers and operators of one graph.

    Attributes:
      schema: the module of LiteRT's schema.
    """

    def __init__(self, graph: ops.Graph, schema: Any):
        self.schema, self._graph = schema, graph
        self._buffers, self._tensors, self._operators = [schema.BufferT()], [], []
        self._codes: dict[str, int] = {}
        self._with_int8: set[str] = set()
        public = {edge: name for name, edge in graph.outputs.items()}
        found = {name for item in graph.operations if isinstance(item, ops.Suppression) for name in item.outputs}
        self._indices = {
            name: self._tensor(
                public.get(name, name), edge.shape, "float32" if name in found else edge.dtype, grid=edge.grid
            )
            for name, edge in graph.edges.items()  # TFLite's suppression gives labels and their number as floats
        }

    def edge(self, name: str) -> ops.Edge:
        """Returns what is known of an edge."""
        return self._graph.edges[name]

    def index(self, name: str) -> int:
        """Returns the number of an edge's tensor."""
        return self._indices[name]

    def intermediate(
        self, name: str, shape: Sequence[int | None], dtype: str = "float32", *, grid: ops.Grid | None = None
    ) -> int:
        """Adds a tensor between two operators of one operation and returns its number."""
        return self._tensor(name, shape, dtype, grid=grid)

    def constant(
        self, name: str, value: Any, dtype: str = "float32", *, grid: ops.Grid | None = None, axis: int = 0
    ) -> int:
        """Adds a tensor with its data and returns its number; ``axis`` is that of a grid with several scales."""
        value = np.ascontiguousarray(value, dtype=dtype)
        buffer = self.schema.BufferT()
        buffer.data = value.reshape(-1).view(np.uint8)
        self._buffers.append(buffer)
        return self._tensor(name, value.shape, dtype, buffer=len(self._buffers) - 1, grid=grid, axis=axis)

    def weights(self, operation: ops.Conv | ops.MatMul, order: Sequence[int], *, axis: int) -> list[int]:
        """Adds a kernel, its axes in TFLite's order, and its bias; ``axis`` is then that of the output channels."""
        kernel, bias = f"{operation.name}/kernel", f"{operation.name}/bias"
        grid = operation.grid
        if grid is None:
            return [self.constant(kernel, operation.kernel.transpose(order)), self.constant(bias, operation.bias)]
        integers, bias_integers, steps = self._graph.integers(operation)
        return [
            self.constant(kernel, integers.transpose(order), grid.dtype, grid=grid, axis=axis),
            self.constant(bias, bias_integers, steps.dtype, grid=steps),
        ]

    def _tensor(
        self,
        name: str,
        shape: Sequence[int | None],
        dtype: str,
        buffer: int = 0,
        *,
        grid: ops.Grid | None = None,
        axis: int = 0,
    ) -> int:
        tensor = self.schema.TensorT()
        if grid is not None:
            tensor.quantization, dtype = self._quantization(grid, axis), grid.dtype
        sides = (1, _PLACEHOLDER_PX, _PLACEHOLDER_PX)
        tensor.name, tensor.buffer = name, buffer
        tensor.shape = [sides[at] if side is None else side for at, side in enumerate(shape)]
        tensor.type = getattr(self.schema.TensorType, _TYPES[dtype])
        if None in shape:
            tensor.shapeSignature = [-1 if side is None else side for side in shape]
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _quantization(self, grid: ops.Grid, axis: int) -> Any:
        made, scales = self.schema.QuantizationParametersT(), np.atleast_1d(grid.scale)
        made.scale, made.zeroPoint = scales.tolist(), [grid.zero_point] * len(scales)
        made.quantizedDimension = axis if len(scales) > 1 else 0
        return made

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
        if any(self._tensors[at].type == self.schema.TensorType.INT8 for at in (*inputs, *outputs)):
            self._with_int8.add(kind)
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
        signature.signatureKey = _SIGNATURE
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
        code.version = (_INT8_VERSIONS if kind in self._with_int8 else _VERSIONS).get(kind, 1)
        if number == numbers.CUSTOM:
            code.customCode = kind
        return code
