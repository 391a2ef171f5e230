"""What a stranger may have written: JSON of bounded size and depth, and values short enough for a message."""

from __future__ import annotations

import json
import math
import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Any

MAX_JSON_BYTES = 16 * 2**20  # the config.json of ImageNet-21k's classes has 2 MB
MAX_JSON_DEPTH = 32  # far from where Python's recursion ends, for whatever walks the values later
_MAX_BITS = 8192  # of an integer that can still be written in decimal (Python: 4,300 digits)
_SHOWN = 200


def read_bytes(path: str | pathlib.Path, *, max_bytes: int) -> bytes:
    """The content of a file; never waits and never reads more than ``max_bytes``.

    Args:
      path: a regular file, or a link to one, as huggingface_hub's cache has them.
      max_bytes: the largest size that is read.

    Raises:
      OSError: it is not there (FileNotFoundError), or cannot be read.
      ValueError: it is no regular file (a device or a pipe would never end), or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer must not block
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return content


def read_text(path: str | pathlib.Path, *, max_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of a small file; arguments and errors as for ``read_bytes``.

    Raises:
      ValueError: also for what is not UTF-8.
    """
    return read_bytes(path, max_bytes=max_bytes).decode("utf-8")


def read_json(path: str | pathlib.Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file of bounded size and depth; arguments and errors as for ``read_text``.

    Raises:
      ValueError: also for what is not JSON, or nested deeper than ``MAX_JSON_DEPTH``.
    """
    return parse_json(read_text(path, max_bytes=max_bytes))


def parse_json(text: str) -> Any:
    """The value of a JSON text, nested at most ``MAX_JSON_DEPTH`` deep.

    Raises:
      ValueError: it is not JSON, nested deeper, or has an integer of thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep") from None
    problem = find_unplain(value, finite=False)
    if problem is not None:
        raise ValueError(f"it is {problem}")
    return value


def find_unplain(value: Any, *, finite: bool = True) -> str | None:
    """What keeps a value from being plain JSON, in words; None where nothing does.

    Args:
      value: mappings, lists and tuples of strings, numbers, booleans and None.
      finite: whether NaN and infinities, which are no JSON, count.
    """
    level, depth = [value], 0
    while level:
        deeper = []
        for item in level:
            if isinstance(item, Mapping):
                if not all(isinstance(key, str) for key in item):
                    return "an object with a key that is no string"
                deeper += item.values()
            elif isinstance(item, (list, tuple)):
                deeper += item
            elif finite and isinstance(item, float) and not math.isfinite(item):
                return f"a number that is not finite, {item}"
            elif isinstance(item, int) and item.bit_length() > _MAX_BITS:
                return "an integer of thousands of digits"
            elif not isinstance(item, (str, bool, int, float, type(None))):
                return f"a {type(item).__name__}, which JSON does not have"
        level, depth = deeper, depth + 1
        if depth > MAX_JSON_DEPTH + 1:
            return f"nested more than {MAX_JSON_DEPTH} deep"
    return None


def shown(value: Any) -> str:
    """``repr(value)`` for a message, cut short where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, or nesting without end
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"
