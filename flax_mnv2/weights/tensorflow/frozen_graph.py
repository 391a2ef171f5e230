"""Frozen graphs, ``.pb``: a ``GraphDef`` whose variables became constants of the same names."""

from __future__ import annotations

import math
import pathlib

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import read_bytes, shown
from flax_mnv2.weights.tensorflow import arrays, wire

_NODE = 0x0A  # the tag of GraphDef.node, and of NodeDef.name
_OP = 0x12  # of NodeDef.op
# What layers of TF-slim call their variables; a graph has other constants too, such as shapes.
_LEAVES = ("weights", "depthwise_weights", "biases", "gamma", "beta", "moving_mean", "moving_variance", "min", "max")
# tensorflow/core/framework/tensor.proto: the fields that hold values where tensor_content does not.
_VALUE_FIELDS = {np.dtype("<f4"): 5, np.dtype("<f8"): 6}


def is_graph(head: bytes) -> bool:
    """Returns whether a file that begins so holds a graph: its first node has a name and then an operation."""
    data = memoryview(head)
    try:
        if not head or head[0] != _NODE:
            return False
        _, position = wire.varint(data, 1)
        if data[position] != _NODE:
            return False
        size, position = wire.varint(data, position + 1)
        return data[position + size] == _OP
    except (CheckpointError, IndexError):
        return False


def read_graph(path: pathlib.Path, weights: str = "auto") -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the constants of a frozen graph that are weights, by name, and notes; ``weights`` as for ``choose``."""
    try:
        return read_constants(read_bytes(path, max_bytes=arrays.MAX_BYTES), weights)
    except (OSError, ValueError) as error:  # a CheckpointError too
        raise CheckpointError(f"Cannot read the frozen graph {path}: {str(error).rstrip('.')}.") from None


def read_constants(content: bytes, weights: str = "auto") -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Does so for a graph in memory."""
    found: dict[str, np.ndarray] = {}
    for number, node in wire.fields(memoryview(content)):
        if number != 1:
            continue
        parts = list(wire.fields(wire.as_bytes(node)))
        last = dict(parts)
        if wire.as_text(last.get(2)) != "Const":
            continue
        name = wire.as_text(last.get(1))
        if name.removesuffix(arrays.EMA_SUFFIX).rpartition("/")[2] not in _LEAVES:
            continue
        attributes = [wire.message(value) for field, value in parts if field == 5]
        tensor = next((item.get(2) for item in attributes if wire.as_text(item.get(1)) == "value"), None)
        array = _array(name, wire.message(wire.message(wire.as_bytes(tensor)).get(8, memoryview(b""))))
        if array is not None:
            found[name] = array
        if len(found) > arrays.MAX_TENSORS:
            raise CheckpointError(f"it has more than {arrays.MAX_TENSORS:,} constants")
    chosen, notes = arrays.choose(found, weights)
    return {name: found[stored] for name, stored in chosen.items()}, notes


def _array(name: str, tensor: dict[int, int | memoryview]) -> np.ndarray | None:
    """Returns a ``TensorProto`` as an array; None of a type that weights never have."""
    dtype, shape = arrays.dtype_of(wire.as_int(tensor.get(1))), arrays.shape_of(tensor.get(2))
    if dtype is None:
        return None
    size = arrays.num_bytes(shape, dtype, shown(name))
    content = wire.as_bytes(tensor.get(4))
    if not content and size:
        return _from_values(name, tensor, dtype, shape)
    if len(content) != size:
        raise CheckpointError(f"{shown(name)} has {len(content)} bytes, which do not make the shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape)


def _from_values(
    name: str, tensor: dict[int, int | memoryview], dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Returns an array whose values stand one by one, the last of them repeated; None of integers, of no use here."""
    value = tensor.get(_VALUE_FIELDS.get(dtype, 0))
    if value is None:
        return None
    if isinstance(value, int):  # not packed
        value = memoryview(value.to_bytes(dtype.itemsize, "little"))
    count, total = len(value) // dtype.itemsize, math.prod(shape)
    if not 1 <= count <= total or len(value) % dtype.itemsize:
        raise CheckpointError(f"{shown(name)} has {count} values, which do not make the shape {shape}")
    values = np.frombuffer(value, dtype)
    return np.concatenate([values, np.repeat(values[-1:], total - count)]).reshape(shape)
