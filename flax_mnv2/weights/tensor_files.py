"""Files of tensors, ``.safetensors`` and PyTorch's, by these formats' own libraries; nothing in them is executed."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import read_json, replacing, shown
from flax_mnv2.weights.tensorflow import tflite
from flax_mnv2.weights.tensorflow.files import TENSORFLOW_SUFFIXES, check_no_average, find_reader
from flax_mnv2.weights.tensors import StateDict
from flax_mnv2.weights.torch_files import import_torch, is_torch_file, read_torch_file

SAFETENSORS_NAME = "model.safetensors"
PICKLE_NAME = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
# In the order in which they are looked for.
WEIGHT_NAMES = (SAFETENSORS_NAME, SAFETENSORS_NAME + INDEX_SUFFIX, PICKLE_NAME, PICKLE_NAME + INDEX_SUFFIX)
SAFETENSORS_SUFFIX = ".safetensors"
FILE_SUFFIXES = (SAFETENSORS_SUFFIX, ".pth", ".pt", ".bin")  # read and written
# Lightning's, and .pth.tar; others are read by what is in them.
READ_SUFFIXES = (*FILE_SUFFIXES, ".ckpt", ".tar")
MAX_WEIGHTS_BYTES = 2**30  # of one file, far above any MobileNetV2
_MAX_PREFIXES = 8
_AVERAGED_MODELS = "n_averaged"  # torch.optim.swa_utils.AveragedModel counts them beside the weights


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """What one file, or several that belong together, hold: tensors by name, in the file's types."""

    state: StateDict
    notes: tuple[str, ...] = ()  # what was done to find them, in words for the user
    graph: tflite.Graph | None = None  # what a TFLite file is, whose tensors say little by their names

    def unwrapped(self, knows: Callable[[Iterable[str]], bool]) -> TensorFile:
        """Returns the same without the prefixes that all names share, where ``knows`` knows the rest; notes say so.

        Wrappers put them there: ``module.`` DataParallel, ``_orig_mod.`` torch.compile, ``model.`` Lightning, and
        every module of somebody's own that has the network as a part.
        """
        state, notes = dict(self.state), list(self.notes)
        if state.pop(_AVERAGED_MODELS, None) is not None:
            notes.append(f"left out {_AVERAGED_MODELS!r}, the count of averaged models")
        for _ in range(_MAX_PREFIXES):
            if knows(state):
                return TensorFile(state, tuple(notes))
            prefix = next(iter(state), "").partition(".")[0] + "."
            if not state or not all(key.startswith(prefix) for key in state):
                break
            state = {key.removeprefix(prefix): value for key, value in state.items()}
            notes.append(f"dropped {shown(prefix)} before every name")
        return self


