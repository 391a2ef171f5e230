"""A CSV as people's tools write it → rows: any delimiter, byte order marks, quotes, index columns of pandas."""

import csv
import dataclasses
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.image_table.rows import SPLIT_COLUMNS, TRAIN, VAL, Row, Table, refuse, split_of
from flax_mnv2.errors import DataError

SUFFIXES = (".csv", ".tsv")
_IMAGE_COLUMNS = (  # in the order of preference; else the first column names the image
    *("file_name", "filename", "fname", "image", "image_path", "img_path", "path", "file", "filepath", "img"),
    *("image_name", "image_id", "imageid"),
)
_IS_VALID = "is_valid"  # fastai's column
_IS_VALID_WORDS = {"true": VAL, "1": VAL, "false": TRAIN, "0": TRAIN}
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_csv(tree: FileTree, name: str) -> Table:
    """Reads one table; a DataError names the file and the line of what is wrong."""
    place, lines = f"{tree.path}: {name}", _records(tree, name)
    if not lines:
        raise DataError(f"{place} is empty, expected a line of column names and a line for each image.")
    (_, header), *records = lines
    header = [unicodedata.normalize("NFC", cell.strip()) for cell in header]
    _check_header(place, header)
    if not records:
        raise DataError(f"{place} has column names and no rows.")
    wrong = [f"line {at} has {len(cells)}" for at, cells in records if len(cells) != len(header)]
    if wrong:
        what = f"{place} has {len(header)} columns, but rows of other lengths"
        raise refuse(what, wrong, "Quote cells that hold commas.")
    columns = _Columns.of(header)
    splits = _splits(place, name, columns, records)
    rows = [
        Row(
            where=f"{name}, line {at}",
            folder=folder_of(name),
            image=cells[columns.image].strip(),
            split=split,
            cells={column: cells[place].strip() for place, column in columns.targets.items()},
        )
        for (at, cells), split in zip(records, splits, strict=True)
    ]
    return Table(name, tuple(columns.targets.values()), rows)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What the columns of a table are, by position."""

    image: int
    split: int | None
    split_name: str
    targets: Mapping[int, str]  # all others, with their names

    @classmethod
    def of(cls, header: Sequence[str]) -> "_Columns":
        lowered = [cell.casefold() for cell in header]
        no_targets = {at for at, cell in enumerate(lowered) if not cell or cell.startswith("unnamed:")}  # pandas' index
        named = (lowered.index(column) for column in _IMAGE_COLUMNS if column in lowered)
        image = next(named, next(at for at in range(len(header)) if at not in no_targets))
        split_name = next((column for column in (*SPLIT_COLUMNS, _IS_VALID) if column in lowered), "")
        split = lowered.index(split_name) if split_name else None
        no_targets |= {image, split}
        return cls(image, split, split_name, {at: cell for at, cell in enumerate(header) if at not in no_targets})


def _splits(place: str, name: str, columns: _Columns, records: Sequence[tuple[int, Sequence[str]]]) -> list[str]:
    """Returns the split of every row: by its own cell, else that of the file."""
    if columns.split is None:
        return [split_of_file(name)] * len(records)
    cells = [own[columns.split].strip() for _, own in records]
    fastai = columns.split_name == _IS_VALID
    splits = [_IS_VALID_WORDS.get(cell.casefold(), "") if fastai else split_of(cell) for cell in cells]
    wrong = [f"line {records[at][0]}: {cells[at]!r}" for at, split in enumerate(splits) if not split]
    if wrong:
        words = "true or false" if fastai else "train, val or test"
        raise refuse(f"{place}: the column {columns.split_name} has other words than {words}", wrong, "Correct them.")
    return splits


def folder_of(name: str) -> str:
    """Returns the folder of a file as a prefix of names."""
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else f"{parent}/"


def split_of_file(name: str) -> str:
    """Returns the split that a table's name says, ``valid.csv``, or its folder, ``valid/_classes.csv``; or nothing."""
    path = PurePosixPath(name)
    return split_of(path.stem) or split_of(path.parent.name)


def _records(tree: FileTree, name: str) -> list[tuple[int, list[str]]]:
    """Returns the cells of every line that is not empty, with its number."""
    place, data = f"{tree.path}: {name}", tree.read(name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as CSV in UTF-8."
        ) from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t|", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines, start = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{place}, line {reader.line_num}: {error}. Are its quotes closed?") from error
    return lines


def _check_header(place: str, header: Sequence[str]) -> None:
    if any(cell.lower().endswith(_IMAGE_ENDINGS) for cell in header):
        raise DataError(
            f"{place} begins with {','.join(header)[:80]}, an image. Put a line of column names above: image,…"
        )
    if len(header) < 2:
        raise DataError(
            f"{place} has the one column {header[0]!r}, expected the image's name and one or more columns of labels or "
            "numbers."
        )
    named = [cell.casefold() for cell in header if cell]
    repeated = sorted({cell for cell in named if named.count(cell) > 1})
    if repeated:
        raise DataError(f"{place} has the column {repeated[0]!r} more than once. Rename or remove one.")
