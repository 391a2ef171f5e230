"""A read-only view of a data set in the layout of PASCAL VOC segmentation."""

import collections
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from flax_mnv2.data.archives.archive import open_tree
from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import IMAGE_SUFFIXES

_SPLITS, _IMAGES, _MASKS = "ImageSets/Segmentation", "JPEGImages", "SegmentationClass"
_INDEX_MASKS = "SegmentationClassPNG"  # where labelme puts them; its SegmentationClass has NumPy arrays
_IMAGE_SUFFIXES, _MASK_SUFFIXES = IMAGE_SUFFIXES, (".png",)
_PREFERRED = "VOC2012"


class VocFiles:
    """Splits, images and masks of a folder or archive that holds, at any depth, one folder with

    ``ImageSets/Segmentation/*.txt``, ``JPEGImages/ID.{jpg,jpeg,png,tif,…}`` and ``SegmentationClass/ID.png``. A line of
    a list is an image id, with or without an extension, or the paths of an image and its mask, as lists for DeepLab and
    mmsegmentation have them. Lists in folders below are none. Where several years lie side by side, VOC2012 is taken.

    Use it as a context manager. All methods raise :class:`DataError` that names the archive and member.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        self._tree = open_tree(self.path, keep=_is_of_interest)
        try:
            names = self._tree.names()
            self.root = _find_root(self.path, names)
            self._names = set(names)
            lists = _below(names, self.root, _SPLITS, (".txt",))
            self._split_files = {name: file for name, file in lists.items() if "/" not in name and name[0] != "."}
            self._nested = sorted(file for name, file in lists.items() if "/" in name and "/." not in f"/{name}")
            self._images = _below(names, self.root, _IMAGES, _IMAGE_SUFFIXES)
            self._pairs: dict[str, tuple[str, str]] = {}  # image and mask by id, of lists with two columns
            masks = _below(names, self.root, _MASKS, _MASK_SUFFIXES)
            self._masks = masks or _below(names, self.root, _INDEX_MASKS, _MASK_SUFFIXES)
        except BaseException:
            self._tree.close()
            raise

    def __enter__(self) -> "VocFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.close()

    @property
    def split_names(self) -> list[str]:
        """Names of the lists that lie directly in ``ImageSets/Segmentation``, sorted."""
        return sorted(self._split_files)

    def list_name(self, split: str) -> str:
        """Returns the member that lists a split."""
        return self._split_files[split]

    def splits(self, wanted: Iterable[str] | None = None) -> dict[str, list[str]]:
        """Returns the image ids of the wanted splits that there are, in the order of their files; None is all.

        No other list is read. That each id is a file's is seen when it is read: ids are only ever looked up among the
        archive's own names. A DataError where none of the wanted is there.
        """
        names = self.split_names if wanted is None else list(wanted)
        found = [name for name in names if name in self._split_files]
        if names and not found:
            below = f"; lists in folders below are not read: {', '.join(self._nested[:4])}" if self._nested else ""
            raise DataError(
                f"{self.path} has no list {' or '.join(f'{self.root}{_SPLITS}/{name}.txt' for name in names)}. It has "
                f"{', '.join(self.split_names) or 'none'}{below}. Set --config.data.train_split and .eval_split."
            )
        return {name: self._ids(name, self._split_files[name]) for name in found}

    def read_image(self, image_id: str) -> bytes:
        """Returns the encoded image (JPEG or PNG)."""
        return self._tree.read(self._lookup(self._images, image_id, _IMAGES, _IMAGE_SUFFIXES))

    def read_mask(self, image_id: str) -> bytes:
        """Returns the encoded mask (PNG)."""
        return self._tree.read(self._lookup(self._masks, image_id, _MASKS, _MASK_SUFFIXES))

    def has_mask(self, image_id: str) -> bool:
        """Returns whether there is a mask for this id."""
        return image_id in self._masks

    def image_name(self, image_id: str) -> str:
        """Returns the archive and member of an image, for messages."""
        return f"{self.path}: {self._images.get(image_id, image_id)}"

    def mask_name(self, image_id: str) -> str:
        """Returns the archive and member of a mask, for messages."""
        return f"{self.path}: {self._masks.get(image_id, image_id)}"

    def _ids(self, split: str, file: str) -> list[str]:
        where = f"{self.path}: {file}"
        if not re.fullmatch(r"[A-Za-z]\w*", split) or split == "all":
            raise DataError(f"{where}: {split!r} cannot name a split. Use letters, digits and underscores.")
        ids = [self._id(line) for line in self._tree.read_lines(file)]
        if not ids:
            raise DataError(f"{where} lists no image ids. Write one id per line, or remove the file.")
        most, times = collections.Counter(ids).most_common(1)[0]
        if times > 1:
            raise DataError(f"{where} lists {most!r} more than once. Remove the repeated lines.")
        return ids

    def _id(self, line: str) -> str:
        """Returns the id that a line means; one of two paths is known from then on."""
        if line in self._images:
            return line
        columns = [part.strip() for part in re.split(r"[,;\t]" if re.search(r"[,;\t]", line) else r"\s+", line)]
        image, mask = self._member(columns[0]), self._member(columns[-1])
        if len(columns) == 2 and image and mask:
            image_id = str(PurePosixPath(image.removeprefix(f"{self.root}{_IMAGES}/")).with_suffix(""))
            if self._pairs.setdefault(image_id, (image, mask)) != (image, mask):
                raise DataError(f"{self.path}: lists give {image} two masks, {mask} and {self._masks[image_id]}.")
            self._images[image_id], self._masks[image_id] = image, mask
            return image_id
        stem = _without_suffix(line)
        if stem not in self._images and image and len(columns) == 1:
            stem = _without_suffix(image.removeprefix(f"{self.root}{_IMAGES}/"))
        return stem if stem in self._images else line

    def _member(self, path: str) -> str | None:
        """Returns the file that a path in a list means, whatever stands before the data set's own folders."""
        parts = PurePosixPath(path.replace("\\", "/")).parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((f"{self.root}{end}" for end in ends if f"{self.root}{end}" in self._names), None)

    def _lookup(self, files: dict[str, str], image_id: str, folder: str, suffixes: tuple[str, ...]) -> str:
        if image_id not in files:
            wanted = f"{f'{self.root}{folder}/{image_id}{suffixes[0]}'!r}" + " or another format" * (len(suffixes) > 1)
            raise DataError(
                f"{self.path}: a split lists the id {image_id!r}, but there is no file {wanted}. "
                f"Add the file or remove the id from {self.root}{_SPLITS}/*.txt."
            )
        return files[image_id]