def find_weights(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the file, or the index of several, that holds the weights of a Hugging Face folder; safetensors first."""
    return next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)


def read_weights(folder: pathlib.Path, weights: str = "auto") -> TensorFile:
    """Returns tensors by name from ``model.safetensors``, else ``pytorch_model.bin``; one file or shards.

    ``weights`` as for ``read_tensor_file``.
    """
    path = find_weights(folder)
    if path is None:
        raise CheckpointError(
            f"No weights in {folder}; expected {SAFETENSORS_NAME} or {PICKLE_NAME} there, or the {INDEX_SUFFIX[1:]} "
            "of one of them with its shards."
        )
    return _read_shards(path) if path.name.endswith(INDEX_SUFFIX) else read_tensor_file(path, weights)


def read_tensor_file(path: pathlib.Path, weights: str = "auto") -> TensorFile:
    """Returns tensors by name from a file of any kind, of at most ``MAX_WEIGHTS_BYTES``.

    Files of TensorFlow's world are told by their content (``tensorflow.files``), others by their names.

    Weights inside a training checkpoint are taken out of it, which the notes say. ``weights`` is ``"ema"`` for their
    moving average, ``"raw"`` for themselves, ``"auto"`` for the average where there is one.
    """
    if not path.is_file() and (path.exists() or path.suffix in READ_SUFFIXES):
        raise CheckpointError(f"{path} is no regular file; expected a file of weights.")
    reader = find_reader(path)
    if reader is None and path.suffix in TENSORFLOW_SUFFIXES:
        raise CheckpointError(
            f"{path} ends in {path.suffix}, and what is in it is no such file, or cut: copy or download it again."
        )
    if not reader and path.suffix not in READ_SUFFIXES and not (path.is_file() and is_torch_file(path)):
        raise CheckpointError(
            f"{path} ends in {path.suffix or 'nothing'}; expected a file of weights that ends in "
            f"{', '.join(READ_SUFFIXES)}."
        )
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise CheckpointError(
            f"{path} has {size:,} bytes; a file of weights may have at most {MAX_WEIGHTS_BYTES:,}, far above any "
            "MobileNetV2. Check that it is the one you meant."
        )
    if reader is not None:
        return TensorFile(*reader(path, weights))
    if path.suffix != SAFETENSORS_SUFFIX:
        state, notes = read_torch_file(path, weights)
        return TensorFile(_arrays_of(path, state), notes)
    check_no_average(path, weights)
    return _read_safetensors(path)


def write_tensor_file(path: pathlib.Path, state: StateDict) -> None:
    """Writes tensors by name, as safetensors or as a PyTorch state dict by the suffix of ``path``; whole or not."""
    with replacing(path) as temporary:
        if path.suffix == SAFETENSORS_SUFFIX:
            from safetensors.numpy import save_file

            save_file(state, temporary, metadata={"format": "pt"})  # transformers asks for this entry
        else:
            torch = import_torch(f"Writing {path}")
            torch.save({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, temporary)


def to_arrays(state: Mapping[str, Any]) -> StateDict:
    """Returns the arrays of a state dict of tensors or arrays; a CheckpointError unless it maps names to such."""
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError("A state dict must map names to tensors; pass module.state_dict().")
    arrays = {}
    for key, value in state.items():
        try:
            arrays[key] = _to_numpy(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"Tensor {shown(key)} is no plain array: {shown(str(error))}.") from None
    return arrays


def _arrays_of(path: pathlib.Path, state: Mapping[str, Any]) -> StateDict:
    try:
        return to_arrays(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _to_numpy(tensor: Any) -> np.ndarray:
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes  # NumPy's bfloat16; JAX depends on it

    return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


def _read_shards(index: pathlib.Path) -> TensorFile:
    try:
        shard_of = read_json(index)["weight_map"]
        if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
            raise TypeError("weight_map must give a file name for every tensor")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"Cannot read {index}: {error}. Copy or download it again.") from None
    suffix = pathlib.Path(index.name.removesuffix(INDEX_SUFFIX)).suffix
    state: StateDict = {}
    notes: dict[str, None] = {}
    for name in sorted(set(shard_of.values())):
        if pathlib.PurePosixPath(name).name != name or "\\" in name or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} names the shard {shown(name)}; a shard must be a plain file name ending in {suffix}, in "
                "the same folder."
            )
        if not os.path.isfile(index.parent / name):  # which says no to a name that no file can have
            raise CheckpointError(f"{index} names the shard {shown(name)}, which is not there; copy or download it.")
        shard = read_tensor_file(index.parent / name)
        notes |= dict.fromkeys(shard.notes)
        state |= {key: value for key, value in shard.state.items() if shard_of.get(key, name) == name}
    return TensorFile(state, tuple(notes))


def _read_safetensors(path: pathlib.Path) -> TensorFile:
    from safetensors.numpy import load_file

    try:
        return TensorFile(load_file(path))
    except Exception as error:  # SafetensorError, and what NumPy says of shapes and types that it does not have
        raise CheckpointError(
            f"Cannot read {path}: {error}. The file is damaged or incomplete: copy or download it again; or it has a "
            "type that NumPy does not have: convert it to float32 in the library that wrote it."
        ) from None
