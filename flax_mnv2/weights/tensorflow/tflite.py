"""TFLite files: tensors with their quantisation, operations in order, class names that come with them.

Numbers of fields, operations and types are those of ``tensorflow/lite/schema/schema.fbs``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import zipfile

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import read_bytes, shown
from flax_mnv2.weights.tensorflow import arrays
from flax_mnv2.weights.tensorflow.flatbuffer import Table

_IDENTIFIER = b"TFL3"
_DTYPES = {0: "<f4", 1: "<f2", 2: "<i4", 3: "u1", 4: "<i8", 6: "?", 7: "<i2", 9: "i1"}
# BuiltinOperator, those that a MobileNetV2 and its heads are made of; others keep their number as a name.
_OPERATIONS = {
    0: "add",
    1: "average_pool",
    2: "concatenation",
    3: "conv",
    4: "depthwise",
    6: "dequantize",
    9: "fully_connected",
    14: "logistic",
    19: "relu",
    21: "relu6",
    22: "reshape",
    23: "resize_bilinear",
    34: "pad",
    37: "batch_to_space",
    38: "space_to_batch",
    40: "mean",
    114: "quantize",
}
_CUSTOM = 32  # has a name instead of a number
_ACTIVATIONS = {0: None, 1: "relu", 3: "relu6"}
_OPTIONS = {"conv": (1, 2, 3, 5), "depthwise": (1, 2, 4, 6)}  # slots of strides (w, h), activation, dilation (h)
_FULLY_CONNECTED_ACTIVATION = 0
_METADATA, _NORMALIZATION_OPTIONS = "TFLITE_METADATA", 1
_MAX_DIMENSIONS = 8
_MAX_OPERATIONS = 2000  # a MobileNetV2 with a head has about 120
_MAX_LABELS_BYTES = 2**20
_MAX_SCALE, _MAX_ZERO_POINT = 1e20, 2**31  # beyond which products leave float32


@dataclasses.dataclass(frozen=True)
class Quantization:
    """A real number is (integer - zero_point)·scale."""

    scale: np.ndarray  # float32, (1,) or one a channel
    zero_point: np.ndarray  # int64, of the same shape
    axis: int  # of the channels

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """Returns real numbers, float32; each the product rounded once."""
        if self.scale.size == 1:
            scale, zero_point = self.scale[0], self.zero_point[0]
        else:
            if self.axis >= values.ndim or values.shape[self.axis] != self.scale.size:
                raise CheckpointError("it is quantised by channels that it does not have")
            shape = [-1 if axis == self.axis else 1 for axis in range(values.ndim)]
            scale, zero_point = self.scale.reshape(shape), self.zero_point.reshape(shape)
        return ((values.astype(np.int64) - zero_point) * np.float64(scale)).astype(np.float32)

    def range(self, dtype: np.dtype, *, narrow: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns the smallest and the largest real numbers, those of weights without the lowest integer."""
        info = np.iinfo(dtype)
        ends = (info.min + narrow - self.zero_point), (info.max - self.zero_point)
        return tuple((end * np.float64(self.scale)).astype(np.float32) for end in ends)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: a constant with its data, or what an operation makes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype | None  # None of types that no layer has
    quantization: Quantization | None
    data: np.ndarray | None  # of a constant, as it is stored

    def values(self) -> np.ndarray:
        """Returns a constant's real numbers, float32: as stored, or dequantised."""
        if self.data is None:
            raise CheckpointError(f"{shown(self.name)} is no constant")
        if self.data.dtype.kind == "f":
            return self.data.astype(np.float32)
        if self.quantization is None:
            raise CheckpointError(f"{shown(self.name)} has integers and says no scale")
        return self.quantization.dequantize(self.data)

    def range(self, *, narrow: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns (min, max) of what is quantised; None of what is not."""
        if self.quantization is None or self.dtype is None or self.dtype.kind not in "iu":
            return None
        return self.quantization.range(self.dtype, narrow=narrow)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation; tensors by their number, -1 for one that is left out."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: str | None = None  # merged into it
    is_same: bool = True  # padding of a convolution: SAME, or VALID
    stride: int = 1
    dilation: int = 1
    options: bytes = b""  # of an operation that is none of TFLite's own, usually a FlexBuffer


@dataclasses.dataclass(frozen=True)
class Normalization:
    """A network of floats takes (level - mean) / std of levels from 0 to 255; one value, or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """What a TFLite file holds."""

    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]  # in order of execution
    inputs: tuple[int, ...]
    labels: tuple[str, ...] = ()  # names of the classes, from the file's metadata; empty if there are none
    normalization: Normalization | None = None  # of images, from the file's metadata

    def producer(self, tensor: int) -> Operation | None:
        """Returns what makes a tensor."""
        return self._producers.get(tensor)

    def consumers(self, tensor: int) -> list[Operation]:
        """Returns what takes a tensor."""
        return self._consumers.get(tensor, [])

    def integers(self, tensor: int) -> np.ndarray:
        """Returns a constant of plain integers, such as the numbers of zeros of a padding."""
        found = self.tensors[tensor]
        if found.data is None or found.data.dtype.kind != "i":
            raise CheckpointError(f"{shown(found.name)} is no constant of integers")
        return found.data

    def constant(self, tensor: int) -> Tensor:
        """Returns a constant, also one that the graph dequantises first, as those stored in float16."""
        made_by = self._producers.get(tensor)
        if made_by is not None and made_by.kind == "dequantize":
            tensor = made_by.inputs[0]
        return self.tensors[tensor]

    @functools.cached_property
    def _producers(self) -> dict[int, Operation]:
        return {output: operation for operation in self.operations for output in operation.outputs}

    @functools.cached_property
    def _consumers(self) -> dict[int, list[Operation]]:
        found: dict[int, list[Operation]] = {}
        for operation in self.operations:
            for tensor in dict.fromkeys(operation.inputs):
                found.setdefault(tensor, []).append(operation)
        return found


