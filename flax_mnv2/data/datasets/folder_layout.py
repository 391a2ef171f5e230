"""Which folders of images are splits and which are classes, in the layouts that people and tools export."""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath

from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import IMAGE_SUFFIXES

TRAIN = "train"
HELD_OUT = "val"  # the split that is taken from train where there is no other
SPLITS = (TRAIN, "val", "validation", "test")

# What people and tools call splits, in any case and perhaps followed by one of the words below: Roboflow and fastai say
# valid, Kaggle Training, training_set, test_images.
_MEANINGS = {name: name for name in SPLITS} | {"training": "train", "valid": "val", "dev": "val", "testing": "test"}
_SUFFIX = re.compile(r"(set|data|images|imgs|split)$")
_INNER = _MEANINGS.keys() - {"dev"}  # of a folder inside a class: no splits are there
_CLUTTER = {"thumbs.db", "desktop.ini"}  # and whatever begins with a dot
_NAMED_LIKE_IMAGES = {*IMAGE_SUFFIXES, ".heic", ".heif"}
_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"}
# Pairs of folders that are no classes, but images with their masks or annotations.
_PHOTOS = {"image", "images", "img", "imgs", "jpegimages", "photos"}
_MASKS = {"mask", "masks", "label", "labels", "annotation", "annotations", "segmentationclass", "gt", "groundtruth"}
_LAYOUT = "train/CLASS/IMAGE and val|validation|test/CLASS/IMAGE, or CLASS/IMAGE"

Classes = dict[str, list[str]]  # files by class


@dataclasses.dataclass(frozen=True)
class Layout:
    """Path and class of every image by split; where splits come from, in words; why others are left out."""

    splits: dict[str, list[tuple[str, str]]]
    read: dict[str, str]
    left_out: dict[str, str]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, sorted; each is in train."""
        return tuple(sorted({label for _, label in self.splits[TRAIN]}))


def find_layout(tree: FileTree, holdout: float, asked: Collection[str] = SPLITS) -> Layout:
    """Returns (path in the archive, class) of every image by split, sorted by class and path.

    The layout is ``train/CLASS/…``, with other splits beside, or, with all in train, ``CLASS/…``; both may lie below
    folders that hold nothing else. Hidden files and those that desktops leave behind are skipped; all other files of a
    class are taken for images, at any depth. ``holdout`` is the fraction of each class of train that becomes ``val``
    where there is no split for evaluation. Which images depends on their class and name alone; a class of one image
    keeps it in train. A split that is not ``asked`` for and cannot be used, a test set without labels for example, is
    left out.
    """
    names, folders = _names_of(tree)
    root = _root(folders)
    found = _split_folders(tree, folders, root)
    prefixes = {split: _inside(folders, f"{root}{folder}/", split) for split, folder in found.items()}
    if found:
        _check_rest(tree, names, root, found)
    else:
        prefixes = {TRAIN: root}
    splits, left_out = {TRAIN: _classes(tree, names, folders, prefixes[TRAIN])}, {}
    labels = sorted(splits[TRAIN])
    _check_labels(tree, labels)
    for split in SPLITS[1:]:
        if split not in prefixes:
            continue
        try:
            classes = _classes(tree, names, folders, prefixes[split])
            _check_known(tree, split, classes, labels)
        except DataError as error:
            if split in asked:
                raise
            left_out[split] = str(error)
        else:
            splits[split] = classes
    read = {split: prefixes[split].rstrip("/") or "all class folders" for split in splits}
    if len(splits) == 1 and holdout:
        splits = _hold_out(tree, splits[TRAIN], prefixes[TRAIN], holdout)
        read = {
            TRAIN: f"the rest of {read[TRAIN]}",
            HELD_OUT: f"{holdout:.0%} of each class of {read[TRAIN]}, held out",
        }
    images = {
        split: [(name, label) for label in labels for name in sorted(classes.get(label, ()))]
        for split, classes in splits.items()
    }
    return Layout(images, {split: f"{len(images[split]):,} images, {where}" for split, where in read.items()}, left_out)


def _names_of(tree: FileTree) -> tuple[list[str], list[str]]:
    """Returns the files and folders that count."""
    repeated = tree.repeated()
    if repeated:
        raise DataError(f"{tree.path} holds {repeated[0]} more than once{more(repeated)}. Pack it again.")
    names = [name for name in tree.names() if not _is_clutter(name)]
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # bytes that are no UTF-8
            raise DataError(f"{tree.path} holds the file {name!a}, whose name is not UTF-8. Rename it.")
    return names, [name for name in tree.folders() if not _is_clutter(name)]


def _root(folders: list[str]) -> str:
    """Returns the folder that the layout begins in, as a prefix of names: down while there is one way to go."""
    root = ""
    while True:
        children = _children(folders, root)
        if len(children) != 1 or _meaning(children[0]) or not _children(folders, f"{root}{children[0]}/"):
            return root
        root += f"{children[0]}/"


def _inside(folders: list[str], prefix: str, split: str) -> str:
    """Returns where a split's classes lie: Kaggle's archives often have a folder twice, train/train/CLASS."""
    children = _children(folders, prefix)
    while len(children) == 1 and _meaning(children[0]) == split and _children(folders, f"{prefix}{children[0]}/"):
        prefix += f"{children[0]}/"
        children = _children(folders, prefix)
    return prefix


def _meaning(folder: str) -> str | None:
    """Returns the split that a folder's name means, if any."""
    word = re.sub(r"[\s_.-]+", "", folder.lower())
    return _MEANINGS.get(word) or _MEANINGS.get(_SUFFIX.sub("", word))


