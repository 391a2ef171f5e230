"""A CSV as people's tools write it → rows: any delimiter, byte order marks, quotes, index columns of pandas."""

import csv
import io
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.image_table.rows import SPLIT_COLUMNS, TRAIN, VAL, Row, Table, refuse, split_of
from flax_mnv2.errors import DataError

SUFFIXES = (".csv", ".tsv")
_IMAGE_COLUMNS = (  # in the order of preference; else the first column names the image
    *("file_name", "filename", "fname", "image", "image_path", "img_path", "path", "file", "filepath", "img"),
    *("image_name", "image_id", "imageid"),
)
_IS_VALID = {"true": VAL, "1": VAL, "false": TRAIN, "0": TRAIN}  # fastai's column is_valid
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_csv(tree: FileTree, name: str) -> Table:
    """Reads one table; a DataError names the file and the line of what is wrong."""
    place, lines = f"{tree.path}: {name}", _records(tree, name)
    if not lines:
        raise DataError(f"{place} is empty, expected a line of column names and a line for each image.")
    (_, header), *records = lines
    header = [unicodedata.normalize("NFC", cell.strip()) for cell in header]
    _check_header(place, header)
    wrong = [f"line {at} has {len(cells)}" for at, cells in records if len(cells) != len(header)]
    if wrong:
        raise refuse(
            f"{place} has {len(header)} columns, but rows of other lengths",
            wrong,
            "Quote cells that hold commas.",
        )
    lowered = [cell.casefold() for cell in header]
    used = {at for at, cell in enumerate(lowered) if not cell or cell.startswith("unnamed:")}  # pandas' index
    image = next(
        (lowered.index(column) for column in _IMAGE_COLUMNS if column in lowered),
        next(at for at in range(len(header)) if at not in used),
    )
    used.add(image)
    split_at, read_split = _split_column(lowered)
    used.add(split_at)
    targets = {at: cell for at, cell in enumerate(header) if at not in used}
    of_file = split_of_file(name)
    rows, wrong = [], []
    for at, cells in records:
        split = of_file if split_at is None else read_split(cells[split_at])
        if split_at is not None and not split:
            wrong.append(f"line {at}: {cells[split_at]!r}")
        rows.append(
            Row(
                where=f"{PurePosixPath(name).name}, line {at}",
                folder=folder_of(name),
                image=cells[image].strip(),
                split=split,
                cells={column: cells[place].strip() for place, column in targets.items()},
            )
        )
    if wrong:
        words = "true or false" if read_split is _read_is_valid else "train, val or test"
        raise refuse(f"{place}: the column {header[split_at]} has other words than {words}", wrong, "Correct them.")
    if not rows:
        raise DataError(f"{place} has column names and no rows.")
    return Table(name, tuple(targets.values()), rows)


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


def _split_column(lowered: Sequence[str]) -> tuple[int | None, Callable[[str], str]]:
    """Returns where the split of a row stands, if anywhere, and what reads it."""
    for column in SPLIT_COLUMNS:
        if column in lowered:
            return lowered.index(column), split_of
    return (lowered.index("is_valid"), _read_is_valid) if "is_valid" in lowered else (None, split_of)


def _read_is_valid(cell: str) -> str:
    return _IS_VALID.get(cell.strip().casefold(), "")
