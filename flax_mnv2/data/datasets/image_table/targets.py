"""Rows of tables → names of the targets and a vector of each row: 0 and 1 by class, or numbers."""

import ast
import collections
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_mnv2.data.datasets.image_table.rows import Row, Table, refuse
from flax_mnv2.errors import ConfigError, DataError

TAG_COLUMNS = ("labels", "tags", "label", "tag", "classes", "categories")  # of names, in one cell
_BINARY = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
_NOTHING = {"nan", "null", "none", "n/a", "na"}  # what tools write for an empty cell
_NUMBERING = {"id", "index", "idx", "row", "no", "fold", "kfold"}  # columns of numbers that say nothing of the image
_FLOAT32_MAX = float(np.finfo(np.float32).max)

Targets = tuple[tuple[str, ...], np.ndarray]


def multi_label(tables: Sequence[Table], wanted: Sequence[str]) -> Targets:
    """Returns class names and (N, C) float32, 1 where an image has the class.

    A table has a column of 0 and 1 for each class, or one column of names, separated by ``|``, ``;``, ``,`` or space.
    ``wanted`` names the classes in their order; empty takes all: columns as they stand, names sorted.
    """
    columns, rows = _columns(tables), _rows(tables)
    tag_column = next((column for column in columns if column.casefold() in TAG_COLUMNS), None)
    if tag_column is None and len(columns) == 1 and not all(_as_binary(row, columns[0]) is not None for row in rows):
        tag_column = columns[0]
    if tag_column is not None and tag_column not in wanted:
        return _from_tags(rows, tag_column, wanted)
    columns = _chosen(tables, columns, wanted)
    values = {column: [_as_binary(row, column) for row in rows] for column in columns}
    wrong = [
        f"{row.where}, {column}: {_shown(row.cells.get(column))}"
        for at, row in enumerate(rows)
        for column in columns
        if values[column][at] is None
    ]
    if wrong:
        raise refuse(
            "Cells of classes are neither 0 nor 1",
            wrong,
            "Write 0 or 1; if other columns stand among them, name the classes: --config.data.labels=a,b.",
        )
    return columns, np.array([values[column] for column in columns], np.float32).T


def regression(tables: Sequence[Table], wanted: Sequence[str]) -> Targets:
    """Returns names of the targets and their values, (N, C) float32; ``wanted`` names columns, empty takes all."""
    columns, rows = _columns(tables), _rows(tables)
    numbering = [column for column in columns if column.casefold() in _NUMBERING]
    if numbering and not wanted:
        raise ConfigError(
            f"The table has the column {numbering[0]!r}, which looks like a numbering and no target. Name the targets: "
            f"--config.data.labels={','.join(column for column in columns if column not in numbering) or 'a,b'}."
        )
    columns = _chosen(tables, columns, wanted)
    values = np.array([[_as_number(row.cells.get(column)) for column in columns] for row in rows])
    wrong = [
        f"{rows[at].where}, {columns[place]}: {_shown(rows[at].cells.get(columns[place]))}"
        for at, place in np.argwhere(np.isnan(values))
    ]
    if wrong:
        raise refuse(
            "Cells of targets are no finite numbers",
            wrong,
            "Write numbers as 3.14; if other columns stand among them, name the targets: --config.data.labels=a,b.",
        )
    return columns, values.astype(np.float32)


def _columns(tables: Sequence[Table]) -> tuple[str, ...]:
    columns = tables[0].columns
    if not columns:
        raise DataError(f"{tables[0].name} has no column beside the image's. Expected labels or numbers.")
    return columns


def _rows(tables: Sequence[Table]) -> list[Row]:
    return [row for table in tables for row in table.rows]


