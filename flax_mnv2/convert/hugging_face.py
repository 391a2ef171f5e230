"""Hugging Face transformers' MobileNetV2 state dict ↔ Flax variables.

Names correspond one to one: ``mobilenet_v2.layer.3.conv_3x3.convolution.weight`` is
``params/mobilenet_v2/layer_03/conv_3x3/convolution/kernel``. Layouts: convolutions OIHW → HWIO (depthwise
too), linear layers transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from flax_mnv2.convert.diff import check_same_tensors

Path = tuple[str, ...]
StateDict = dict[str, np.ndarray]

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "bias"): "bias",
    ("params", "scale"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# Tensors of a reference checkpoint that have no counterpart, each for a reason:
_COUNTERS = re.compile(r"\.num_batches_tracked$")  # PyTorch's step counter of batch norm, unused at this momentum
_UNUSED_BY_DEEPLAB = re.compile(r"^mobilenet_v2\.conv_1x1\.")  # computed by the reference, read by nobody


def key_of(path: Path) -> str:
    """The reference's name of a Flax variable, whose path begins with its collection."""
    collection, *modules, leaf = path
    names = [re.sub(r"^layer_0?(\d+)$", r"layer.\1", module) for module in modules]
    return ".".join([*names, _LEAVES[collection, leaf]])


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """OIHW → HWIO, (out, in) → (in, out); vectors stay. float32."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return np.ascontiguousarray(array.transpose(axes), dtype=np.float32)


def to_reference_layout(array: np.ndarray) -> np.ndarray:
    """HWIO → OIHW, (in, out) → (out, in); vectors stay. float32."""
    array = np.asarray(array)
    return np.ascontiguousarray(array.transpose(_reference_axes(array.ndim)), dtype=np.float32)


def reference_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the reference's layout of a variable with ``shape`` in ours."""
    return tuple(shape[axis] for axis in _reference_axes(len(shape)))


def _reference_axes(rank: int) -> tuple[int, ...]:
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(rank, tuple(range(rank)))


def from_state_dict(state: Mapping[str, np.ndarray], shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, np.ndarray]:
    """Converts a whole checkpoint, strictly.

    Args:
      state: the reference's tensors by name; those of a bare ``MobileNetV2Model`` lack the ``mobilenet_v2.``
        prefix, which is added.
      shapes: shape of every variable that is wanted, by its path.

    Returns:
      The variables by path, float32.

    Raises:
      CheckpointError: tensors are missing, left over, or of another shape; the message lists them.
    """
    state = with_prefix(state)
    without_last_conv = not any("conv_1x1" in path for path in shapes)  # a segmentation model's
    found = {
        key: value
        for key, value in state.items()
        if not _COUNTERS.search(key) and not (without_last_conv and _UNUSED_BY_DEEPLAB.match(key))
    }
    keys = {path: key_of(path) for path in shapes}
    check_same_tensors(
        found={key: value.shape for key, value in found.items()},
        expected={keys[path]: reference_shape(shape) for path, shape in shapes.items()},
        source="the checkpoint",
    )
    return {path: to_flax_layout(found[key]) for path, key in keys.items()}


def with_prefix(state: Mapping[str, np.ndarray]) -> StateDict:
    """Tensors of a bare backbone get the ``mobilenet_v2.`` prefix that they have inside a model with a head."""
    if any(key.startswith("mobilenet_v2.") for key in state):
        return dict(state)
    heads = ("classifier.", "segmentation_head.")
    return {key if key.startswith(heads) else f"mobilenet_v2.{key}": value for key, value in state.items()}


def to_state_dict(variables: Mapping[Path, np.ndarray]) -> StateDict:
    """Converts variables by path into the reference's tensors by name, counters included."""
    state = {key_of(path): to_reference_layout(value) for path, value in variables.items()}
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    return state | {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}
