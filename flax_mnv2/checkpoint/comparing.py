"""Compares what a checkpoint holds with what a model needs, and with what it held when it was saved.

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

CHECKSUM_NAME = "crc32"  # of the JSON object that it is in
ARRAYS_NAME = "arrays"
USUAL_ADVICE = "Check that the config beside the weights is theirs, and that the file is whole."
_SHOWN = 12  # of missing, unexpected and other tensors each


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was saved."""


def check_same_tensors(
    *,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
    owner: str = "the checkpoint has",
    advice: str = USUAL_ADVICE,
) -> None:
    """Raises a CheckpointError that lists every difference, unless names and shapes agree exactly.

    In its message ``source`` is the checkpoint, ``owner`` stands before a shape that was found, ``advice`` at the end.
    """
    missing = [f"{name} {tuple(expected[name])}" for name in sorted(set(expected) - set(found))]
    unexpected = [f"{name} {tuple(found[name])}" for name in sorted(set(found) - set(expected))]
    misshapen = [
        f"{name}: {owner} {tuple(found[name])}, the model needs {tuple(expected[name])}"
        for name in sorted(set(found) & set(expected))
        if tuple(found[name]) != tuple(expected[name])
    ]
    parts = []
    for title, lines in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if lines:
            more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            parts.append(f"  {len(lines)} {title}:")
            parts += [f"    {line}" for line in [*lines[:_SHOWN], *more]]
    if parts:
        raise CheckpointError("\n".join([f"The weights of {source} do not fit the model:", *parts, advice]))


def describe_arrays(tree: Any) -> dict[str, str]:
    """Returns type, shape and CRC-32 of every array of a pytree by path: ``{"params/…": "float32[3,3] 1a2b3c4d"}``.

    With several processes all have to call it: arrays that are split over them are gathered, one at a time.
    """
    return {name: _describe(leaf) for name, leaf in named_leaves(tree).items()}


def check_arrays(tree: Any, saved: Mapping[str, str], source: str | pathlib.Path) -> None:
    """Raises a DamagedCheckpointError with the first differences unless arrays are as ``saved`` describes them."""
    found = describe_arrays(tree)
    names = sorted(name for name in found.keys() | saved.keys() if found.get(name) != saved.get(name))
    if names:
        shown = "; ".join(
            f"{name}: {found.get(name, 'absent')}, saved {saved.get(name, 'nothing')}" for name in names[:2]
        )
        raise DamagedCheckpointError(
            f"{source} is damaged: {len(names)} of {len(saved)} arrays differ from what was saved ({shown})"
        )


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with its own CRC-32 in it."""
    return {**values, CHECKSUM_NAME: _crc_of(values)}


def check_checksum(values: Mapping[str, Any], source: str | pathlib.Path) -> None:
    """Raises a DamagedCheckpointError unless ``values`` are what ``with_checksum`` gave; earlier versions had none."""
    if CHECKSUM_NAME not in values and ARRAYS_NAME not in values:
        return
    if values.get(CHECKSUM_NAME) != _crc_of({name: value for name, value in values.items() if name != CHECKSUM_NAME}):
        raise DamagedCheckpointError(f"{source} is damaged: its checksum is not that of its contents")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns leaves by path, joined by slashes; tuples, lists and named tuples are all the same, as for Orbax."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _describe(leaf: Any) -> str:
    whole = leaf
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        whole = multihost_utils.process_allgather(leaf, tiled=True)
    array = np.ascontiguousarray(whole)
    return f"{array.dtype}{list(leaf.shape)} {zlib.crc32(array.view(np.uint8).reshape(-1)):08x}".replace(", ", ",")


def _crc_of(values: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(values))  # where keys are strings, which sort otherwise than numbers from 10 on
    return f"{zlib.crc32(json.dumps(as_read, sort_keys=True).encode()):08x}"