def _chosen(tables: Sequence[Table], columns: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns to read, all of which every table has."""
    for table in tables:
        lacking = [column for column in wanted or columns if column not in table.columns]
        if lacking:
            raise DataError(
                f"{table.name} has no column {lacking[0]!r}; it has {', '.join(table.columns[:12])}. Name columns that "
                "every table has with --config.data.labels=a,b."
            )
    return tuple(wanted or columns)


def _from_tags(rows: Sequence[Row], column: str, wanted: Sequence[str]) -> Targets:
    lacking = [row.where for row in rows if column not in row.cells]
    if lacking:
        raise refuse(f"Rows have no {column!r}", lacking, "Give each its labels, an empty cell or list where none.")
    tags = _split_cells([row.cells[column] for row in rows], wanted)
    wrong = [f"{row.where}: {tag!r}" for row, own in zip(rows, tags, strict=True) for tag in own if _is_nothing(tag)]
    if wrong:
        raise refuse(
            "Cells of labels say that there is nothing", wrong, "Leave the cell of an image of no class empty."
        )
    names = tuple(wanted) or tuple(sorted({tag for own in tags for tag in own}, key=_natural))
    if not names:
        raise DataError(f"The column {column!r} of {len(rows)} rows names no class at all.")
    index = {name: at for at, name in enumerate(names)}
    wrong = [f"{row.where}: {tag!r}" for row, own in zip(rows, tags, strict=True) for tag in own if tag not in index]
    if wrong:
        raise refuse("Labels are not among config.data.labels", wrong, "Add them there, or correct the table.")
    vectors = np.zeros((len(rows), len(names)), np.float32)
    for at, own in enumerate(tags):
        vectors[at, [index[tag] for tag in own]] = 1.0
    return names, vectors


def _split_cells(cells: Sequence[Any], wanted: Sequence[str]) -> list[list[str]]:
    """Returns the names in every cell, which all have one separator; spaces only where nothing else separates."""
    lists = [cell if isinstance(cell, list) else _as_list(str(cell)) for cell in cells]
    texts = [str(cell) for cell, found in zip(cells, lists, strict=True) if found is None]
    separators = [mark for mark in "|;," if any(mark in text for text in texts)]
    if len(separators) > 1:
        raise DataError(
            f"The column of labels has both {separators[0]!r} and {separators[1]!r} in its cells. Use one of "
            "them between names."
        )
    spaced = any(" " in name for name in wanted)  # then a space is part of a name
    if not separators and not wanted:
        _check_spaces(texts)
    pattern = re.escape(separators[0]) if separators else r"$^" if spaced else r"\s+"
    return [
        [_clean(tag) for tag in (re.split(pattern, str(cell).strip()) if found is None else found) if str(tag).strip()]
        for cell, found in zip(cells, lists, strict=True)
    ]


def _check_spaces(texts: Sequence[str]) -> None:
    """Raises a DataError where cells with spaces may as well be one name each: no word of theirs stands elsewhere."""
    cells = {tuple(sorted(text.split())) for text in texts}
    counts = collections.Counter(word for cell in cells for word in cell)
    several = [cell for cell in cells if len(cell) > 1]
    if several and all(counts[word] == 1 for cell in several for word in cell):
        example = next(text for text in texts if len(text.split()) > 1)
        raise DataError(
            f"The cell {example.strip()!r} may be one name or several. Put | between names, or list "
            "all of them with --config.data.labels=a,b."
        )


def _as_list(text: str) -> list[str] | None:
    """Returns the names in a list as Python or JSON writes it, ``['cat', 'dog']``; None for other text."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        names = text[1:-1].split(",")
    return [str(name) for name in names] if isinstance(names, list) else None


def _as_binary(row: Row, column: str) -> float | None:
    value = row.cells.get(column, 0 if isinstance(next(iter(row.cells.values()), 0), bool) else None)
    return _BINARY.get(str(value).strip().casefold())


def _as_number(value: Any) -> float:
    """Returns NaN for what is no number that float32 holds."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if abs(number) <= _FLOAT32_MAX else math.nan


def _is_nothing(tag: str) -> bool:
    return tag.casefold() in _NOTHING


def _clean(tag: Any) -> str:
    return unicodedata.normalize("NFC", str(tag).strip())


def _natural(name: str) -> tuple[int, int, str]:
    """Sorts numbers by value, before words."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _shown(value: Any) -> str:
    return "nothing" if value in (None, "") else repr(value)[:40]
