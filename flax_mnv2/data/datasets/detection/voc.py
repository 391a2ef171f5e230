"""Reads VOC's XML: ``Annotations/*.xml`` by ``ImageSets/Main/*.txt``, by split folders, or all as one split.

Pixel coordinates start at 1 and include the last pixel, so that a box of the whole image is (1, 1, width, height).
"""

from __future__ import annotations

import collections
import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.detection.annotations import (
    SPLIT_NAMES,
    TRAIN,
    AnnotatedImage,
    Annotations,
    Box,
    ImageFiles,
    Mistakes,
    Size,
    check_pixels,
    from_pixels,
    image_ids,
    split_folder,
)
from flax_mnv2.data.decode import decode_rgb
from flax_mnv2.errors import DataError

_SETS, _ANNOTATIONS = "ImageSets/Main", "Annotations"
_CORNERS = ("ymin", "xmin", "ymax", "xmax")
_LAYOUT = f"{_ANNOTATIONS}/*.xml with {_SETS}/*.txt, or XML files in train/, valid/ and test/, or in one folder"


@dataclasses.dataclass(frozen=True)
class _Object:
    """An object as its file has it; ``number`` counts from 1."""

    number: int
    name: str
    numbers: Sequence[float] | None
    difficult: bool


@dataclasses.dataclass(frozen=True)
class _Parsed:
    """One XML file: its path, the image that belongs to it, the image's size, its objects."""

    file: str
    image: str
    size: Size
    objects: Sequence[_Object]


def read_voc(
    tree: FileTree,
    mistakes: Mistakes,
    *,
    labels: Sequence[str] = (),
    splits: Mapping[str, Sequence[str]] | None = None,
) -> Annotations:
    """Returns what the XML files of an archive hold; damage to a box or an image goes to ``mistakes``.

    ``labels`` are the classes; without any, those found in the files, sorted. ``splits`` are the lists of ids to read,
    as paths without ending, by the split that they make up; without any, those found. A DataError where there is
    nothing in one of the layouts, or a list names an id twice.
    """
    files = _split_files(tree) if splits is None else _listed_files(tree, splits)
    images = ImageFiles(tree.names())
    parsed = {
        split: [one for name in names if (one := _checked_parse(tree, name, split, images, mistakes))]
        for split, names in files.items()
    }
    every = {one.file: one for ones in parsed.values() for one in ones}
    labels = labels or sorted({each.name for one in every.values() for each in one.objects})
    classes = {label: index for index, label in enumerate(labels)}
    boxes = {file: _boxes(f"{tree.path}: {file}", one, classes, mistakes) for file, one in every.items()}
    return Annotations(
        labels=tuple(labels),
        splits={split: _annotated(ones, boxes) for split, ones in parsed.items()},
    )


def _annotated(parsed: Sequence[_Parsed], boxes: Mapping[str, Sequence[Box]]) -> list[AnnotatedImage]:
    ids = image_ids([one.file for one in parsed])
    return [
        AnnotatedImage(image_id, one.image, boxes[one.file], one.size)
        for image_id, one in zip(ids, parsed, strict=True)
    ]


