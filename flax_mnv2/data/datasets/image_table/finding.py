"""Which files of a folder or archive are the tables, and which image a row means."""

import collections
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from absl import logging

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.image_table.csv_file import SUFFIXES, read_csv, split_of_file
from flax_mnv2.data.datasets.image_table.json_files import SUFFIX, read_json_files
from flax_mnv2.data.datasets.image_table.rows import SPLITS, TEST, TRAIN, Row, Table, refuse, split_of
from flax_mnv2.errors import ConfigError, DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic")
_NO_TABLE = ("sample_submission",)  # Kaggle's, whose numbers mean nothing


def read_tables(tree: FileTree, table: str) -> list[Table]:
    """Reads the table called ``table``, or those that are found: one CSV, one for each split, or JSON files.

    Among tables by split, one for ``test`` without the columns of train is left out: competitions hide their answers.
    """
    if table:
        return [_named(tree, table)]
    names = [name for name in tree.names() if not any(part.startswith(".") for part in name.split("/"))]
    found = [
        name
        for name in names
        if name.lower().endswith(SUFFIXES) and not PurePosixPath(name).stem.lower().startswith(_NO_TABLE)
    ]
    by_split: dict[str, list[str]] = collections.defaultdict(list)
    for name in found:
        if split_of_file(name):
            by_split[split_of_file(name)].append(name)
    if by_split and set(map(len, by_split.values())) == {1} and TRAIN in by_split:
        return _without_hidden_answers([read_csv(tree, by_split[split][0]) for split in SPLITS if split in by_split])
    if len(found) > 1:
        raise ConfigError(
            f"{tree.path} holds several tables: {', '.join(found[:6])}. Name the one to read with --config.data.table, "
            "or call them train.csv, val.csv and test.csv."
        )
    if found:
        return [read_csv(tree, found[0])]
    described = [name for name in names if name.lower().endswith(SUFFIX)]
    if not described:
        raise DataError(
            f"{tree.path} holds no table: no CSV with a column of image names, and no JSON file for each image. Put it "
            "there, or name it with --config.data.table."
        )
    return [read_json_files(tree, described)]


def _named(tree: FileTree, table: str) -> Table:
    names = tree.names()
    inside = PurePosixPath(table.strip("/")).as_posix()
    if inside in names:
        return read_csv(tree, inside) if not inside.lower().endswith(SUFFIX) else read_json_files(tree, [inside])
    below = [name for name in names if name.startswith(f"{inside}/") and name.lower().endswith(SUFFIX)]
    if not below:
        raise ConfigError(
            f"config.data.table is {table!r}, which is neither a file nor a name in {tree.path}. Give the path of a "
            "CSV, or of a folder of JSON files."
        )
    return read_json_files(tree, below)


def _without_hidden_answers(tables: Sequence[Table]) -> list[Table]:
    """Returns the tables, train first, but for one of test that lacks columns of train."""
    columns, last = set(tables[0].columns), tables[-1]
    if last.rows[0].split != TEST or columns <= set(last.columns):
        return list(tables)
    logging.warning("Left out %s, which has no column %s.", last.name, ", ".join(sorted(columns - set(last.columns))))
    return list(tables[:-1])


class Images:
    """The images of a folder or archive, found by the names that tables give them."""

    def __init__(self, tree: FileTree):
        self._tree = tree
        self._by_end: dict[str, list[str]] = collections.defaultdict(list)  # file name, with and without its ending
        self.names = frozenset(name for name in tree.names() if name.lower().endswith(IMAGE_SUFFIXES))
        for name in sorted(self.names):
            path = PurePosixPath(_normal(name))
            for end in {path.name, path.stem}:
                self._by_end[end].append(name)

    def find(self, rows: Sequence[Row], *, may_miss: int) -> dict[int, str]:
        """Returns the name of the file that each row means, by the row's position.

        A row gives a path below the table's folder, the archive's, or the end of one that no other file shares; the
        ending of the file may be left out. A DataError lists rows without an image where there are more than
        ``may_miss``, which are left out, and rows that fit several.
        """
        found, missing, unclear = {}, [], []
        for position, row in enumerate(rows):
            names = list(self._candidates(row))
            if len(names) == 1:
                found[position] = names[0]
            elif not names:
                missing.append(f"{row.where}: {row.image!r}")
            else:
                unclear.append(f"{row.where}: {row.image!r} is {' or '.join(names[:3])}")
        if unclear:
            raise refuse(f"{self._tree.path}: names in the table fit several images", unclear, "Write their paths.")
        if len(missing) > may_miss or not found:
            raise refuse(
                f"{self._tree.path} lacks images of the table",
                missing,
                "Correct the names, or leave such rows out: --config.data.bad_examples=skip.",
            )
        return found

    def _candidates(self, row: Row) -> Iterable[str]:
        written = _normal(row.image.replace("\\", "/")).removeprefix("./")
        for exact in (f"{row.folder}{written}", written):
            if exact in self.names:
                return [exact]
        fitting = [name for name in self._by_end.get(written.rpartition("/")[2], ()) if written in _ends(name)]
        if len(fitting) > 1:  # the same name in train/ and test/
            own = [name for name in fitting if name.startswith(row.folder)] if row.folder else []
            own = own or [name for name in fitting if row.split in map(split_of, name.split("/")[:-1])]
            fitting = own or fitting
        return fitting


def _ends(name: str) -> Iterator[str]:
    """Yields every end of a path, whole components, with and without the file's ending."""
    parts = _normal(name).split("/")
    stem = PurePosixPath(parts[-1]).stem
    for start in range(len(parts)):
        yield "/".join(parts[start:])
        yield "/".join([*parts[start:-1], stem])


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def checked_splits(rows: Sequence[Row], found: Mapping[int, str], targets: Sequence[tuple]) -> dict[int, str]:
    """Returns the positions of rows to keep with their images: of equal rows the first.

    A DataError names images that stand in two splits, or in two rows with different targets.
    """
    first: dict[str, int] = {}
    kept, leaks, conflicts = {}, [], []
    for position, name in found.items():
        earlier = first.setdefault(name, position)
        if earlier == position:
            kept[position] = name
            continue
        pair = f"{name} ({rows[earlier].where}, and {rows[position].where})"
        if rows[earlier].split != rows[position].split:
            leaks.append(pair)
        elif targets[earlier] != targets[position]:
            conflicts.append(pair)
    if leaks:
        raise refuse("Images stand in several splits", leaks, "Keep each in one.")
    if conflicts:
        raise refuse(
            "Images stand in several rows with different targets",
            conflicts,
            "Keep one row for each image, with all of its labels: cat|dog.",
        )
    return kept
