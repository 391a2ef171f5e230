"""Reads and writes files of tensors; nothing here executes what a file contains."""

from __future__ import annotations

import pathlib

import numpy as np

from flax_mnv2.errors import CheckpointError

SAFETENSORS_NAME = "model.safetensors"
PICKLE_NAME = "pytorch_model.bin"


def read_weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors by name from ``model.safetensors`` or, in its absence, ``pytorch_model.bin``.

    Raises:
      CheckpointError: neither file is there, or the one that is cannot be read.
    """
    for name, read in ((SAFETENSORS_NAME, read_safetensors), (PICKLE_NAME, read_torch_file)):
        if (folder / name).is_file():
            return read(folder / name)
    raise CheckpointError(f"No weights in {folder}; expected {SAFETENSORS_NAME} or {PICKLE_NAME} there.")


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors by name from a ``.safetensors`` file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {error}. The file is damaged or incomplete; copy or download it again."
        ) from None


def read_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors by name from a PyTorch file, through PyTorch's weights-only unpickler."""
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"Reading {path} needs PyTorch, which is not installed. Install it (pip install torch), "
            f"or save the model as {SAFETENSORS_NAME}."
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types; each means the file is not plain weights
        raise CheckpointError(
            f"Cannot read {path} as plain weights: {type(error).__name__}. It is damaged, or holds Python "
            "objects, which are never executed here. Save the state dict alone, or as safetensors."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is not a state dict (tensors by name); save model.state_dict().")
    return {name: value.to(torch.float32).numpy() for name, value in state.items()}


def write_safetensors(path: pathlib.Path, state: dict[str, np.ndarray]) -> None:
    """Writes tensors by name with the metadata that transformers asks for."""
    from safetensors.numpy import save_file

    save_file(state, path, metadata={"format": "pt"})
