"""A JSON file for each image → rows: ``labels``, labelme's ``flags``, ``values``, or numbers as they stand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.image_table.csv_file import folder_of
from flax_mnv2.data.datasets.image_table.rows import SPLIT_COLUMNS, Row, Table, split_of
from flax_mnv2.errors import DataError

SUFFIX = ".json"
_IMAGE_KEYS = ("image", "file_name", "filename", "image_path", "path", "imagePath")  # the last is labelme's
_MAPPINGS = ("flags", "labels", "values", "targets")  # keys that may hold a mapping by name
_LISTS = ("labels", "tags")


def read_json_files(tree: FileTree, names: Sequence[str]) -> Table:
    """Reads all files as one table; a DataError names the file that is something else."""
    rows = [_row(tree, name) for name in names]
    columns = dict.fromkeys(column for row in rows for column in row.cells)
    return Table(f"{len(rows)} JSON files", tuple(columns), rows)


def _row(tree: FileTree, name: str) -> Row:
    place = f"{tree.path}: {name}"
    try:
        values = json.loads(tree.read(name).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({error}).") from error
    if not isinstance(values, dict) or "annotations" in values:
        raise DataError(
            f"{place} is not the labels of one image. Expected an object for each image, such as "
            '{"image": "a.jpg", "labels": ["cat", "dog"]}.'
        )
    image = next((values[key] for key in _IMAGE_KEYS if isinstance(values.get(key), str)), PurePosixPath(name).stem)
    word = next((values[key] for key in SPLIT_COLUMNS if key in values), None)
    split = split_of(str(word)) if word is not None else _split_of_folders(name)
    if word is not None and not split:
        raise DataError(f"{place}: its split is {word!r}, expected train, val or test.")
    return Row(where=name, folder=folder_of(name), image=image, split=split, cells=_cells(place, values))


def _cells(place: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _MAPPINGS:
        if isinstance(values.get(key), dict):
            return values[key]
    for key in _LISTS:
        if isinstance(values.get(key), list):
            return {key: values[key]}
    if "shapes" in values:  # labelme's, whose numbers are the image's size
        raise DataError(f"{place} has shapes and no flags; a job on whole images needs labelme's flags.")
    skipped = (*_IMAGE_KEYS, *SPLIT_COLUMNS)
    cells = {key: value for key, value in values.items() if key not in skipped and isinstance(value, (int, float))}
    if not cells:
        raise DataError(
            f'{place} has neither "labels" (a list), "flags" (true or false by name, as of labelme) nor numbers.'
        )
    return cells


def _split_of_folders(name: str) -> str:
    return next((split for part in PurePosixPath(name).parts[:-1] if (split := split_of(part))), "")
