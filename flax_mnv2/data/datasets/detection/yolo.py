"""Reads YOLO's text files by their ``data.yaml``, in the spellings of Ultralytics and Roboflow.

A line is ``class x y width height``: the box's centre and size as fractions of the image. Outlines, ``class x y x y …``
with three points or more, become the boxes around them, as with Ultralytics. An image without a text file has no boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.detection.annotations import (
    AnnotatedImage,
    Annotations,
    Box,
    ImageFiles,
    Mistakes,
    from_fractions,
    image_ids,
    is_image,
)
from flax_mnv2.errors import DataError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # keys of data.yaml, the earlier ones first
_LAYOUT = "data.yaml with names, train and val, and the folders images and labels"
_CLOSE_TO_1 = 1.01  # a fraction that rounding may give


def read_yolo(tree: FileTree, mistakes: Mistakes) -> Annotations:
    """Returns what the text files of an archive hold; damage to a box or file goes to ``mistakes``.

    A DataError where ``data.yaml`` is missing or damaged, or names folders that are not there.
    """
    file = _description_file(tree)
    description = _parse(tree, file)
    labels = _labels(f"{tree.path}: {file}", description)
    names, splits = set(tree.names()), {}
    for key, split in _SPLITS.items():
        if not description.get(key) or split in splits:
            continue
        values = description[key] if isinstance(description[key], list) else [description[key]]
        texts = [_text(f"{tree.path}: {file}", value) for value in values]
        images = [image for text in texts for image in _images(tree, file, description, text)]
        if not images:
            raise DataError(f"{tree.path}: {file} says {key}: {', '.join(texts)}, where there are no images.")
        images = list(dict.fromkeys(images))
        pairs = ((image, _label_file(image, names)) for image in images)
        ids = dict(zip(images, image_ids(images), strict=True))
        read = {image: _read(tree, label_file, labels, mistakes, split) for image, label_file in pairs}
        splits[split] = [AnnotatedImage(ids[image], image, boxes) for image, boxes in read.items() if boxes is not None]
    if not splits:
        raise DataError(f"{tree.path}: {file} has neither train nor val. Expected {_LAYOUT}.")
    return Annotations(labels=labels, splits=splits)


def _description_file(tree: FileTree) -> str:
    found = [PurePosixPath(name) for name in tree.names() if name.lower().endswith((".yaml", ".yml"))]
    named = [path for path in found if path.stem.lower() == "data"] or found
    if len(named) != 1:
        what = f"several: {', '.join(map(str, named[:4]))}" if named else "none"
        raise DataError(f"{tree.path} should hold one data.yaml; found {what}. Expected {_LAYOUT}.")
    return str(named[0])


def _parse(tree: FileTree, file: str) -> Mapping[str, Any]:
    try:
        description = yaml.safe_load(tree.read(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{tree.path}: {file} is not whole YAML ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(description, dict):
        raise DataError(f"{tree.path}: {file} is a {type(description).__name__}, expected fields. Expected {_LAYOUT}.")
    return description


def _labels(where: str, description: Mapping[str, Any]) -> tuple[str, ...]:
    names, count = description.get("names"), description.get("nc")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{where}: 'names' has the numbers {list(names)[:8]}, expected 0, 1, 2, …")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{where} has no 'names' of classes. Expected {_LAYOUT}.")
    labels = tuple(_text(where, name).strip() for name in names)
    if count is not None and count != len(labels):
        raise DataError(f"{where}: 'nc' is {count}, but 'names' has {len(labels)} classes. Correct one of them.")
    repeated = sorted(label for label in set(labels) if labels.count(label) > 1)
    if repeated:
        raise DataError(f"{where}: 'names' has {repeated[0]!r} more than once. Rename one.")
    return labels


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str | int | float):  # nested ones may be longer than memory
        raise DataError(f"{where}: 'names', 'train', 'val' and 'test' should be text or lists of it.")
    return str(value)


def _images(tree: FileTree, file: str, description: Mapping[str, Any], value: str) -> list[str]:
    """Returns the images of a folder, or of a list of images, that the description names."""
    above = _text(f"{tree.path}: {file}", description.get("path") or "")
    parts = [*_parts(above), *_parts(value)]
    place = _resolve(tree, file, parts)
    if place is None:
        raise DataError(f"{tree.path}: {file} names {value!r}, but there is no such folder or list. Correct its path.")
    if place in tree.names():
        images = ImageFiles(tree.names())
        try:
            return [images.find(line, beside=place) for line in tree.read_lines(place)]
        except DataError as error:
            raise DataError(f"{tree.path}: {place}: {error}. Correct the list, or add the image.") from error
    prefix = f"{place}/" if place != "." else ""
    return [name for name in tree.names() if name.startswith(prefix) and is_image(name)]


def _parts(path: str) -> list[str]:
    return [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("/", "..", ".")]


def _resolve(tree: FileTree, file: str, parts: Sequence[str]) -> str | None:
    """Returns what a path means: the most of its end that is there, from the description's folder or those above.

    People move data sets, so that what their paths begin with is often not there: ``../train/images``,
    ``/content/datasets/x/train/images``.
    """
    there = {*tree.names(), *tree.folders(), "."}
    for start in range(max(len(parts), 1)):
        for above in PurePosixPath(file).parents:
            place = str(above.joinpath(*parts[start:]))
            if place in there:
                return place
    return None


def _label_file(image: str, names: set[str]) -> str | None:
    """Returns the text file of an image: in labels/ where the image is in images/, else beside it."""
    path = PurePosixPath(image).with_suffix(".txt")
    parts = list(path.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    found = (str(place) for place in (PurePosixPath(*parts), path) if str(place) in names)
    return next(found, None)


def _read(
    tree: FileTree, label_file: str | None, labels: Sequence[str], mistakes: Mistakes, split: str
) -> list[Box] | None:
    """Returns the boxes of an image; None where its file is of another kind, which is a mistake."""
    if label_file is None:
        return []
    where, boxes = f"{tree.path}: {label_file}", []
    try:
        lines = tree.read_lines(label_file)
        rows = [_numbers(number, line) for number, line in enumerate(lines, 1)]
    except DataError as error:
        mistakes.add(error if str(error).startswith(str(tree.path)) else f"{where}: {error}", split=split)
        return None
    for number, row in enumerate(rows, 1):
        try:
            boxes.append(_box(row, labels))
        except DataError as error:
            mistakes.add(f"{where}: box {number}, {lines[number - 1][:60]!r}: {error}")
    return boxes


def _numbers(number: int, line: str) -> list[float]:
    try:
        return [float(word) for word in line.split()]
    except ValueError:
        raise DataError(f"line {number} is {line[:60]!r}, expected 'class x y width height' in numbers") from None


def _box(row: Sequence[float], labels: Sequence[str]) -> Box:
    label, numbers = row[0], row[1:]
    if not (len(numbers) == 4 or (len(numbers) >= 6 and len(numbers) % 2 == 0)):
        raise DataError("expected 'class x y width height', or the points of an outline")
    if label not in range(len(labels)):
        raise DataError(f"its class {label:g} is not among the {len(labels)} names of data.yaml, from 0")
    if max(numbers) > _CLOSE_TO_1:
        raise DataError("its coordinates are above 1: expected fractions of the image, found pixels")
    if len(numbers) > 4:
        xs, ys = numbers[0::2], numbers[1::2]
        return Box(from_fractions((min(ys), min(xs), max(ys), max(xs))), int(label))
    x, y, width, height = numbers
    return Box(from_fractions((y - height / 2, x - width / 2, y + height / 2, x + width / 2)), int(label))