def is_tflite(head: bytes) -> bool:
    """Returns whether a file that begins so is a TFLite model."""
    return head[4:8] == _IDENTIFIER


def read_graph(path: pathlib.Path) -> Graph:
    """Reads a TFLite file; a CheckpointError where it is cut, damaged, or not one graph."""
    try:
        content = read_bytes(path, max_bytes=arrays.MAX_BYTES)
        return dataclasses.replace(parse_graph(content), labels=_read_labels(path))
    except (OSError, ValueError) as error:  # a CheckpointError too
        raise CheckpointError(f"Cannot read the TFLite file {path}: {str(error).rstrip('.')}.") from None


def parse_graph(content: bytes) -> Graph:
    """Does so for a file in memory, without class names."""
    if not is_tflite(content[:8]):
        raise CheckpointError("it is none")
    model = Table.root(memoryview(content))
    limit = arrays.MAX_TENSORS
    codes = [_operation_name(code) for code in model.tables(1, limit=limit)]
    subgraphs = list(model.tables(2, limit=limit))
    if len(subgraphs) != 1:
        raise CheckpointError(f"it has {len(subgraphs)} graphs; expected one")
    buffers = [buffer.array(0, "u1") for buffer in model.tables(4, limit=limit)]
    [subgraph] = subgraphs
    tensors = tuple(_tensor(tensor, buffers) for tensor in subgraph.tables(0, limit=limit))
    operations = tuple(_operation(item, codes, len(tensors)) for item in subgraph.tables(3, limit=_MAX_OPERATIONS))
    _check_order(operations)
    inputs = _indices(subgraph.array(1, "<i4"), len(tensors))
    return Graph(tensors, operations, inputs, normalization=_read_normalization(model, buffers))


def _check_order(operations: tuple[Operation, ...]) -> None:
    """Raises a CheckpointError where something is used before it is made, or made twice, as in a circle."""
    met: set[int] = set()
    for operation in operations:
        met |= set(operation.inputs)
        if met & set(operation.outputs):
            raise CheckpointError("its operations are in no order of execution")
        met |= set(operation.outputs)


def _operation_name(code: Table) -> str:
    number = max(code.number(0, "b"), code.number(3, "i"))
    return code.text(1) if number == _CUSTOM else _OPERATIONS.get(number, str(number))


def _tensor(table: Table, buffers: list[np.ndarray]) -> Tensor:
    name, shape = table.text(3), tuple(map(int, table.array(0, "<i4")))
    code = _DTYPES.get(table.number(1, "b"))
    dtype = None if code is None else np.dtype(code)
    number = table.number(2, "I")
    if number >= len(buffers) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"the tensor {shown(name)} is damaged")
    data = buffers[number]
    if not data.size or dtype is None:
        return Tensor(name, shape, dtype, _quantization(table.table(4), name), None)
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != data.size:
        raise CheckpointError(f"{shown(name)} has {data.size} bytes, which do not make the shape {shape}")
    return Tensor(name, shape, dtype, _quantization(table.table(4), name), data.view(dtype).reshape(shape))


