"""Small files: JSON within a size limit, what is written whole or not at all, and values short enough for a message."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any

MAX_JSON_BYTES = 16 * 2**20  # the config.json of ImageNet-21k's classes has 2 MB
MAX_JSON_DEPTH = 32  # far from where Python's recursion ends, for whatever walks the values later
_MAX_BITS = 8192  # of an integer that can still be written in decimal (Python: 4,300 digits)
_SHOWN = 200
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def read_bytes(path: str | pathlib.Path, *, max_bytes: int) -> bytes:
    """The content of a file.

    Raises:
      OSError: it is not there (FileNotFoundError), or cannot be read.
      ValueError: it is no regular file (a device or a pipe would never end), or larger than ``max_bytes``.
    """
    path = pathlib.Path(path)
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    if about.st_size > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return path.read_bytes()


def read_text(path: str | pathlib.Path) -> str:
    """The text of a small file; errors as for ``read_bytes``, and a ValueError for what is not UTF-8."""
    return read_bytes(path, max_bytes=MAX_JSON_BYTES).decode("utf-8")


def read_json(path: str | pathlib.Path) -> Any:
    """The value in a small JSON file; errors as for ``read_text`` and ``parse_json``."""
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is not JSON, nested deeper than ``MAX_JSON_DEPTH``, or has an integer of thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep") from None
    problem = find_unplain(value, finite=False)
    if problem is not None:
        raise ValueError(f"it is {problem}")
    return value


def find_unplain(value: Any, *, finite: bool = True, depth: int = MAX_JSON_DEPTH) -> str | None:
    """What keeps a value from being plain JSON, in words; None where nothing does.

    Args:
      value: mappings, lists and tuples of strings, numbers, booleans and None.
      finite: whether NaN and infinities, which are no JSON, count.
      depth: how deep it may be nested.
    """
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return "an object with a key that is no string"
        inner = list(value.values())
    elif isinstance(value, (list, tuple)):
        inner = value
    elif finite and isinstance(value, float) and not math.isfinite(value):
        return f"a number that is not finite, {value}"
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return "an integer of thousands of digits"
    elif isinstance(value, (str, bool, int, float, type(None))):
        return None
    else:
        return f"a {type(value).__name__}, which JSON does not have"
    if depth == 0:
        return f"nested more than {MAX_JSON_DEPTH} deep"
    problems = (find_unplain(item, finite=finite, depth=depth - 1) for item in inner)
    return next((problem for problem in problems if problem is not None), None)


def shown(value: Any) -> str:
    """``repr(value)`` for a message, cut short where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, or nesting without end
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write to, which takes the place of ``path`` once all is on disk, with a new file's permissions."""
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
    """Whether a write that was killed left this file."""
    return _TEMPORARY.fullmatch(path.name) is not None and path.is_file()
