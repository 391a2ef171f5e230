"""A read-only view of a data set in the layout of PASCAL VOC segmentation."""

import collections
import os
import re
from pathlib import Path

from flax_mnv2.data.archives.archive import open_tree
from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import IMAGE_SUFFIXES

_SPLITS, _IMAGES, _MASKS = "ImageSets/Segmentation", "JPEGImages", "SegmentationClass"
_IMAGE_SUFFIXES, _MASK_SUFFIXES = IMAGE_SUFFIXES, (".png",)
_PREFERRED = "VOC2012"


class VocFiles:
    """Splits, images and masks of a folder or archive that holds, at any depth, one folder with

    ``ImageSets/Segmentation/*.txt`` (one image id per line), ``JPEGImages/ID.{jpg,jpeg,png,tif,…}`` and
    ``SegmentationClass/ID.png``. Where several years lie side by side, VOC2012 is taken.

    Use it as a context manager. All methods raise :class:`DataError` that names the archive and member.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        self._tree = open_tree(self.path, keep=_is_of_interest)
        try:
            names = self._tree.names()
            self.root = _find_root(self.path, names)
            self._split_files = {
                Path(name).stem: name for name in _below(names, self.root, _SPLITS, (".txt",)).values()
            }
            self._images = _below(names, self.root, _IMAGES, _IMAGE_SUFFIXES)
            self._masks = _below(names, self.root, _MASKS, _MASK_SUFFIXES)
        except BaseException:
            self._tree.close()
            raise

    def __enter__(self) -> "VocFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.close()

    def splits(self) -> dict[str, list[str]]:
        """Returns the image ids of every split, in the order of its file.

        That each id is a file's is seen when it is read: ids are only ever looked up among the archive's own names.
        """
        return {name: self._ids(name, file) for name, file in sorted(self._split_files.items())}

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
        ids = self._tree.read_lines(file)
        if not ids:
            raise DataError(f"{where} lists no image ids. Write one id per line, or remove the file.")
        most, times = collections.Counter(ids).most_common(1)[0]
        if times > 1:
            raise DataError(f"{where} lists {most!r} more than once. Remove the repeated lines.")
        return ids

    def _lookup(self, files: dict[str, str], image_id: str, folder: str, suffixes: tuple[str, ...]) -> str:
        if image_id not in files:
            wanted = f"{f'{self.root}{folder}/{image_id}{suffixes[0]}'!r}" + " or another format" * (len(suffixes) > 1)
            raise DataError(
                f"{self.path}: a split lists the id {image_id!r}, but there is no file {wanted}. "
                f"Add the file or remove the id from {self.root}{_SPLITS}/*.txt."
            )
        return files[image_id]


def _is_of_interest(name: str) -> bool:
    return any(f"/{folder}/" in f"/{name}" for folder in (_SPLITS, _IMAGES, _MASKS))


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
