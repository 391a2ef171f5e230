"""Which image of a folder or archive belongs to which split and class, told from its path alone."""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.errors import DataError

TRAIN, EVALUATION = "train", ("val", "validation", "test")
HELD_OUT = "val"  # the split that is taken from train where there is no other
_SPLITS = (TRAIN, *EVALUATION)
_LIKE_TRAIN, _LIKE_EVALUATION = {"train", "training"}, {"val", "valid", "validation", "test", "testing", "dev", "eval"}
_CLUTTER = {"thumbs.db", "desktop.ini"}  # and whatever begins with a dot
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif"}
_LAYOUT = "train/CLASS/IMAGE and val|validation|test/CLASS/IMAGE, or CLASS/IMAGE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """What lies in an image folder.

    Attributes:
      labels: names of the classes, sorted; the index is the label.
      splits: by split, (path in the archive, class) of every image, sorted by class and path.
    """

    labels: tuple[str, ...]
    splits: dict[str, list[tuple[str, str]]]


def find_layout(tree: FileTree, *, holdout: float) -> FolderLayout:
    """Returns the images by split and class, in the layout ``train/CLASS/…`` or, with all in train, ``CLASS/…``.

    Both may lie below folders that hold nothing else. Hidden files and those that desktops leave behind are skipped;
    all other files of a class are taken for images, at any depth.

    Args:
      tree: the opened folder or archive.
      holdout: the fraction of each class of train that becomes ``val`` where there is no split for evaluation; 0 is
        none. Which images depends on their class and name alone, and a class of one image keeps it in train.

    Raises:
      DataError: the layout is another one, a class is empty or not in train, or names stand twice in an archive.
    """
    repeated = tree.repeated()
    if repeated:
        raise DataError(f"{tree.path} holds {repeated[0]} more than once{_more(repeated)}. Pack it again.")
    names = [name for name in tree.names() if not _is_clutter(name)]
    folders = [name for name in tree.folders() if not _is_clutter(name)]
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # bytes that are no UTF-8
            raise DataError(f"{tree.path} holds the file {name!a}, whose name is not UTF-8. Rename it.")
    root = _root(folders)
    found = _children(folders, root)
    if set(found) & set(_SPLITS):
        splits, classes_in = _named_splits(tree, names, folders, root), f"{root}{TRAIN}/"
    else:
        lower = {name.lower() for name in found}
        if lower & _LIKE_TRAIN and lower & _LIKE_EVALUATION:
            raise DataError(
                f"{tree.path} holds the folders {', '.join(found[:8])}, which look like splits. Name them "
                f"{', '.join(_SPLITS)}, in lower case."
            )
        splits, classes_in = {TRAIN: _classes(tree, names, folders, root)}, root
    labels = tuple(sorted(splits[TRAIN]))
    if len(labels) < 2:
        raise DataError(
            f"{tree.path} has {len(labels)} class folder{'s' if not labels else f' ({labels[0]})'}, expected two or "
            f"more in the layout {_LAYOUT}."
        )
    for label in labels:
        if label != label.strip() or len(label.splitlines()) > 1:
            raise DataError(f"{tree.path}: the class folder {label!r} has spaces around its name. Rename it.")
    for split, classes in splits.items():
        unknown = sorted(classes.keys() - set(labels))
        if unknown:
            raise DataError(
                f"{tree.path} has the class {unknown[0]} in {split}{_more(unknown)}, which {TRAIN} has not; its "
                f"classes are {', '.join(labels[:8])}{' …' if len(labels) > 8 else ''}. Correct the folder's name, or "
                f"remove it from {split}."
            )
    if len(splits) == 1 and holdout:
        splits = _hold_out(tree, splits[TRAIN], classes_in, holdout)
    return FolderLayout(
        labels=labels,
        splits={
            split: [(name, label) for label in labels for name in sorted(classes.get(label, ()))]
            for split, classes in splits.items()
        },
    )


def _root(folders: list[str]) -> str:
    """The folder that the layout begins in, as a prefix of names: down while there is one way to go."""
    root = ""
    while True:
        children = _children(folders, root)
        if len(children) != 1 or children[0] in _SPLITS or not _children(folders, f"{root}{children[0]}/"):
            return root
        root += f"{children[0]}/"


def _children(folders: Iterable[str], prefix: str) -> list[str]:
    """Names of the folders right below ``prefix``, sorted."""
    below = (name.removeprefix(prefix) for name in folders if name.startswith(prefix))
    return sorted(name for name in below if name and "/" not in name)


def _named_splits(tree: FileTree, names: list[str], folders: list[str], root: str) -> dict[str, dict[str, list[str]]]:
    found = _children(folders, root)
    if TRAIN not in found:
        raise DataError(
            f"{tree.path} holds the folder{'s' if len(found) > 1 else ''} {', '.join(found[:8])}, but no folder "
            f"{TRAIN}. Expected {_LAYOUT}."
        )
    for name in names:
        split = name.removeprefix(root).partition("/")[0]
        if split not in _SPLITS and _is_named_like_an_image(name):
            raise DataError(
                f"{tree.path} holds {name}, which is in none of the splits {', '.join(_SPLITS)}. Move it into one, or "
                "remove it."
            )
    return {split: _classes(tree, names, folders, f"{root}{split}/") for split in _SPLITS if split in found}


def _classes(tree: FileTree, names: list[str], folders: list[str], prefix: str) -> dict[str, list[str]]:
    """The files of every class folder below ``prefix``."""
    classes: dict[str, list[str]] = {label: [] for label in _children(folders, prefix)}
    for name in names:
        if not name.startswith(prefix):
            continue
        label, _, inner = name.removeprefix(prefix).partition("/")
        if inner:
            classes[label].append(name)
        elif _is_named_like_an_image(name):
            raise DataError(f"{tree.path} holds {name}, which is in no class folder. Expected {_LAYOUT}.")
    if not any(classes.values()):
        where = f" in {prefix.rstrip('/')}" if prefix else ""
        raise DataError(f"{tree.path} holds no images{where}. Expected {_LAYOUT}.")
    empty = [label for label, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"{tree.path}: the class folder {prefix}{empty[0]} holds no images{_more(empty)}. Fill it, or remove it."
        )
    return classes


def _hold_out(
    tree: FileTree, classes: dict[str, list[str]], prefix: str, fraction: float
) -> dict[str, dict[str, list[str]]]:
    """Train without, and ``val`` with, the images of each class whose digests come first."""
    train, held_out = {}, {}
    for label, names in classes.items():
        count = min(max(1, round(fraction * len(names))), len(names) - 1)
        ranked = sorted(names, key=lambda name: hashlib.sha256(name.removeprefix(prefix).encode()).digest())
        held_out[label], train[label] = ranked[:count], ranked[count:]
    if not any(held_out.values()):
        raise DataError(
            f"{tree.path} has no split for evaluation, and one image per class, so that none can be held out of "
            f"{TRAIN}. Add images, or set --config.data.holdout=0 to train without an evaluation."
        )
    return {TRAIN: train, HELD_OUT: held_out}


def _is_clutter(name: str) -> bool:
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or parts[-1].lower() in _CLUTTER


def _is_named_like_an_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
