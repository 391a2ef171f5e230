"""What an Orbax folder declares, looked at before anything is read: a few bytes of it can ask for terabytes.

Orbax finds how to read a value by a fixed table of type names and TensorStore opens the arrays below the folder it is
given; its file driver refuses keys with ``..``, so neither a note nor a manifest leads out of it. What remains are
sizes: a chunk of zeros of any size compresses to nothing.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax

from flax_mnv2.files import read_json

METADATA_NAME = "_METADATA"
MAX_WEIGHTS_BYTES = 2**30  # twice what a config.json may describe
MAX_TENSORS = 10_000  # the deepest network has about 1,700, counters included
_BYTES_OF_UNKNOWN = 8  # per value of a type that has no fixed size


def check_notes(path: pathlib.Path) -> None:
    """Raises an OSError or a ValueError unless Orbax's note of the tensors is JSON of bounded size and depth."""
    if not isinstance(read_json(path / METADATA_NAME), dict):
        raise ValueError(f"Orbax's note of its tensors, {METADATA_NAME}, is no JSON object")


def check_declared(tree: Any) -> None:
    """Raises a ValueError if the arrays would take more memory than any MobileNetV2, or are too many.

    Args:
      tree: Orbax's metadata of the arrays; a leaf has ``shape``, ``dtype`` and perhaps ``storage.chunk_shape``.
    """
    leaves = jax.tree.leaves(tree)
    if len(leaves) > MAX_TENSORS:
        raise ValueError(f"it has {len(leaves):,} tensors, more than {MAX_TENSORS:,}")
    needed = sum(map(_bytes, leaves))
    if needed > MAX_WEIGHTS_BYTES:
        raise ValueError(f"its tensors would take {needed:,} bytes, more than {MAX_WEIGHTS_BYTES:,}")


def _bytes(leaf: Any) -> int:
    """Memory that reading an array takes: its own, or that of a chunk of the file where chunks are larger."""
    shapes = [getattr(leaf, "shape", None), getattr(getattr(leaf, "storage", None), "chunk_shape", None)]
    values = max(math.prod(map(int, shape)) for shape in (*shapes, ()) if shape is not None)
    return values * (getattr(getattr(leaf, "dtype", None), "itemsize", 0) or _BYTES_OF_UNKNOWN)