def _children(folders: Iterable[str], prefix: str) -> list[str]:
    """Names of the folders right below ``prefix``, sorted."""
    below = (name.removeprefix(prefix) for name in folders if name.startswith(prefix))
    return sorted(name for name in below if name and "/" not in name)


def _split_folders(tree: FileTree, folders: list[str], root: str) -> dict[str, str]:
    """Returns the folder of each split; nothing where folders are classes.

    A folder named like a split is one where it has folders itself: a class may be called train or test.
    """
    children = _children(folders, root)
    named = {folder: split for folder in children if (split := _meaning(folder))}
    kinds = {split == TRAIN for split in named.values()}
    if not any(_children(folders, f"{root}{folder}/") for folder in named):
        words = [set(re.split(r"[^a-z]+", folder.lower())) & _INNER for folder in children]
        kinds |= {_MEANINGS[word] == TRAIN for found in words for word in found}
        if len(kinds) == 2:
            raise DataError(
                f"{tree.path} holds the folders {_listed(children)}, which look like splits, but not in a layout "
                f"that is understood. Expected {_LAYOUT}."
            )
        return {}
    found: dict[str, str] = {}
    for folder, split in named.items():
        if split in found:
            raise DataError(
                f"{tree.path} holds {found[split]} and {folder}, which both name the split {split}. Merge them, or "
                "rename one."
            )
        found[split] = folder
    if TRAIN not in found:
        raise DataError(
            f"{tree.path} holds the folder{'s' if len(children) > 1 else ''} {_listed(children)}, but no folder "
            f"{TRAIN}. Expected {_LAYOUT}; what is evaluated on is chosen with --config.data.eval_split."
        )
    return found


def _check_rest(tree: FileTree, names: list[str], root: str, found: Mapping[str, str]) -> None:
    for name in names:
        if name.removeprefix(root).partition("/")[0] not in found.values() and _is_named_like_an_image(name):
            raise DataError(
                f"{tree.path} holds {name}, which is in none of the splits {', '.join(SPLITS)}. Move it into one, or "
                "remove it."
            )


def _classes(tree: FileTree, names: list[str], folders: list[str], prefix: str) -> Classes:
    """Returns the files of every class folder below ``prefix``."""
    classes: Classes = {label: [] for label in _children(folders, prefix)}
    for name in names:
        if not name.startswith(prefix):
            continue
        label, *inner = name.removeprefix(prefix).split("/")
        if inner:
            _check_inner(tree, name, label, inner[:-1])
            classes[label].append(name)
        elif _is_named_like_an_image(name):
            raise DataError(f"{tree.path} holds {name}, which is in no class folder. Expected {_LAYOUT}.")
    if not any(classes.values()):
        where = f" in {prefix.rstrip('/')}" if prefix else ""
        packed = next((name for name in names if PurePosixPath(name).suffix.lower() in _ARCHIVES), None)
        unpack = f", but an archive, {packed}: unpack it" if packed else ""
        raise DataError(f"{tree.path} holds no images{where}{unpack}. Expected {_LAYOUT}.")
    empty = [label for label, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"{tree.path}: the class folder {prefix}{empty[0]} holds no images{more(empty)}. Fill it, or remove it."
        )
    return classes


def _check_inner(tree: FileTree, name: str, label: str, inner: list[str]) -> None:
    split = next((folder for folder in inner if folder.lower() in _INNER), None)
    if split:
        raise DataError(
            f"{tree.path} holds {name}: the folder {split} inside {label} looks like a split, and would be mixed with "
            f"others. Expected {_LAYOUT}: move it to {split}/{label}, or rename it."
        )


def _check_labels(tree: FileTree, labels: list[str]) -> None:
    if len(labels) < 2:
        raise DataError(
            f"{tree.path} has {len(labels)} class folder{'s' if not labels else f' ({labels[0]})'}, expected two or "
            f"more in the layout {_LAYOUT}."
        )
    plain = {re.sub(r"[^a-z]", "", label.lower()) for label in labels}
    if plain & _PHOTOS and plain & _MASKS:
        raise DataError(
            f"{tree.path} has the folders {_listed(labels)}, which look like images and their masks, not like classes. "
            "For masks lay them out like PASCAL VOC (voc_segmentation/custom); for classes remove what is none."
        )
    for label in labels:
        if label != label.strip() or len(label.splitlines()) > 1:
            raise DataError(f"{tree.path}: the class folder {label!r} has spaces around its name. Rename it.")


def _check_known(tree: FileTree, split: str, classes: Classes, labels: list[str]) -> None:
    unknown = sorted(classes.keys() - set(labels))
    if unknown:
        raise DataError(
            f"{tree.path} has the class {unknown[0]} in {split}{more(unknown)}, which {TRAIN} has not; its "
            f"classes are {_listed(labels)}. Correct the folder's name, or remove it from {split}."
        )


def _hold_out(tree: FileTree, classes: Classes, prefix: str, fraction: float) -> dict[str, Classes]:
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
    return PurePosixPath(name).suffix.lower() in _NAMED_LIKE_IMAGES


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


def more(names: list[str]) -> str:
    """Returns how many names there are beside the first, for a message."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
