"""What TensorFlow's files have in common: types, shapes, limits, and which of their variables are weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import shown
from flax_mnv2.weights.tensorflow import wire

MAX_TENSORS = 10_000  # of one file; a MobileNetV2 in training has about 1,500 with the slots of its optimizer
MAX_BYTES = 2**30  # of all tensors that are read
_MAX_DIMENSIONS = 8
# tensorflow/core/framework/types.proto: the types that weights, ranges and counters have.
_FLOAT32, _FLOAT64, _INT32, _INT64, _BFLOAT16, _FLOAT16 = 1, 2, 3, 9, 14, 19
DTYPES = {_FLOAT32: "<f4", _FLOAT64: "<f8", _INT32: "<i4", _INT64: "<i8", _BFLOAT16: "bfloat16", _FLOAT16: "<f2"}
EMA_SUFFIX = "/ExponentialMovingAverage"
STEP = "global_step"
# What optimizers and averages without bias keep beside a variable, and the counters: no weights.
_NO_WEIGHT = re.compile(
    rf".*/(Momentum|RMSProp(_1)?|Adam(_1)?|Adagrad|biased|local_step)|{STEP}|beta\d_power", re.DOTALL
)


def dtype_of(code: int) -> np.dtype | None:
    """Returns NumPy's type for a number of TensorFlow's; None for those that weights never have."""
    name = DTYPES.get(code)
    if name == "bfloat16":
        import ml_dtypes  # which JAX depends on

        return np.dtype(ml_dtypes.bfloat16)
    return None if name is None else np.dtype(name)


def shape_of(value: int | memoryview | None) -> tuple[int, ...]:
    """Returns the shape that a ``TensorShapeProto`` says."""
    sizes = [
        wire.as_int(wire.message(item).get(1)) for number, item in wire.fields(wire.as_bytes(value)) if number == 2
    ]
    return tuple(sizes)


def num_bytes(shape: tuple[int, ...], dtype: np.dtype, name: str) -> int:
    """Returns the size of a tensor; a CheckpointError beyond ``MAX_BYTES``."""
    size = math.prod(shape[:_MAX_DIMENSIONS]) * dtype.itemsize
    if len(shape) > _MAX_DIMENSIONS or size > MAX_BYTES:
        raise CheckpointError(f"{name} has the shape {shown(shape)}, more than any weights of a MobileNetV2")
    return size


def choose(names: Iterable[str], weights: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns which variable to take for each weight, by its name without suffix, and notes for the user.

    Moving averages go first; ``weights`` as for ``read_tensor_file``. Slots of optimizers and counters are left out.
    """
    averages = {name.removesuffix(EMA_SUFFIX): name for name in names if name.endswith(EMA_SUFFIX)}
    plain = {name: name for name in names if not name.endswith(EMA_SUFFIX) and not _NO_WEIGHT.fullmatch(name)}
    if weights == "ema" and not averages:
        raise CheckpointError('it has no moving average beside the weights, and weights="ema" was asked for')
    if not averages or weights == "raw":
        return plain, ()
    note = f'took the moving average ({EMA_SUFFIX[1:]}) of {len(averages)} variables; weights="raw" takes the variables'
    return plain | averages, (note,)
