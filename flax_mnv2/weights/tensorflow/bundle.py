"""TensorFlow's checkpoints, "V2": ``PREFIX.index`` and ``PREFIX.data-00000-of-00001``.

The index is a sorted table of LevelDB's form (tensorflow/core/lib/io/format.h): blocks of entries whose keys leave out
what they share with the key before, found from a footer. Keys are variables' names, values ``BundleEntryProto``
messages (tensorflow/core/protobuf/tensor_bundle.proto), which say where in a data file an array lies. Everything has
a CRC-32C, and is checked against it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.files import read_bytes, shown
from flax_mnv2.weights.tensorflow import arrays, wire

INDEX_SUFFIX = ".index"
_DATA = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_STATE_NAME = "checkpoint"  # a text file that names the latest one of a folder
_STATE = re.compile(r'^model_checkpoint_path:\s*"([^"]+)"', re.MULTILINE)
_MAX_INDEX_BYTES = 16 * 2**20
_MAX_SHARDS = 10_000
_FOOTER_BYTES, _MAGIC = 48, (0xDB4775248B80FB57).to_bytes(8, "little")
_TRAILER_BYTES, _UNCOMPRESSED = 5, 0  # after each block: how it is compressed, and its checksum
_CRC_MASK = 0xA282EAD8
_LITTLE_ENDIAN = 0


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an array lies."""

    dtype: np.dtype | None  # None of a type that weights never have
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_split: bool  # over several entries, as partitioned variables are


