"""Reads COCO's JSON: the official layout, Roboflow's ``train/_annotations.coco.json``, and others alike.

The format: cocodataset.org/#format-data. A box is [x, y, width, height] in pixels from the image's corner.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.detection.annotations import (
    TRAIN,
    AnnotatedImage,
    Annotations,
    Box,
    ImageFiles,
    Mistakes,
    check_pixels,
    from_pixels,
    split_folder,
    split_of,
)
from flax_mnv2.errors import DataError

_BOXES = "instances"  # how COCO calls the files with boxes, beside captions, keypoints and lists without labels
_LAYOUT = "annotations/NAME.json with train, val or test in NAME, or train/NAME.json, and the images"

Json = Mapping[str, Any]


def read_coco(tree: FileTree, mistakes: Mistakes) -> Annotations:
    """Returns what the JSON files of an archive hold; damage to a box or image goes to ``mistakes``.

    A DataError where a file is no COCO JSON, ids repeat, or the splits disagree on the categories.
    """
    files = _split_files(tree)
    parsed = {split: _parse(tree, name) for split, name in files.items()}
    categories = _categories(tree, files, parsed)
    images = ImageFiles(tree.names())
    ids = sorted(categories)
    classes = {category: index for index, category in enumerate(ids)}
    splits = {
        split: _Split(f"{tree.path}: {files[split]}", files[split], split, classes, images, mistakes).read(content)
        for split, content in parsed.items()
    }
    labels = tuple(categories[category] for category in ids)
    return Annotations(labels=labels, splits=splits, category_ids=tuple(ids), integer_ids=True)


def _split_files(tree: FileTree) -> dict[str, str]:
    """Returns the JSON file of every split, train first."""
    names = [name for name in tree.names() if name.lower().endswith(".json") and not _is_hidden(name)]
    boxes = [name for name in names if PurePosixPath(name).name.startswith(f"{_BOXES}_")]
    files: dict[str, str] = {}
    for name in boxes or names:
        split = split_of(PurePosixPath(name).stem) or split_folder(name)
        if not split and len(boxes or names) == 1:
            split = TRAIN
        if not split:
            raise DataError(f"{tree.path}: which split {name} is of is not clear. Expected {_LAYOUT}.")
        if split in files:
            raise DataError(f"{tree.path} has {files[split]} and {name} for the split {split}. Remove one of them.")
        files[split] = name
    if not files:
        raise DataError(f"{tree.path} holds no COCO JSON. Expected {_LAYOUT}.")
    return dict(sorted(files.items(), key=lambda item: (item[0] != TRAIN, item[0] != "val")))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _parse(tree: FileTree, name: str) -> Json:
    try:
        content = json.loads(tree.read(name))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{tree.path}: {name} is not whole JSON ({error}). Export or copy it again.") from error
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise DataError(
            f"{tree.path}: {name} has no list {' and no '.join(map(repr, missing))}. Expected COCO's JSON with images, "
            "annotations and categories."
        )
    for key in keys:
        if not all(isinstance(row, dict) and _is_id(row.get("id")) for row in content[key]):
            raise DataError(f"{tree.path}: {name} has something without an integer 'id' among its {key}.")
        most = collections.Counter(row["id"] for row in content[key]).most_common(1)
        if most and most[0][1] > 1:
            raise DataError(f"{tree.path}: {name} has the id {most[0][0]} more than once among its {key}.")
    return content


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _categories(tree: FileTree, files: Mapping[str, str], parsed: Mapping[str, Json]) -> dict[int, str]:
    """Returns names by id, which all files must agree on."""
    first, *others = files
    categories = _names(tree, files[first], parsed[first])
    for split in others:
        for category, name in _names(tree, files[split], parsed[split]).items():
            if categories.get(category) != name:
                raise DataError(
                    f"{tree.path}: {files[split]} has the category {category} {name!r}, {files[first]} has "
                    f"{categories.get(category, 'none')!r}. Export the splits with the same categories."
                )
    root = _roboflow_root([row for content in parsed.values() for row in content["categories"]])
    used = {row.get("category_id") for content in parsed.values() for row in content["annotations"]}
    return {category: name for category, name in categories.items() if category != root or category in used}


def _names(tree: FileTree, file: str, content: Json) -> dict[int, str]:
    names = {row["id"]: str(row.get("name") or "").strip() for row in content["categories"]}
    repeated = [name for name, times in collections.Counter(names.values()).items() if times > 1 or not name]
    if not names or repeated:
        found = f"the name {repeated[0]!r} for several" if names and repeated[0] else "categories without a name"
        raise DataError(f"{tree.path}: {file} has {found if names else 'no categories'}. Expected one name for each.")
    return names


def _roboflow_root(categories: Sequence[Json]) -> int | None:
    """Returns the category that Roboflow adds over all others; no box has it."""
    above = {row.get("supercategory") for row in categories}
    roots = {row["id"] for row in categories if row.get("supercategory") == "none" and row.get("name") in above}
    return roots.pop() if len(roots) == 1 else None


class _Split:
    """Reads one file; ``where`` is its name for messages."""

    def __init__(
        self,
        where: str,
        file: str,
        split: str,
        classes: Mapping[int, int],
        images: ImageFiles,
        mistakes: Mistakes,
    ):
        self._where, self._file, self._split = where, file, split
        self._classes, self._images, self._mistakes = classes, images, mistakes

    def read(self, content: Json) -> list[AnnotatedImage]:
        rows: dict[int, list[Json]] = {row["id"]: [] for row in content["images"]}
        for row in content["annotations"]:
            try:
                rows[row.get("image_id")].append(row)
            except (KeyError, TypeError):
                self._wrong(row, f"its image_id {row.get('image_id')!r} is no image's")
        images = [self._image(row, rows[row["id"]]) for row in content["images"]]
        return [image for image in images if image is not None]

    def _image(self, row: Json, annotations: Sequence[Json]) -> AnnotatedImage | None:
        try:
            file_name, size = row.get("file_name"), (row.get("height"), row.get("width"))
            if not isinstance(file_name, str) or not all(_is_id(side) and side > 0 for side in size):
                raise DataError("it has no file_name, height and width")
            file = self._images.find(file_name, beside=self._file, split=self._split)
        except DataError as error:
            self._mistakes.add(f"{self._where}: image {row['id']}: {error}", split=self._split)
            return None
        boxes = [box for box in (self._box(annotation, size, file_name) for annotation in annotations) if box]
        return AnnotatedImage(str(row["id"]), file, boxes, size)

    def _box(self, row: Json, size: tuple[int, int], file_name: str) -> Box | None:
        try:
            label = self._classes.get(row.get("category_id"))
            if label is None:
                raise DataError(f"its category_id {row.get('category_id')!r} is not among the categories")
            numbers = _numbers(row.get("bbox"))
            check_pixels(numbers)
            x, y, width, height = numbers
            if width < 0 or height < 0:
                raise DataError("its width or height is below 0")
            corners = from_pixels((y, x, y + height, x + width), size)
        except (DataError, TypeError) as error:
            self._wrong(row, f"in {file_name}, bbox {row.get('bbox')}: {error}")
            return None
        area = row.get("area")
        area = float(area) if isinstance(area, int | float) else width * height
        return Box(corners, label, bool(row.get("iscrowd")), area, row["id"])

    def _wrong(self, row: Json, reason: str) -> None:
        self._mistakes.add(f"{self._where}: annotation {row['id']} {reason}")


def _numbers(bbox: Any) -> list[float]:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(value, int | float) for value in bbox):
        raise DataError("expected 'bbox' as [x, y, width, height]")
    return [float(value) for value in bbox]
