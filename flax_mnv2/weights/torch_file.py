"""Reads the state dict in a PyTorch file; objects in it are never made, code in it never runs."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.weights.pickle_scan import UnsafePickleError, check_torch_file
from flax_mnv2.weights.safetensors_file import MAX_TENSORS, check_size
from flax_mnv2.weights.tensors import StateDict

_NESTED_UNDER = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights


def read_torch_file(path: pathlib.Path) -> tuple[StateDict, tuple[str, ...]]:
    """Tensors by name, and what was done to find them, in words for the user.

    PyTorch's own restricted reader does the work (``weights_only``: tensors and plain containers), once ``pickle_scan``
    has found nothing else named. It takes sizes from the file, so these are held against what the file really has: no
    zip entry is compressed, and no array has more values than lie there.

    Raises:
      CheckpointError: PyTorch is not installed, or the file is damaged, too large, or no state dict.
    """
    torch = import_torch(f"Reading {path}")
    try:
        size = check_size(path)
        check_torch_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises many types; each means the file is not plain weights
        reason = f"it {error}" if isinstance(error, UnsafePickleError) else type(error).__name__
        raise CheckpointError(
            f"Cannot read {path} as plain weights: {reason}. It is damaged, or holds Python "
            "objects, which are never executed here. Save the state dict alone, or as safetensors."
        ) from None

    def is_state_dict(value: object) -> bool:
        return isinstance(value, dict) and all(
            isinstance(key, str) and isinstance(item, torch.Tensor) for key, item in value.items()
        )

    notes: tuple[str, ...] = ()
    if isinstance(loaded, dict) and not is_state_dict(loaded):
        nested = next((name for name in _NESTED_UNDER if is_state_dict(loaded.get(name))), None)
        if nested is not None:
            loaded, notes = loaded[nested], (f"took the weights from {nested!r} in the file",)
    if not is_state_dict(loaded):
        raise CheckpointError(
            f"{path} is not a state dict (tensors by name), alone or under {', '.join(_NESTED_UNDER)}; "
            "save model.state_dict()."
        )
    if len(loaded) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(loaded):,} tensors, more than {MAX_TENSORS:,}; it is no MobileNetV2.")
    declared = sum(tensor.numel() * tensor.element_size() for tensor in loaded.values())
    if declared > size:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and its tensors would have {declared:,}: the same values are to be read many "
            "times. Save the tensors with .clone() first."
        )
    try:
        return {key: tensor_to_numpy(value) for key, value in loaded.items()}, notes
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds a tensor that is no plain array: {error}.") from None


def tensor_to_numpy(tensor: Any) -> np.ndarray:
    """A PyTorch tensor as it is, bfloat16 too; anything else through ``np.asarray``."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes  # NumPy's bfloat16; JAX depends on it

    return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


def import_torch(purpose: str):
    """PyTorch.

    Args:
      purpose: how the message begins.

    Raises:
      CheckpointError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{purpose} needs PyTorch, which is not installed. Install it (pip install torch), or use a "
            ".safetensors file."
        ) from None
    return torch
