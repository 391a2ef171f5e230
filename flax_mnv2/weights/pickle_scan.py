"""Looks through the pickles of a PyTorch file for what they name, without unpickling anything.

``torch.load(weights_only=True)`` runs nothing that a file brings along, yet it calls some of Python's own constructors
with the file's arguments: ``bytearray(10**12)`` in a file of a hundred bytes takes all memory. What a state dict and
the training state around it need is a shorter list.
"""

from __future__ import annotations

import pathlib
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

MAX_PICKLE_BYTES = 32 * 2**20  # names and shapes; that of a MobileNetV2 has 0.1 MB
_ALLOWED = re.compile(
    r"torch \w+Storage|torch\.storage (Typed|Untyped)Storage"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\._tensor _rebuild_from_type_v2|torch (Tensor|Size|device)|torch\.nn\.parameter (Parameter|Buffer)"
    r"|torch (bool|u?int\d+|b?float\w+|complex\d+)"
    r"|collections (OrderedDict|defaultdict|Counter)|(builtins|__builtin__) (set|dict|list|int|float)"
)
_ZIP_START = b"PK\x03\x04"  # by which PyTorch tells its two layouts apart
_LEGACY_PICKLES = 5  # magic number, version, machine, the object, names of the storages that follow


class UnsafePickleError(ValueError):
    """A file names something that no state dict needs, or is packed so that it would grow."""


def check_torch_file(path: pathlib.Path) -> None:
    """Looks through a file of either layout of ``torch.save``.

    Raises:
      UnsafePickleError: it names another function or class, has compressed entries or a pickle beyond
        ``MAX_PICKLE_BYTES``.
      ValueError, OSError, zipfile.BadZipFile: it is no such file.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP_START
        file.seek(0)
        if not is_zip:
            for _ in range(_LEGACY_PICKLES):
                _check(_names(file))
            return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            size = path.stat().st_size
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > size:
                raise UnsafePickleError("has compressed entries, which PyTorch never writes and which could grow")
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    if entry.file_size > MAX_PICKLE_BYTES:
                        raise UnsafePickleError(f"has a pickle of {entry.file_size:,} bytes")
                    with archive.open(entry) as pickled:
                        _check(_names(pickled))


def _check(names: Iterator[str]) -> None:
    for name in names:
        if not _ALLOWED.fullmatch(name):
            raise UnsafePickleError(f"names {name.replace(' ', '.')[:100]}")


def _names(file: BinaryIO) -> Iterator[str]:
    """What one pickle names, as ``"module name"``."""
    for opcode, argument, position in pickletools.genops(file):
        if position > MAX_PICKLE_BYTES:
            raise UnsafePickleError(f"has a pickle of more than {MAX_PICKLE_BYTES:,} bytes")
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            yield f"{opcode.name} something"  # a name that is put together while unpickling
