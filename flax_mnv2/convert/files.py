"""Reads and writes files of tensors; nothing here executes what a file contains."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np

from flax_mnv2.convert.tensors import StateDict
from flax_mnv2.errors import CheckpointError

SAFETENSORS_NAME = "model.safetensors"
PICKLE_NAME = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
# In the order in which they are looked for.
WEIGHT_NAMES = (SAFETENSORS_NAME, SAFETENSORS_NAME + INDEX_SUFFIX, PICKLE_NAME, PICKLE_NAME + INDEX_SUFFIX)
SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
_NESTED_UNDER = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights
_DATA_PARALLEL = "module."
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """What one file holds.

    Attributes:
      state: tensors by name, in the file's types.
      notes: what was done to find them, in words for the user.
    """

    state: StateDict
    notes: tuple[str, ...] = ()


def find_weights(folder: pathlib.Path) -> pathlib.Path | None:
    """The file, or the index of several, that holds the weights of a Hugging Face folder; safetensors first."""
    return next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)


def read_weights(folder: pathlib.Path) -> TensorFile:
    """Tensors by name from ``model.safetensors`` or, in its absence, ``pytorch_model.bin``; one file or shards.

    Raises:
      CheckpointError: no such file is there, or the one that is cannot be read.
    """
    path = find_weights(folder)
    if path is None:
        raise CheckpointError(
            f"No weights in {folder}; expected {SAFETENSORS_NAME} or {PICKLE_NAME} there, or the {INDEX_SUFFIX[1:]} "
            "of one of them with its shards."
        )
    return _read_shards(path) if path.name.endswith(INDEX_SUFFIX) else read_tensor_file(path)


def read_tensor_file(path: pathlib.Path) -> TensorFile:
    """Tensors by name from a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file.

    Weights inside a training checkpoint are taken out of it, and the ``module.`` that PyTorch's ``DataParallel``
    puts before every name is dropped; the notes say so.

    Raises:
      CheckpointError: the suffix is unknown, or the file is damaged, or is no state dict.
    """
    if path.suffix == SAFETENSORS_SUFFIX:
        state, notes = _read_safetensors(path), ()
    elif path.suffix in PICKLE_SUFFIXES:
        state, notes = _read_torch_file(path)
    else:
        raise CheckpointError(
            f"{path} ends in {path.suffix or 'nothing'}; expected a file of weights that ends in "
            f"{', '.join((SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES))}."
        )
    if state and all(key.startswith(_DATA_PARALLEL) for key in state):
        state = {key.removeprefix(_DATA_PARALLEL): value for key, value in state.items()}
        notes = (*notes, f"dropped {_DATA_PARALLEL!r} before every name")
    return TensorFile(state, notes)


def _read_shards(index: pathlib.Path) -> TensorFile:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
            raise TypeError("weight_map must give a file name for every tensor")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {index}: {error}. Copy or download it again.") from None
    suffix = pathlib.Path(index.name.removesuffix(INDEX_SUFFIX)).suffix
    state: StateDict = {}
    notes: list[str] = []
    for name in sorted(set(shard_of.values())):
        if pathlib.PurePosixPath(name).name != name or "\\" in name or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} names the shard {name!r}; a shard must be a plain file name ending in {suffix}, in the same "
                "folder."
            )
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names the shard {name}, which is not there; copy or download it.")
        shard = read_tensor_file(index.parent / name)
        notes += [note for note in shard.notes if note not in notes]
        absent = sorted(key for key in shard_of if shard_of[key] == name and key not in shard.state)
        if absent:
            raise CheckpointError(f"{index} says that {name} holds {', '.join(absent[:3])}, which it does not.")
        state |= {key: value for key, value in shard.state.items() if shard_of.get(key) == name}
    return TensorFile(state, tuple(notes))


def _read_safetensors(path: pathlib.Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (KeyError, AttributeError) as error:  # how safetensors looks a type up, in its table or in NumPy
        name = error.name if isinstance(error, AttributeError) else error.args[0]
        raise CheckpointError(
            f"{path} holds a tensor of an unsupported type, {name}; weights must be float32, float16 or bfloat16. Turn "
            "it into one of these in the library that wrote it."
        ) from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"Cannot read {path}: {error}. The file is damaged or incomplete; copy or download it again."
        ) from None


def _read_torch_file(path: pathlib.Path) -> tuple[StateDict, tuple[str, ...]]:
    torch = _import_torch(f"Reading {path}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types; each means the file is not plain weights
        raise CheckpointError(
            f"Cannot read {path} as plain weights: {type(error).__name__}. It is damaged, or holds Python "
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


def write_tensor_file(path: pathlib.Path, state: StateDict) -> None:
    """Writes tensors by name, as safetensors or as a PyTorch state dict by the suffix of ``path``; whole or not."""
    if path.suffix == SAFETENSORS_SUFFIX:
        from safetensors.numpy import save_file

        with _replacing(path) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})  # transformers asks for this entry
        return
    torch = _import_torch(f"Writing {path}")
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    with _replacing(path) as temporary:
        torch.save(tensors, temporary)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file; whole or not."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write to, which takes the place of ``path`` once all is on disk, with a new file's permissions."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # safetensors puts a file of its own there, for the owner alone
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: pathlib.Path) -> bool:
    """Whether a write that was killed left this file."""
    return _TEMPORARY.fullmatch(path.name) is not None and path.is_file()


def _import_torch(purpose: str):
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{purpose} needs PyTorch, which is not installed. Install it (pip install torch), or use a "
            f"{SAFETENSORS_SUFFIX} file."
        ) from None
    return torch
