"""A library's state dict ↔ tensors by Flax path: names, axis orders, types.

A path begins with the collection: ``params``, ``batch_stats``, or ``counters`` for PyTorch's ``num_batches_tracked``,
which no model of ours reads and which is kept so that a checkpoint comes back as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from flax_mnv2.checkpoint.comparing import USUAL_ADVICE, check_same_tensors
from flax_mnv2.errors import CheckpointError

Path = tuple[str, ...]
Shapes = dict[Path, tuple[int, ...]]
Tensors = dict[Path, np.ndarray]
StateDict = dict[str, np.ndarray]

COUNTERS = "counters"
_TORCH_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "bias"): "bias",
    ("params", "scale"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
    (COUNTERS, "num_batches_tracked"): "num_batches_tracked",
}
_WIDENED = ("float16", "bfloat16")  # every value of theirs is a float32
_ROUNDED = "float64"


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one library calls and lays out tensors."""

    key_of: Callable[[Path], str]  # its name for the tensor at a path
    backbone: str  # a regular expression: how the names of the backbone's tensors begin
    torch_layout: bool = True  # convolutions are OIHW and matrices (out, in); else the arrays lie as in Flax

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape in the library's layout of a tensor with ``shape`` in ours."""
        return tuple(shape[axis] for axis in self._axes(len(shape)))

    def to_flax(self, key: str, array: np.ndarray) -> np.ndarray:
        """OIHW → HWIO and (out, in) → (in, out) where the layout is PyTorch's; float32, or the counter's integers."""
        if array.ndim == 0:
            return array
        return np.ascontiguousarray(to_float32(key, array).transpose(np.argsort(self._axes(array.ndim))))

    def from_flax(self, array: np.ndarray) -> np.ndarray:
        """Returns the inverse of ``to_flax``; types stay."""
        array = np.asarray(array)
        return np.ascontiguousarray(array.transpose(self._axes(array.ndim))).reshape(self.shape_of(array.shape))

    def _axes(self, rank: int) -> tuple[int, ...]:
        turned = {4: (3, 2, 0, 1), 2: (1, 0)} if self.torch_layout else {}
        return turned.get(rank, tuple(range(rank)))


def torch_naming(prefix_of: Callable[[Path], str | None], *, backbone: str) -> Naming:
    """Returns the naming of a PyTorch library, from its name for a module of ours; None keeps our own."""

    def key_of(path: Path) -> str:
        collection, *modules, leaf = path
        return f"{prefix_of(tuple(modules)) or '.'.join(modules)}.{_TORCH_LEAVES[collection, leaf]}"

    return Naming(key_of, backbone)


FLAX_NAMING = Naming("/".join, r"\w+/mobilenet_v2/", torch_layout=False)


def to_float32(key: str, array: np.ndarray) -> np.ndarray:
    """float32 as it is, float16 and bfloat16 exactly, float64 rounded; a CheckpointError for any other type.

    A finite float64 beyond float32's range is an error too.
    """
    if array.dtype == np.float32:
        return array
    if array.dtype.name not in (*_WIDENED, _ROUNDED):
        raise CheckpointError(
            f"Tensor {key} is {array.dtype.name}; weights must be float32, or float16, bfloat16 or float64. Turn it "
            "into float32 in the library that wrote it, where what is lost can be judged."
        )
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    if (np.isinf(converted) & np.isfinite(array)).any():
        raise CheckpointError(f"Tensor {key} is float64 with values beyond float32's range; they are no weights.")
    return converted


def widened(state: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the types in ``state`` that reading turns into float32, all values unchanged."""
    return sorted({array.dtype.name for array in state.values()} & set(_WIDENED))


def is_rounded(state: Mapping[str, np.ndarray]) -> bool:
    """Returns whether ``state`` has float64, which reading rounds to float32."""
    return any(array.dtype.name == _ROUNDED for array in state.values())


def read_state(
    state: Mapping[str, np.ndarray], shapes: Shapes, naming: Naming, *, source: str, advice: str = USUAL_ADVICE
) -> Tensors:
    """Returns the tensors of ``state``, which has a library's names, by path: those of ``shapes``, in Flax's layout.

    A CheckpointError names every tensor that is missing, left over or of another shape or type.
    """
    keys = {path: naming.key_of(path) for path in shapes}
    check_same_tensors(
        found={key: value.shape for key, value in state.items()},
        expected={keys[path]: naming.shape_of(shape) for path, shape in shapes.items()},
        source=source,
        advice=advice,
    )
    for path, key in keys.items():
        if path[0] == COUNTERS and state[key].dtype.kind not in "iu":
            raise CheckpointError(
                f"Tensor {key} is {state[key].dtype.name}; this counter of batches must be an integer, which that type "
                "may have lost. Halve the weights alone: {k: v.half() if v.is_floating_point() else v}."
            )
    return {path: naming.to_flax(key, state[key]) for path, key in keys.items()}


def write_state(tensors: Mapping[Path, np.ndarray], naming: Naming) -> StateDict:
    """Returns the tensors by the library's names and in its layout."""
    return {naming.key_of(path): naming.from_flax(value) for path, value in tensors.items()}


def counter_shapes(shapes: Shapes) -> Shapes:
    """Returns the counters that PyTorch keeps beside the batch norms among ``shapes``."""
    norms = [path[1:-1] for path in shapes if path[0] == "batch_stats" and path[-1] == "mean"]
    return {(COUNTERS, *norm, "num_batches_tracked"): () for norm in norms}