def find_index(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the index of the checkpoint that a path means, or None where it means none.

    A path means one that is its index, one of its data files, its prefix, or a folder that has one; a folder of
    several, the one that its file ``checkpoint`` names. A CheckpointError where that is none of them.
    """
    if path.is_dir():
        return _find_in_folder(path)
    data = _DATA.fullmatch(path.name)
    candidates = [path] if path.name.endswith(INDEX_SUFFIX) else []
    candidates += [path.with_name(f"{data[1]}{INDEX_SUFFIX}")] if data else []
    candidates += [] if path.exists() else [path.with_name(f"{path.name}{INDEX_SUFFIX}")]
    return next(filter(is_index, candidates), None)


def _find_in_folder(folder: pathlib.Path) -> pathlib.Path | None:
    found = sorted(filter(is_index, folder.glob(f"*{INDEX_SUFFIX}")))
    with contextlib.suppress(OSError, ValueError):
        state = _STATE.search(read_bytes(folder / _STATE_NAME, max_bytes=_MAX_INDEX_BYTES).decode("utf-8"))
        latest = None if state is None else folder / f"{pathlib.PurePosixPath(state[1]).name}{INDEX_SUFFIX}"
        if latest in found:
            return latest
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} holds {len(found)} TensorFlow checkpoints; name one of them, such as "
            f"{found[-1].with_suffix('')}."
        )
    return found[0] if found else None


def is_index(path: pathlib.Path) -> bool:
    """Returns whether a file ends as a table of LevelDB's does."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(path.stat().st_mode):
                return False
            file.seek(-min(_FOOTER_BYTES, path.stat().st_size), 2)
            return ends_index(file.read())
    except (OSError, ValueError):  # the latter of a name that no file can have
        return False


def ends_index(content: bytes) -> bool:
    """Returns whether the end of a file is that of a table of LevelDB's."""
    return content.endswith(_MAGIC)


def read_checkpoint(index: pathlib.Path, weights: str = "auto") -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the variables of a checkpoint that are weights, by name, and notes; ``weights`` as for ``choose``.

    Raises a CheckpointError where a file is missing, cut or damaged.
    """
    try:
        content = read_bytes(index, max_bytes=_MAX_INDEX_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {index}: {error}.") from None
    with contextlib.ExitStack() as stack:

        def open_shard(name: str) -> BinaryIO:
            path = index.with_name(name)
            if not path.is_file():
                raise CheckpointError(f"{name}, which belongs to it, is not there: copy or download it too")
            return stack.enter_context(path.open("rb"))

        return read_bundle(index.name.removesuffix(INDEX_SUFFIX), content, open_shard, where=index, weights=weights)


def read_bundle(
    prefix: str, index: bytes, open_shard: Callable[[str], BinaryIO], *, where: pathlib.Path, weights: str = "auto"
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Does so for an index in memory; ``open_shard`` opens a data file by its name."""
    try:
        stored, num_shards = read_index(memoryview(index))
        chosen, notes = arrays.choose(stored, weights)
        chosen |= {arrays.STEP: arrays.STEP} if arrays.STEP in stored else {}
        entries = {name: stored[chosen[name]] for name in chosen if stored[chosen[name]].dtype is not None}
        if sum(entry.size for entry in entries.values()) > arrays.MAX_BYTES:
            raise CheckpointError(f"its tensors have more than {arrays.MAX_BYTES:,} bytes")
        state: dict[str, np.ndarray] = {}
        for shard in sorted({entry.shard for entry in entries.values()}):
            file = open_shard(f"{prefix}.data-{shard:05}-of-{num_shards:05}")
            state |= {name: _read_array(file, name, entry) for name, entry in entries.items() if entry.shard == shard}
    except CheckpointError as error:
        raise CheckpointError(f"Cannot read the TensorFlow checkpoint {where}: {error}.") from None
    step = state.pop(arrays.STEP, None)
    if step is not None and step.shape == ():
        notes += (f"trained for {int(step):,} steps ({arrays.STEP})",)
    return {name: state[name] for name in entries if name != arrays.STEP}, notes


def read_index(index: memoryview) -> tuple[dict[str, Entry], int]:
    """Returns the entries of an index by name, and the number of data files."""
    if len(index) < _FOOTER_BYTES or index[-len(_MAGIC) :] != _MAGIC:
        raise CheckpointError("its index is cut, or none")
    footer = index[-_FOOTER_BYTES:]
    position = 0
    for _ in range(2):  # of the unused meta index, skipped
        _, position = wire.varint(footer, position)
    blocks = _block(index, *_handle(footer, position))
    entries: dict[str, Entry] = {}
    num_shards = 1
    for _, handle in _rows(blocks):
        for key, value in _rows(_block(index, *_handle(handle, 0))):
            if not key:
                header = wire.message(value)
                num_shards = wire.as_int(header.get(1))
                if wire.as_int(header.get(2)) != _LITTLE_ENDIAN or not 1 <= num_shards <= _MAX_SHARDS:
                    raise CheckpointError("it was written by a big-endian machine, or its header is damaged")
                continue
            entries[key.decode("utf-8", errors="replace")] = _entry(value)
            if len(entries) > arrays.MAX_TENSORS:
                raise CheckpointError(f"it has more than {arrays.MAX_TENSORS:,} variables")
    return entries, num_shards


def _entry(value: memoryview) -> Entry:
    found = wire.message(value)
    return Entry(
        dtype=arrays.dtype_of(wire.as_int(found.get(1))),
        shape=arrays.shape_of(found.get(2)),
        shard=wire.as_int(found.get(3)),
        offset=wire.as_int(found.get(4)),
        size=wire.as_int(found.get(5)),
        crc=wire.as_int(found.get(6)),
        is_split=7 in found,
    )


def _handle(data: memoryview, position: int) -> tuple[int, int]:
    """Returns offset and size of a block."""
    offset, position = wire.varint(data, position)
    size, _ = wire.varint(data, position)
    return offset, size


def _block(index: memoryview, offset: int, size: int) -> memoryview:
    end = offset + size
    if end + _TRAILER_BYTES > len(index):
        raise CheckpointError("its index is cut")
    if index[end] != _UNCOMPRESSED:
        raise CheckpointError("its index is compressed, which TensorFlow does not do; it is damaged, or none")
    if unmasked(int.from_bytes(index[end + 1 : end + _TRAILER_BYTES], "little")) != crc32c(index[offset : end + 1]):
        raise CheckpointError("its index is damaged (CRC-32C)")
    return index[offset:end]


def _rows(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields key and value of each entry in a block."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise CheckpointError("its index is damaged")
    position, key = 0, b""
    while position < end:
        shared, position = wire.varint(block, position)
        unshared, position = wire.varint(block, position)
        size, position = wire.varint(block, position)
        if shared > len(key) or unshared + size > end - position:
            raise CheckpointError("its index is damaged")
        key = key[:shared] + bytes(block[position : position + unshared])
        position += unshared
        yield key, block[position : position + size]
        position += size


def _read_array(file: BinaryIO, name: str, entry: Entry) -> np.ndarray:
    if entry.is_split:
        raise CheckpointError(f"{shown(name)} is stored in parts (a partitioned variable), which is not read here")
    if arrays.num_bytes(entry.shape, entry.dtype, shown(name)) != entry.size:
        raise CheckpointError(f"{shown(name)} has {entry.size} bytes, which do not make the shape {entry.shape}")
    file.seek(0, 2)
    if entry.offset + entry.size > file.tell():
        raise CheckpointError(f"its data file ends before {shown(name)}: copy or download it again")
    file.seek(entry.offset)
    data = file.read(entry.size)
    if crc32c(data) != unmasked(entry.crc):
        raise CheckpointError(f"{shown(name)} is damaged (CRC-32C): copy or download it again")
    return np.frombuffer(data, entry.dtype).reshape(entry.shape)


def crc32c(data: bytes | memoryview) -> int:
    """Returns the CRC-32C of some bytes."""
    import google_crc32c

    return google_crc32c.value(bytes(data))


def unmasked(crc: int) -> int:
    """Returns a CRC as it was before LevelDB's masking."""
    rotated = (crc - _CRC_MASK) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
