"""Reads a ``.safetensors`` file after its header was checked against the size of the file.

The format (github.com/huggingface/safetensors, "Format"): eight bytes with the length of a JSON header, the header, the
data. The header gives type, shape and place of every tensor; places follow each other without gap or overlap.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from flax_mnv2.errors import CheckpointError
from flax_mnv2.untrusted import shown
from flax_mnv2.weights.tensors import StateDict

MAX_WEIGHTS_BYTES = 2**30  # of one file, twice what a config.json may describe
MAX_HEADER_BYTES = 4 * 2**20  # MobileNetV2's has 40 kB
MAX_TENSORS = 10_000  # the deepest network has about 1,700, counters included
MAX_NAME_LENGTH = 500
_MAX_RANK = 8
_METADATA = "__metadata__"
# Bits of one value, for those types that NumPy and safetensors agree about.
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}


def read_safetensors(path: pathlib.Path) -> StateDict:
    """Tensors by name; no more memory is used than the file has bytes, and at most ``MAX_WEIGHTS_BYTES``.

    Raises:
      CheckpointError: the file is damaged, too large, not what it declares, or has a type that is no weight's.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        check_size(path)
        _check_header(path)
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"Cannot read {path}: {error}. The file is damaged or incomplete; copy or download it again."
        ) from None


def check_size(path: pathlib.Path) -> int:
    """Bytes of a file of weights.

    Raises:
      CheckpointError: it is larger than any MobileNetV2, or no regular file.
      OSError: it cannot be looked at.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file; expected a file of weights.")
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise CheckpointError(
            f"{path} has {size:,} bytes; a file of weights may have at most {MAX_WEIGHTS_BYTES:,}, far above any "
            "MobileNetV2. Check that it is the one you meant."
        )
    return size


def _check_header(path: pathlib.Path) -> None:
    """Raises a ValueError or a CheckpointError unless types, shapes and places agree and the file holds them all."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= size - 8:
            raise ValueError(f"its header should have {length:,} bytes, and the file has {size:,}")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repeats)
        except RecursionError:
            raise ValueError("its header is nested without end") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    tensors = {name: entry for name, entry in header.items() if name != _METADATA}
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"its header names {len(tensors):,} tensors, more than {MAX_TENSORS:,}")
    places = sorted(_place(path, name, entry) for name, entry in tensors.items())
    end = 0
    for first, last in places:
        if first != end:
            raise ValueError("the places of its tensors overlap or leave gaps")
        end = last
    if end != size - 8 - length:
        raise ValueError(f"its tensors need {end:,} bytes, and it has {size - 8 - length:,}")


def _place(path: pathlib.Path, name: str, entry: Any) -> tuple[int, int]:
    """Where the bytes of a tensor begin and end."""
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"the name of a tensor has {len(name):,} characters, more than {MAX_NAME_LENGTH}")
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} has {shown(entry)} for type, shape and place")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > _MAX_RANK:
        raise ValueError(f"tensor {name!r} has the shape {shown(shape)}")
    if not _are_sizes(place) or len(place) != 2 or place[0] > place[1]:
        raise ValueError(f"tensor {name!r} has the place {shown(place)}")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise CheckpointError(
            f"{path} holds a tensor of an unsupported type, {shown(dtype)} of {name!r}; weights must be float32, "
            "float16 or bfloat16. Turn it into one of these in the library that wrote it."
        )
    if math.prod(shape) * _BITS[dtype] != (place[1] - place[0]) * 8:
        raise ValueError(f"tensor {name!r} of shape {shown(shape)} has {place[1] - place[0]:,} bytes")
    return place[0], place[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 for value in values
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("its header has a name twice")
    return values
