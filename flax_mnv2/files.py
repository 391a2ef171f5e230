"""Small files: JSON within a size limit, what is written whole or not at all, and values short enough for a message."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import Any

MAX_JSON_BYTES = 16 * 2**20  # the config.json of ImageNet-21k's classes has 2 MB
_SHOWN = 200
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def read_bytes(path: str | pathlib.Path, *, max_bytes: int) -> bytes:
    """Returns the content of a file.

    Raises an OSError where it is not there or cannot be read, a ValueError where it is larger than ``max_bytes`` or no
    regular file (a device or a pipe would never end).
    """
    path = pathlib.Path(path)
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    if about.st_size > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return path.read_bytes()


def read_text(path: str | pathlib.Path) -> str:
    """Returns the text of a small file; errors as for ``read_bytes``, and a ValueError for what is not UTF-8."""
    return read_bytes(path, max_bytes=MAX_JSON_BYTES).decode("utf-8")


def read_json(path: str | pathlib.Path) -> Any:
    """Returns the value in a small JSON file; errors as for ``read_text`` and ``parse_json``."""
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; raises a ValueError where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def shown(value: Any) -> str:
    """Returns ``repr(value)`` for a message, cut short where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, or nesting without end
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a name to write to, which takes ``path``'s place once all is on disk, with a new file's permissions."""
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


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file; whole or not."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_temporary(path: pathlib.Path) -> bool:
    """Says whether a write that was killed left this file."""
    return _TEMPORARY.fullmatch(path.name) is not None and path.is_file()


def files_below(folder: pathlib.Path, *, exclude: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """Yields the files of a folder and those below it that are not hidden, sorted; none of the folder ``exclude``."""
    for root, folders, names in os.walk(folder):
        here = pathlib.Path(root)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (here / name).resolve() != exclude)
        yield from (here / name for name in sorted(names) if not name.startswith("."))
