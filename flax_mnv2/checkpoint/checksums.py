"""What a checkpoint's arrays were when they were saved, so that a damaged one is never taken for whole.

Orbax checks that it can decode what it reads, not that it reads what was written: a flipped bit in an array that
compression left as it is would go unnoticed. A CRC of every array is therefore noted beside the arrays.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flax_mnv2.errors import CheckpointError

CHECKSUM_NAME = "crc32"  # of the note itself
ARRAYS_NAME = "arrays"


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was saved."""


def describe_arrays(tree: Any) -> dict[str, str]:
    """Type, shape and CRC-32 of every array of a pytree, as text by path: ``{"params/…": "float32[3,3] 1a2b3c4d"}``.

    With several processes all have to call it: arrays that are split over them are gathered, one at a time.
    """
    return {named: _describe(leaf) for named, leaf in named_leaves(tree).items()}


def check_arrays(tree: Any, noted: Mapping[str, str], source: str | pathlib.Path) -> None:
    """Compares arrays that were read with the note of their save.

    Raises:
      DamagedCheckpointError: they differ; the message names ``source`` and the first arrays.
    """
    found = describe_arrays(tree)
    names = sorted(name for name in found.keys() | noted.keys() if found.get(name) != noted.get(name))
    if names:
        shown = "; ".join(
            f"{name}: {found.get(name, 'absent')}, saved {noted.get(name, 'without it')}" for name in names[:2]
        )
        raise DamagedCheckpointError(
            f"{source} is damaged: {len(names)} of {len(noted)} arrays differ from what was saved ({shown})"
        )


def seal(note: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own CRC-32 in it."""
    return {**note, CHECKSUM_NAME: _crc_of(note)}


def is_sealed(note: Mapping[str, Any]) -> bool:
    """Whether a note is as it was when it was sealed; notes of older versions, which never were, count as such."""
    if CHECKSUM_NAME not in note and ARRAYS_NAME not in note:
        return True
    rest = {name: value for name, value in note.items() if name != CHECKSUM_NAME}
    return note.get(CHECKSUM_NAME) == _crc_of(rest)


def check_seal(note: Mapping[str, Any], source: str | pathlib.Path) -> None:
    """Raises a DamagedCheckpointError unless ``is_sealed``."""
    if not is_sealed(note):
        raise DamagedCheckpointError(f"{source} is damaged: its checksum is not that of its contents")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, joined by slashes; tuples, lists and named tuples are all the same, as Orbax has it."""
    return {"/".join(map(_name, path)): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"Unknown path entry {entry!r}")


def _describe(leaf: Any) -> str:
    array = np.ascontiguousarray(_whole(leaf))
    return f"{array.dtype}{list(leaf.shape)} {zlib.crc32(array.view(np.uint8).reshape(-1)):08x}".replace(", ", ",")


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _crc_of(note: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(note, sort_keys=True).encode()):08x}"
