"""The archives of TensorFlow's model zoos, ``.tar.gz``: a checkpoint in them, or else a frozen graph."""

from __future__ import annotations

import gzip
import io
import pathlib
import tarfile
import zlib
from typing import BinaryIO

import numpy as np

from flax_mnv2.errors import CheckpointError
from flax_mnv2.weights.tensorflow import arrays
from flax_mnv2.weights.tensorflow.bundle import INDEX_SUFFIX, ends_index, read_bundle
from flax_mnv2.weights.tensorflow.frozen_graph import is_graph, read_constants

_GZIP = b"\x1f\x8b"
_TAR, _TAR_AT = b"ustar", 257
_GRAPH_SUFFIX = ".pb"


def is_archive(head: bytes) -> bool:
    """Returns whether a file that begins so is a tar, compressed by gzip or not."""
    return head.startswith(_GZIP) or head[_TAR_AT:].startswith(_TAR)


def read_archive(path: pathlib.Path, weights: str = "auto") -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the weights in an archive by name, and notes; nothing is unpacked to disk.

    Raises a CheckpointError where there is no checkpoint, more than one, or the archive is cut.
    """
    try:
        files = _files(path)
    except (tarfile.TarError, OSError, ValueError, EOFError, zlib.error) as error:  # a CheckpointError too
        raise CheckpointError(
            f"Cannot read {path}: {error}. It is no tar archive, cut or damaged: copy or download it again."
        ) from None
    # By content too: archives that were packed on macOS have files called "._…" beside the real ones.
    indices = [name for name in files if name.endswith(INDEX_SUFFIX) and ends_index(files[name])]
    graphs = [name for name in files if name.endswith(_GRAPH_SUFFIX) and is_graph(files[name])]
    found = indices or graphs
    if len(found) != 1:
        raise CheckpointError(
            f"{path} holds {len(found) or 'no'} TensorFlow checkpoints or frozen graphs"
            f"{': ' + ', '.join(found[:3]) if found else ', or is cut'}; expected one. Unpack it and name the one "
            "you mean."
        )
    [name] = found
    if not indices:
        try:
            state, notes = read_constants(files[name], weights)
        except CheckpointError as error:
            raise CheckpointError(f"Cannot read the frozen graph {name} in {path}: {error}.") from None
        return state, (f"took the frozen graph {name} in the archive", *notes)
    prefix = name.removesuffix(INDEX_SUFFIX)

    def open_shard(data: str) -> io.BytesIO:
        if data not in files:
            raise CheckpointError(f"{data}, which belongs to it, is not in the archive")
        return io.BytesIO(files[data])

    state, notes = read_bundle(prefix, files[name], open_shard, where=path / name, weights=weights)
    return state, (f"took the checkpoint {prefix} in the archive", *notes)


class _Limited:
    """A stream that ends with an error after so many bytes, whatever a header says of what is in it."""

    def __init__(self, stream: BinaryIO, limit: int):
        self._stream, self._left = stream, limit

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise CheckpointError(f"it unpacks to more than {arrays.MAX_BYTES:,} bytes, far above any MobileNetV2")
        self._left -= size
        return self._stream.read(size)


def _files(path: pathlib.Path) -> dict[str, bytes]:
    """Returns what may be weights in an archive, by name, of at most ``MAX_BYTES`` with all that lies before them."""
    files: dict[str, bytes] = {}
    with path.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if raw.peek(len(_GZIP)).startswith(_GZIP) else raw
        with tarfile.open(fileobj=_Limited(stream, arrays.MAX_BYTES), mode="r|") as archive:  # nothing is read twice
            for member in archive:
                name = pathlib.PurePosixPath(member.name).as_posix()
                if member.isfile() and (name.endswith((INDEX_SUFFIX, _GRAPH_SUFFIX)) or ".data-" in name):
                    content = archive.extractfile(member)
                    files[name] = b"" if content is None else content.read(member.size)
    return files