def _quantization(table: Table | None, name: str) -> Quantization | None:
    if table is None or not table.array(2, "<f4").size:
        return None
    scale, zero_point = table.array(2, "<f4"), table.array(3, "<i8")
    if not zero_point.size:
        zero_point = np.zeros(scale.size, np.int64)
    usable = scale.size == zero_point.size and ((scale >= 0) & (scale <= _MAX_SCALE)).all()
    if not usable or (np.abs(zero_point.astype(np.float64)) > _MAX_ZERO_POINT).any():
        raise CheckpointError(f"the scales of {shown(name)} are damaged")
    return Quantization(scale, zero_point, max(table.number(6, "i"), 0))


def _operation(table: Table, codes: list[str], num_tensors: int) -> Operation:
    number = table.number(0, "I")
    if number >= len(codes):
        raise CheckpointError("an operation of its graph is damaged")
    kind = codes[number]
    inputs, outputs = (_indices(table.array(slot, "<i4"), num_tensors) for slot in (1, 2))
    options = table.table(4)
    if kind == "fully_connected":
        code = 0 if options is None else options.number(_FULLY_CONNECTED_ACTIVATION, "b")
        return Operation(kind, inputs, outputs, _ACTIVATIONS.get(code, "another"))
    if kind not in _OPTIONS:
        return Operation(kind, inputs, outputs, options=table.array(5, "u1").tobytes())
    if options is None or len(inputs) < 2 or len(outputs) != 1:
        raise CheckpointError(f"a {kind} of its graph is damaged")
    across, down, activation, dilation = _OPTIONS[kind]
    if options.number(across, "i", 0) != options.number(down, "i", 0):
        raise CheckpointError("a convolution strides differently in height and width, which no MobileNetV2 does")
    return Operation(
        kind=kind,
        inputs=inputs,
        outputs=outputs,
        activation=_ACTIVATIONS.get(options.number(activation, "b"), "another"),
        is_same=options.number(0, "b") == 0,
        stride=options.number(down, "i", 0),
        dilation=options.number(dilation, "i", 1),
    )


def _indices(values: np.ndarray, num_tensors: int) -> tuple[int, ...]:
    if values.size and not (values.min() >= -1 and values.max() < num_tensors):
        raise CheckpointError("its graph names tensors that it does not have")
    return tuple(map(int, values))


def _read_normalization(model: Table, buffers: list[np.ndarray]) -> Normalization | None:
    """Returns what the metadata say of the first input; None where there are none, or none that can be read.

    They are another FlatBuffer (tensorflow/lite/schema, ``metadata_schema.fbs``) in a buffer of the model.
    """
    try:
        entries = {entry.text(0): entry.number(1, "I") for entry in model.tables(6, limit=arrays.MAX_TENSORS)}
        metadata = Table.root(memoryview(buffers[entries[_METADATA]].tobytes()))
        first = next(next(metadata.tables(3, limit=1)).tables(2, limit=arrays.MAX_TENSORS))
        for unit in first.tables(4, limit=arrays.MAX_TENSORS):
            options = unit.table(1)
            if unit.number(0, "B") == _NORMALIZATION_OPTIONS and options is not None:
                mean, std = (options.array(slot, "<f4").tolist() for slot in (0, 1))
                usable = 1 <= len(mean) == len(std) and np.isfinite(mean).all() and (np.array(std) > 0).all()
                return Normalization(tuple(mean), tuple(std)) if usable else None
    except (CheckpointError, KeyError, IndexError, StopIteration):
        return None
    return None


def _read_labels(path: pathlib.Path) -> tuple[str, ...]:
    """Returns the lines of the one text file in the zip that metadata append to a model; none where there is no zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = [item for item in archive.infolist() if item.filename.endswith(".txt")]
            if len(files) != 1 or files[0].file_size > _MAX_LABELS_BYTES:
                return ()
            with archive.open(files[0]) as file:
                text = file.read(_MAX_LABELS_BYTES).decode("utf-8")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return ()
    return tuple(text.splitlines())
