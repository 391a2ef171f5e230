"""What the readers of COCO, VOC and YOLO give: images with boxes as fractions, checked, by split."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from flax_mnv2.data.datasets.preparation import BOXES
from flax_mnv2.errors import ConfigError, DataError

TRAIN, HELD_OUT = "train", "val"
SPLIT_NAMES = {  # what people and tools call them
    "train": TRAIN, "training": TRAIN, "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test",
    "testing": "test", "trainval": "trainval",
}  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif")
NO_ID = -1  # of a box whose source has none
ROUNDING_PX = 2.0  # that a box may stick out of its image; it is clipped

Corners = tuple[float, float, float, float]  # y_min, x_min, y_max, x_max
Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """One object: corners as fractions of the image, class index, whether the metrics ignore it.

    ``area`` is in pixels, as COCO has it (of the object's mask); None is that of the box.
    """

    corners: Corners
    label: int
    ignored: bool = False
    area: float | None = None
    id: int = NO_ID


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image's id, its path in the archive, its boxes, and its size where the annotations tell it."""

    image_id: str
    file: str
    boxes: Sequence[Box]
    size: Size | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """A data set as its annotations describe it; ``category_ids`` are COCO's, by class index."""

    labels: tuple[str, ...]
    splits: Mapping[str, list[AnnotatedImage]]
    category_ids: tuple[int, ...] = ()
    integer_ids: bool = False  # whether image ids are numbers


class Mistakes:
    """What is wrong in the annotations, a message each: of whole images by split, of single boxes under ``BOXES``."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, message: object, *, split: str = BOXES) -> None:
        """Takes a message that names the file; that of an image, which is left out of its split, with the ``split``."""
        self.found.setdefault(split, []).append(f"{str(message).rstrip('.')}.")


def check_pixels(numbers: Sequence[float]) -> None:
    """Raises a DataError, without a name, where the numbers of a box in its file are none, or fractions."""
    if not all(map(math.isfinite, numbers)):
        raise DataError("its coordinates are not numbers")
    if all(0 <= number <= 1 for number in numbers) and any(number % 1 for number in numbers):
        raise DataError("its coordinates are all below 1: expected pixels, found fractions of the image")


def from_pixels(corners: Sequence[float], size: Size) -> Corners:
    """Returns corners in pixels as fractions of an image, clipped; a DataError, without a name, where they are wrong.

    Pixels are counted from 0 at the image's edge, so that a box of the whole image is (0, 0, height, width).
    """
    return _clipped(corners, size, ROUNDING_PX / size[0], ROUNDING_PX / size[1])


def from_fractions(corners: Sequence[float]) -> Corners:
    """Returns corners as fractions of an image, clipped; a DataError, without a name, where they are wrong."""
    if not all(map(math.isfinite, corners)):
        raise DataError("its coordinates are not numbers")
    return _clipped(corners, (1, 1), 0.01, 0.01)


def _clipped(corners: Sequence[float], size: Size, room_y: float, room_x: float) -> Corners:
    height, width = size
    y_min, x_min, y_max, x_max = corners
    if y_max < y_min or x_max < x_min:
        raise DataError("its corners are swapped: the maximum is below the minimum")
    if y_max == y_min or x_max == x_min:
        raise DataError("it has no area")
    y_min, x_min, y_max, x_max = y_min / height, x_min / width, y_max / height, x_max / width
    if min(y_min, 1 - y_max) < -room_y or min(x_min, 1 - x_max) < -room_x:
        whole = f"its image, {width}x{height} pixels (width x height)" if size != (1, 1) else "its image"
        raise DataError(f"it reaches outside {whole}")
    clipped = max(y_min, 0.0), max(x_min, 0.0), min(y_max, 1.0), min(x_max, 1.0)
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise DataError("it lies outside its image")
    return clipped


def read_labels(text: str) -> tuple[str, ...]:
    """Returns the names of ``config.data.labels``: a text file with one per line, or names separated by commas."""
    path = Path(text).expanduser()
    if path.is_file():
        names = path.read_text(encoding="utf-8-sig").splitlines()
    elif "/" in text or text.endswith(".txt"):
        raise ConfigError(f"config.data.labels is {text!r}, but there is no such file.")
    else:
        names = text.split(",")
    labels = [name.strip() for name in names if name.strip()]
    repeated = {name for name in labels if labels.count(name) > 1}
    if repeated:
        raise ConfigError(f"config.data.labels has the name {min(repeated)!r} more than once.")
    return tuple(labels)


def checked(annotations: Annotations, where: object) -> Annotations:
    """Returns the annotations; a DataError where there is no split or class, or a split has no annotated image."""
    if not annotations.splits:
        raise DataError(f"{where} holds no images with boxes.")
    for split, images in annotations.splits.items():
        if not any(image.boxes for image in images):
            raise DataError(
                f"{where}: none of the {len(images)} images of the split {split} has a box. Annotate some, or remove "
                "the split."
            )
    return annotations


def hold_out(splits: Mapping[str, list[AnnotatedImage]], fraction: float) -> dict[str, list[AnnotatedImage]]:
    """Returns the splits, where there is only train with ``fraction`` of its images as ``val``.

    Which images depends on their ids alone.
    """
    if set(splits) != {TRAIN} or not fraction or len(splits[TRAIN]) < 2:
        return dict(splits)
    images = splits[TRAIN]
    count = min(max(1, round(fraction * len(images))), len(images) - 1)
    ranked = sorted(images, key=lambda image: hashlib.sha256(image.image_id.encode()).digest())
    held_out = {image.image_id for image in ranked[:count]}
    return {
        TRAIN: [image for image in images if image.image_id not in held_out],
        HELD_OUT: [image for image in images if image.image_id in held_out],
    }


class ImageFiles:
    """The images of an archive, found by the names that annotations give, whatever folders these begin with.

    Of several with a name, those in folders that agree with most of the given ones are taken, then those in the folder
    of the file ``beside``, then those below a folder called as the ``split``.
    """

    def __init__(self, names: Iterable[str]):
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in names:
            if is_image(name):
                self._by_name.setdefault(PurePosixPath(name).name, []).append(name)
                self._by_stem.setdefault(PurePosixPath(name).stem, []).append(name)

    def find(self, file_name: str, *, beside: str, split: str = "") -> str:
        """Returns the path of an image; a DataError, which has the name, where there is none, or several."""
        wanted = PurePosixPath(file_name.replace("\\", "/")).parts[::-1]
        found = self._by_name.get(wanted[0] if wanted else "", [])
        if not found:
            raise DataError(f"there is no image {file_name!r}")
        return _choose(found, wanted, beside, split)

    def with_stem(self, stem: str, *, beside: str, split: str = "") -> str:
        """Returns the path of an image by its name without ending, "" where there is none; a DataError for several."""
        found = self._by_stem.get(stem, [])
        return _choose(found, (), beside, split) if found else ""


def _choose(found: list[str], wanted: Sequence[str], beside: str, split: str) -> str:
    folder = PurePosixPath(beside).parent
    for rule in (
        lambda name: _common(PurePosixPath(name).parts[::-1], wanted),
        lambda name: PurePosixPath(name).parent == folder,
        lambda name: split in map(split_of, PurePosixPath(name).parts[:-1]),
    ):
        best = max(map(rule, found))
        found = [name for name in found if rule(name) == best]
    if len(found) > 1:
        raise DataError(f"its image may be {found[0]} or {found[1]}: which is not clear")
    return found[0]


def is_image(name: str) -> bool:
    """Returns whether a file is named like an image, and not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not PurePosixPath(name).name.startswith(".")


def image_ids(files: Sequence[str]) -> list[str]:
    """Returns the names of files without folder and ending, or their paths where these are not different."""
    stems = [PurePosixPath(file).stem for file in files]
    return stems if len(set(stems)) == len(stems) else list(files)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns how many parts two paths have in common, from their ends."""
    count = 0
    for mine, yours in zip(one, other, strict=False):
        if mine != yours:
            break
        count += 1
    return count


def split_of(name: str) -> str:
    """Returns the split that a file or folder is called after, such as ``instances_train2017``, or ""."""
    words = "".join(character if character.isalpha() else " " for character in name.lower()).split()
    found = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
    return found[-1] if found else ""


def split_folder(name: str) -> str:
    """Returns the split that a file's folder, or one above it, is called exactly, such as ``valid/``, or ""."""
    folders = (SPLIT_NAMES.get(part.lower(), "") for part in PurePosixPath(name).parts[-2::-1])
    return next(filter(None, folders), "")
