"""Keras' files: ``.h5`` of Keras 2 and 3, ``.weights.h5``, and ``.keras``, a zip with one of the latter in it.

Whole models and weights by name have each layer's variables listed in attributes; ``.weights.h5`` has numbered layers
by class, ``layers/conv2d_7/vars/0``, whose names are lost.
"""

from __future__ import annotations

import io
import pathlib
import types
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from flax_mnv2.errors import CheckpointError, how_to_install
from flax_mnv2.files import replacing, shown
from flax_mnv2.weights.tensorflow import arrays
from flax_mnv2.weights.tensors import StateDict

WEIGHTS_SUFFIX = ".weights.h5"
_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_ARCHIVED = "model.weights.h5"
_MAX_DEPTH = 16  # groups in each other
_NO_LAYERS = ("optimizer", "seed_generator")  # groups with variables that are no weights


def is_keras_file(path: pathlib.Path, head: bytes) -> bool:
    """Returns whether a file that begins so is HDF5, or a zip with Keras' weights in it."""
    if head.startswith(_HDF5):
        return True
    try:
        return head.startswith(_ZIP) and _ARCHIVED in zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_keras(path: pathlib.Path) -> StateDict:
    """Returns the variables of a model's layers by name, in the order of its layers where the file tells it.

    Links to other files are not followed. Raises a CheckpointError where the file is damaged, or not Keras'.
    """
    h5py = import_h5py(f"Reading {path}")
    try:
        with open_weights_file(path) as stream, h5py.File(stream, "r") as file:
            root = file["model_weights"] if isinstance(file.get("model_weights"), h5py.Group) else file
            found = _by_layer_names(h5py, root) if _names(root, "layer_names") else _by_number(h5py, root)
            return _read(found)
    except CheckpointError as error:
        raise CheckpointError(f"Cannot read {path}: {error}.") from None
    except Exception as error:  # HDF5's errors come as many types; each means the file is damaged or not Keras'
        raise CheckpointError(
            f"Cannot read {path} as a file of Keras: {shown(str(error))}. It is damaged or incomplete: copy or "
            "download it again."
        ) from None


def write_weights_file(path: pathlib.Path, state: StateDict) -> None:
    """Writes variables by their path in a ``.weights.h5`` file; whole or not."""
    h5py = import_h5py(f"Writing {path}")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, value in state.items():
            file.create_dataset(name, data=value)


def import_h5py(purpose: str) -> types.ModuleType:
    """The library of the format, or a CheckpointError that begins with what it is needed for."""
    try:
        import h5py
    except ImportError:
        raise CheckpointError(f"{purpose} needs h5py, which is not installed. {how_to_install('keras')}.") from None
    return h5py


def open_weights_file(path: pathlib.Path) -> BinaryIO:
    """Opens the HDF5 in a ``.keras`` archive, from memory, or a file itself."""
    if not zipfile.is_zipfile(path):
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(_ARCHIVED).file_size
        if size > arrays.MAX_BYTES:
            raise CheckpointError(f"the {_ARCHIVED} in it has {size:,} bytes, far above any MobileNetV2")
        with archive.open(_ARCHIVED) as member:
            return io.BytesIO(member.read(size))


def _by_layer_names(h5py: types.ModuleType, root: Any) -> Iterator[tuple[str, Any]]:
    for layer in _names(root, "layer_names"):
        group = _follow(h5py, root, layer)
        for name in _names(group, "weight_names"):
            yield name.partition(":")[0], _follow(h5py, group, name)


def _by_number(h5py: types.ModuleType, group: Any, *place: str) -> Iterator[tuple[str, Any]]:
    if len(place) > _MAX_DEPTH:
        raise CheckpointError("it is nested too deep")
    for name in group:
        if name in _NO_LAYERS:
            continue
        item = _follow(h5py, group, name)
        if isinstance(item, h5py.Dataset):
            yield "/".join((*place, name)), item
        else:
            yield from _by_number(h5py, item, *place, name)


def _names(group: Any, attribute: str) -> list[str]:
    """Returns a list of names among the attributes, which Keras splits where it is long."""
    values = []
    parts = [attribute] if attribute in group.attrs else [f"{attribute}{i}" for i in range(arrays.MAX_TENSORS)]
    for part in parts:
        if part not in group.attrs:
            break
        values += list(group.attrs[part])
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]


def _follow(h5py: types.ModuleType, group: Any, name: str) -> Any:
    """Returns what lies at a path inside a group, in this file."""
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{shown(name)} is not in the file, or a link")
        group = group[part]
    return group


def _read(found: Iterator[tuple[str, Any]]) -> StateDict:
    state: StateDict = {}
    total = 0
    for name, dataset in found:
        if name in state:
            raise CheckpointError(f"two variables are called {shown(name)}")
        if dataset.external or dataset.is_virtual:
            raise CheckpointError(f"{shown(name)} lies in another file")
        total += dataset.nbytes
        if total > arrays.MAX_BYTES or len(state) >= arrays.MAX_TENSORS:
            raise CheckpointError(f"it has more than {arrays.MAX_BYTES:,} bytes or {arrays.MAX_TENSORS:,} variables")
        state[name] = np.asarray(dataset[()])
    return state
