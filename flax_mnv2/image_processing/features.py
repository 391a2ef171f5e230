"""What the image processor gives: arrays by name, which go into a model as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.errors import ConfigError, DataError, UserError
from flax_mnv2.files import shown

TENSOR_TYPES = ("np", "jax", "pt", "tf")


class BatchFeature(dict):
    """A dict whose entries are also attributes: ``pixel_values``, and ``labels`` where maps were given.

    JAX takes it apart as it does a dict, and ``model.apply(variables, **features)`` passes both to a model.
    """

    def __init__(self, data: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), tensor_type: str | None = None):
        super().__init__(data)
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here; there are {', '.join(self)}") from None

    @property
    def data(self) -> dict[str, Any]:
        """The dict, which it is itself."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Makes one tensor of every list of arrays, in place, and returns itself.

        Args:
          tensor_type: ``"np"``, ``"jax"``, ``"pt"`` or ``"tf"``; None leaves everything as it is.

        Raises:
          DataError: arrays of several shapes.
          UserError: the package is not installed.
        """
        if tensor_type is not None:
            self.update({name: _to_tensor(arrays, tensor_type, name) for name, arrays in self.items()})
        return self

    def to(self, *args: Any, device: Any = None, dtype: Any = None) -> BatchFeature:
        """Moves the values to a device and casts those that are floats, in place, and returns itself.

        Args:
          *args: a device, a dtype, or both.
          device: for JAX and NumPy arrays a device or a sharding of JAX, or a name such as ``"cpu"`` or ``"gpu:1"``;
            for PyTorch's tensors what PyTorch takes. NumPy arrays become JAX's.
          dtype: of NumPy, JAX or PyTorch, or its name. Integers, such as ``labels``, keep theirs.

        Raises:
          ConfigError: no such device or dtype.
        """
        for value in args:
            if value is not None and _dtype_name(value) is None:
                device = value
            elif value is not None:
                dtype = value
        try:
            name = None if dtype is None else _dtype_name(dtype)
            if dtype is not None and name is None:
                raise TypeError(f"{shown(dtype)} is no dtype")
            self.update({key: _moved(value, device, name) for key, value in self.items()})
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            wanted = ", ".join(shown(value) for value in (device, dtype) if value is not None)
            raise ConfigError(
                f"Features cannot be moved to {wanted}: {str(error).splitlines()[0]}. Expected a device or a dtype of "
                "the library that made them, such as 'cpu' or 'bfloat16'."
            ) from None
        return self


jax.tree_util.register_pytree_node(
    BatchFeature,
    lambda features: (tuple(features.values()), tuple(features)),
    lambda names, values: BatchFeature(zip(names, values, strict=True)),
)


def _to_tensor(arrays: Any, kind: str, name: str) -> Any:
    arrays = [np.asarray(array) for array in arrays]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise DataError(
            f"{name} must have one shape to make one tensor; found {', '.join(map(str, shapes[:4]))}. Set "
            'do_center_crop=True, give size={"height": …, "width": …}, or leave return_tensors=None for a list.'
        )
    stacked = np.stack(arrays)
    if kind == "np":
        return stacked
    if kind == "jax":
        return jnp.asarray(stacked)
    try:
        if kind == "pt":
            import torch

            return torch.from_numpy(stacked)
        import tensorflow

        return tensorflow.convert_to_tensor(stacked)
    except ImportError:
        package = "torch" if kind == "pt" else "tensorflow"
        raise UserError(
            f"return_tensors={kind!r} needs the package {package}, which is not installed. Install it, or use "
            "return_tensors='np' or 'jax'."
        ) from None


def _is_torch(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _dtype_name(value: Any) -> str | None:
    """Returns what all libraries call a dtype; None for what is none, such as a device."""
    if _is_torch(value):
        return str(value).removeprefix("torch.") if type(value).__name__ == "dtype" else None
    try:
        return jnp.dtype(value).name
    except TypeError:
        return None


def _moved(value: Any, device: Any, dtype: str | None) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device, dtype) for item in value)
    if _is_torch(value):
        import torch

        cast = getattr(torch, dtype) if dtype is not None and value.is_floating_point() else value.dtype
        return value.to(device=value.device if device is None else device, dtype=cast)
    if dtype is not None and jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(dtype)
    return value if device is None else jax.device_put(value, _jax_device(device))


def _jax_device(device: Any) -> Any:
    """Returns the device of a name such as ``"gpu:1"`` or of a number; other things as they are."""
    if isinstance(device, int):
        return jax.local_devices()[device]
    if isinstance(device, str) or _is_torch(device):
        platform, _, index = str(device).partition(":")
        return jax.local_devices(backend=platform)[int(index or 0)]
    return device
