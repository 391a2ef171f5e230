"""Reads and writes files of tensors; nothing here executes what a file contains."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import stat
from collections.abc import Iterator

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.untrusted import read_json, shown
from flax_mnv2.weights.safetensors_file import MAX_WEIGHTS_BYTES, read_safetensors
from flax_mnv2.weights.tensors import StateDict
from flax_mnv2.weights.torch_file import import_torch, read_torch_file

SAFETENSORS_NAME = "model.safetensors"
PICKLE_NAME = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
# In the order in which they are looked for.
WEIGHT_NAMES = (SAFETENSORS_NAME, SAFETENSORS_NAME + INDEX_SUFFIX, PICKLE_NAME, PICKLE_NAME + INDEX_SUFFIX)
SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
_DATA_PARALLEL = "module."
_MAX_FILE_NAME = 200
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
        state, notes = read_safetensors(path), ()
    elif path.suffix in PICKLE_SUFFIXES:
        state, notes = read_torch_file(path)
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
        shard_of = read_json(index)["weight_map"]
        if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
            raise TypeError("weight_map must give a file name for every tensor")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"Cannot read {index}: {error}. Copy or download it again.") from None
    suffix = pathlib.Path(index.name.removesuffix(INDEX_SUFFIX)).suffix
    state: StateDict = {}
    notes: list[str] = []
    num_bytes = 0
    for name in sorted(set(shard_of.values())):
        if pathlib.PurePosixPath(name).name != name or "\\" in name or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} names the shard {shown(name)}; a shard must be a plain file name ending in {suffix}, in "
                "the same folder."
            )
        if len(name) > _MAX_FILE_NAME or not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names the shard {shown(name)}, which is not there; copy or download it.")
        num_bytes += (index.parent / name).stat().st_size
        if num_bytes > MAX_WEIGHTS_BYTES:
            raise CheckpointError(
                f"{index} names shards of more than {MAX_WEIGHTS_BYTES:,} bytes; no MobileNetV2 has so many."
            )
        shard = read_tensor_file(index.parent / name)
        notes += [note for note in shard.notes if note not in notes]
        absent = sorted(key for key in shard_of if shard_of[key] == name and key not in shard.state)
        if absent:
            raise CheckpointError(f"{index} says that {name} holds {', '.join(absent[:3])}, which it does not.")
        state |= {key: value for key, value in shard.state.items() if shard_of.get(key) == name}
    return TensorFile(state, tuple(notes))


def write_tensor_file(path: pathlib.Path, state: StateDict) -> None:
    """Writes tensors by name, as safetensors or as a PyTorch state dict by the suffix of ``path``; whole or not."""
    if path.suffix == SAFETENSORS_SUFFIX:
        from safetensors.numpy import save_file

        with _replacing(path) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})  # transformers asks for this entry
        return
    torch = import_torch(f"Writing {path}")
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
        temporary.unlink(missing_ok=True)
        temporary.touch(exist_ok=False)  # a new file: nothing is written through a link that waits there
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