def _split_files(tree: FileTree) -> dict[str, list[str]]:
    """Returns the XML files of every split, train first."""
    names = tree.names()
    lists: dict[str, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix == ".txt" and str(path.parent).endswith(_SETS) and path.stem in SPLIT_NAMES:
            lists.setdefault(SPLIT_NAMES[path.stem], []).append(str(path.with_suffix("")))
    if lists:
        several = next((found for found in lists.values() if len(found) > 1), None)
        if several:
            raise DataError(f"{tree.path} has the lists {several[0]}.txt and {several[1]}.txt. Give the folder of one.")
        return _listed_files(tree, lists)
    files = [name for name in names if name.lower().endswith(".xml") and not PurePosixPath(name).name.startswith(".")]
    annotations = [name for name in files if _ANNOTATIONS in PurePosixPath(name).parts[:-1]]
    splits: dict[str, list[str]] = {}
    for name in annotations or files:
        splits.setdefault(split_folder(name), []).append(name)
    if not splits:
        raise DataError(f"{tree.path} holds no XML files. Expected {_LAYOUT}.")
    if "" in splits and len(splits) > 1:
        raise DataError(f"{tree.path}: which split {splits[''][0]} is of is not clear. Expected {_LAYOUT}.")
    return _ordered({split or TRAIN: found for split, found in splits.items()})


def _listed_files(tree: FileTree, splits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Returns the paths that lists of ids name; whether they are there is seen when they are read."""
    names, files = set(tree.names()), {}
    for split, lists in splits.items():
        files[split] = []
        for path in lists:
            if f"{path}.txt" not in names:
                raise DataError(f"{tree.path} has no {path}.txt. Get the archive again.")
            root = path.rpartition(_SETS)[0]
            ids = tree.read_lines(f"{path}.txt")
            files[split] += [f"{root}{_ANNOTATIONS}/{image_id}.xml" for image_id in ids]
            most = collections.Counter(ids).most_common(1)
            if most and most[0][1] > 1:
                raise DataError(f"{tree.path}: {path}.txt lists {most[0][0]!r} more than once. Remove the repeats.")
    return _ordered({split: found for split, found in files.items() if found})


def _ordered(splits: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {split: splits[split] for split in sorted(splits, key=lambda split: (split != TRAIN, split))}


def _checked_parse(tree: FileTree, name: str, split: str, images: ImageFiles, mistakes: Mistakes) -> _Parsed | None:
    try:
        return _parse(tree, name, split, images)
    except DataError as error:
        mistakes.add(f"{tree.path}: {name}: {error}", split=split)
        return None


def _parse(tree: FileTree, name: str, split: str, images: ImageFiles) -> _Parsed:
    try:
        data = tree.read(name)
    except KeyError:
        raise DataError(f"the split {split} lists it, but there is no such file") from None
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DataError(f"it is not whole XML ({error})") from None
    if root.tag != "annotation":
        raise DataError(f"its element is <{root.tag[:40]}>, expected VOC's <annotation>")
    image = _find_image(images, name, split, (root.findtext("filename") or "").strip())
    objects = [_object(number, element) for number, element in enumerate(root.findall("object"), 1)]
    return _Parsed(name, image, _size(root) or _size_of(tree, image), objects)


def _find_image(images: ImageFiles, name: str, split: str, file_name: str) -> str:
    """Returns the image of the same name, as VOC has it, else the one that the file names."""
    folder = PurePosixPath(name).parent
    beside = str(folder.parent / "JPEGImages" / "x") if folder.name == _ANNOTATIONS else name
    found = images.with_stem(PurePosixPath(name).stem, beside=beside, split=split)
    return found or images.find(file_name, beside=beside, split=split)


def _size(root: ElementTree.Element) -> Size | None:
    sides = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    if not all(side.isdecimal() and int(side) for side in sides):  # some tools write 0
        return None
    return int(sides[0]), int(sides[1])


def _size_of(tree: FileTree, image: str) -> Size:
    width, height = decode_rgb(tree.read(image)).size
    return height, width


def _object(number: int, element: ElementTree.Element) -> _Object:
    texts = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        numbers = [float(text) for text in texts]
    except (TypeError, ValueError):
        numbers = None
    difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    return _Object(number, (element.findtext("name") or "").strip(), numbers, difficult)


def _boxes(where: str, parsed: _Parsed, classes: Mapping[str, int], mistakes: Mistakes) -> list[Box]:
    boxes = []
    for each in parsed.objects:
        try:
            boxes.append(_box(each, parsed.size, classes))
        except DataError as error:
            numbers = dict(zip(_CORNERS, each.numbers, strict=True)) if each.numbers else "without corners"
            mistakes.add(f"{where}: object {each.number}, {each.name!r} {numbers}: {error}")
    return boxes


def _box(each: _Object, size: Size, classes: Mapping[str, int]) -> Box:
    if each.name not in classes:
        raise DataError(f"its class is not among {_few(classes)}")
    if each.numbers is None:
        raise DataError("expected a <bndbox> with the numbers xmin, ymin, xmax, ymax")
    check_pixels(each.numbers)
    y_min, x_min, y_max, x_max = each.numbers
    corners = from_pixels((y_min - 1, x_min - 1, y_max, x_max), size)
    return Box(corners, classes[each.name], each.difficult)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