def _is_of_interest(name: str) -> bool:
    return f"/{_MASKS}" in f"/{name}" or any(f"/{folder}/" in f"/{name}" for folder in (_SPLITS, _IMAGES))


def _find_root(path: Path, names: list[str]) -> str:
    """Returns the prefix (empty or ending in a slash) of the folder in VOC layout."""
    found = {folder: _roots(names, folder) for folder in (_SPLITS, _IMAGES, _MASKS)}
    complete = set.intersection(*found.values())
    preferred = {root for root in complete if f"/{root}".endswith(f"/{_PREFERRED}/")}
    candidates = preferred or complete
    if len(candidates) == 1:
        return candidates.pop()
    if candidates:
        raise DataError(
            f"{path} holds several data sets in VOC layout ({', '.join(sorted(candidates))}) and which to "
            "use is not clear. Give the folder of one of them, or an archive of it."
        )
    missing = [f"{folder}/" for folder, roots in found.items() if not roots]
    raise DataError(
        f"{path} is not in VOC layout: expected one folder with {_SPLITS}/*.txt, {_IMAGES}/ and {_MASKS}/, "
        f"found {'no ' + ', no '.join(missing) if missing else 'them, but not side by side'}. "
        "Lay the data out like PASCAL VOC and pack it again."
    )


def _roots(names: list[str], folder: str) -> set[str]:
    roots = set()
    for name in names:
        before, found, after = f"/{name}".partition(f"/{folder}/")
        if found and (folder != _SPLITS or after.endswith(".txt")):
            roots.add(f"{before[1:]}/" if before else "")
    return roots


def _below(names: list[str], root: str, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Returns file names under root/folder by their path there without suffix; earlier suffixes win."""
    prefix = f"{root}{folder}/"
    found: dict[str, str] = {}
    for suffix in suffixes:
        for name in names:
            if name.startswith(prefix) and name.lower().endswith(suffix):
                found.setdefault(name[len(prefix) : -len(suffix)], name)
    return found


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in _IMAGE_SUFFIXES else name
