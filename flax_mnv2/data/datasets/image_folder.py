"""TFDS builder for images of the user's own, in folders by split and class; it needs no TensorFlow."""

import concurrent.futures
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from flax_mnv2.data.archives.archive import archive_stem, fingerprint, identity, open_tree
from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.examples import LocalBuilder, check_image
from flax_mnv2.data.datasets.preparation import Outcome, left_out_of, max_left_out
from flax_mnv2.data.datasets.prepared import is_prepared, prepared
from flax_mnv2.data.datasets.records import ClassificationDataset, opened
from flax_mnv2.data.decode import UPRIGHT
from flax_mnv2.errors import ConfigError, DataError
from flax_mnv2.image_processing.reading import IMAGE_SUFFIXES

_TRAIN = "train"
_HELD_OUT = "val"  # the split that is taken from train where there is no other
_SPLITS = (_TRAIN, "val", "validation", "test")
_LIKE_TRAIN, _LIKE_EVALUATION = {"train", "training"}, {"val", "valid", "validation", "test", "testing", "dev", "eval"}
_CLUTTER = {"thumbs.db", "desktop.ini"}  # and whatever begins with a dot
_NAMED_LIKE_IMAGES = {*IMAGE_SUFFIXES, ".heic", ".heif"}
_LAYOUT = "train/CLASS/IMAGE and val|validation|test/CLASS/IMAGE, or CLASS/IMAGE"
_READ_AHEAD = 256  # images read and checked together


def load(name: str, data: Mapping[str, Any], data_dir: Path) -> ClassificationDataset:
    """Opens the images at ``data["archive"]``, and stores them first if they are not yet; see ``registry.Entry.load``.

    ``data["holdout"]`` is the fraction of train that becomes ``val`` where there is no split for evaluation (default
    0.1; 0 is none). Files that are no images are left out as ``data["bad_examples"]`` says.
    """
    archive, holdout = data.get("archive") or "", data.get("holdout", 0.1)
    if not archive:
        raise ConfigError(
            f"config.data.archive is empty, but {name} needs the path of a folder, tar or zip of images. Set "
            "--config.data.archive=PATH."
        )
    if not 0 <= holdout < 1:
        raise ConfigError(f"config.data.holdout is {holdout}, expected a fraction from 0 to below 1, such as 0.1.")
    limit = max_left_out(data)
    builder = prepared(lambda: _make_builder(archive, data_dir, holdout, limit), data_dir)
    labels = tuple(builder.info.features["label"].names)
    left_out = left_out_of(builder, limit)
    return ClassificationDataset(
        name=name, labels=labels, builders=opened(builder.info.splits, builder), left_out=left_out
    )


def _make_builder(archive: str, data_dir: Path, holdout: float, limit: int) -> tfds.core.DatasetBuilder:
    """Returns the builder of a folder or archive of images: one that only reads, where it is prepared in ``data_dir``.

    Its config is named after a digest of the archive's path, size and time of change (of all files, for a folder) and
    of ``holdout``, so that two archives never share a prepared data set, and a changed one is built anew; the rule of
    decoding is part of it too, for what was prepared under another.
    """
    path = Path(archive).expanduser().resolve()
    if path.is_dir() and data_dir.resolve().is_relative_to(path):
        raise DataError(
            f"The folder of prepared data sets, {data_dir}, lies in the folder of images, {path}, and would change it. "
            "Set --config.data.data_dir to another place."
        )
    name = f"{archive_stem(path)}_{fingerprint(identity(path), holdout, UPRIGHT)}"
    target = data_dir / ImageFolder.name / name / str(ImageFolder.VERSION)
    if is_prepared(target):
        return tfds.builder_from_directory(target)
    tree = open_tree(path)
    try:
        splits = _find_layout(tree, holdout)
    except BaseException:
        tree.close()
        raise
    config = tfds.core.BuilderConfig(name=name, description=f"images of {path}")
    return ImageFolder(tree=tree, splits=splits, config=config, data_dir=data_dir, max_left_out=limit)


class ImageFolder(LocalBuilder):
    """Images, as they are, with the names of their folders as labels.

    ``splits`` has the path in ``tree`` and the class of every image; ``tree`` is closed when the data set is built.
    """

    def __init__(self, *, tree: FileTree, splits: Mapping[str, list[tuple[str, str]]], **kwargs: Any):
        self._tree = tree
        self._splits = splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = tuple(sorted({label for _, label in self._splits[_TRAIN]}))
        return self._classification_info(description=f"Images of {len(labels)} classes.", labels=labels)

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Builds the data set unless it is there; nothing is left behind where a file is no image."""
        with self._tree:
            super().download_and_prepare(**kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the images are the user's own
        return self._noted({split: self._generate_examples(split, images) for split, images in self._splits.items()})

    def _generate_examples(self, split: str, images: list[tuple[str, str]]) -> Iterator[Outcome]:
        read = functools.partial(_read_image, self._tree)
        remaining = set()
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(images), _READ_AHEAD):
                part = images[start : start + _READ_AHEAD]
                data = pool.map(read, [name for name, _ in part])
                for (name, label), image in zip(part, data, strict=True):
                    if isinstance(image, DataError):
                        yield image
                    else:
                        remaining.add(label)
                        yield {"image": image, "label": label, "file_name": name}
        empty = sorted({label for _, label in images} - remaining)
        if empty and remaining and split == _TRAIN and self._max_left_out:  # else all bad files are named in the end
            raise DataError(
                f"{self._tree.path}: no image of the class {empty[0]}{_more(empty)} in {split} can be read. Replace "
                "them, or remove the class."
            )


def _read_image(tree: FileTree, name: str) -> bytes | DataError:
    """Returns an encoded image, or what is wrong with it."""
    try:
        data = tree.read(name)
        check_image(data, f"{tree.path}: {name}")
    except DataError as error:
        return error
    return data


def _find_layout(tree: FileTree, holdout: float) -> dict[str, list[tuple[str, str]]]:
    """(path in the archive, class) of every image by split, sorted by class and path; every class is in train.

    The layout is ``train/CLASS/…`` or, with all in train, ``CLASS/…``; both may lie below folders that hold nothing
    else. Hidden files and those that desktops leave behind are skipped; all other files of a class are taken for
    images, at any depth. ``holdout`` is the fraction of each class of train that becomes ``val`` where there is no
    split for evaluation. Which images depends on their class and name alone; a class of one image keeps it in train.
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
        splits, classes_in = _named_splits(tree, names, folders, root), f"{root}{_TRAIN}/"
    else:
        lower = {name.lower() for name in found}
        if lower & _LIKE_TRAIN and lower & _LIKE_EVALUATION:
            raise DataError(
                f"{tree.path} holds the folders {', '.join(found[:8])}, which look like splits. Name them "
                f"{', '.join(_SPLITS)}, in lower case."
            )
        splits, classes_in = {_TRAIN: _classes(tree, names, folders, root)}, root
    labels = sorted(splits[_TRAIN])
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
                f"{tree.path} has the class {unknown[0]} in {split}{_more(unknown)}, which {_TRAIN} has not; its "
                f"classes are {', '.join(labels[:8])}{' …' if len(labels) > 8 else ''}. Correct the folder's name, or "
                f"remove it from {split}."
            )
    if len(splits) == 1 and holdout:
        splits = _hold_out(tree, splits[_TRAIN], classes_in, holdout)
    return {
        split: [(name, label) for label in labels for name in sorted(classes.get(label, ()))]
        for split, classes in splits.items()
    }


def _root(folders: list[str]) -> str:
    """Returns the folder that the layout begins in, as a prefix of names: down while there is one way to go."""
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
    if _TRAIN not in found:
        raise DataError(
            f"{tree.path} holds the folder{'s' if len(found) > 1 else ''} {', '.join(found[:8])}, but no folder "
            f"{_TRAIN}. Expected {_LAYOUT}."
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
    """Returns the files of every class folder below ``prefix``."""
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
            f"{_TRAIN}. Add images, or set --config.data.holdout=0 to train without an evaluation."
        )
    return {_TRAIN: train, _HELD_OUT: held_out}


def _is_clutter(name: str) -> bool:
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or parts[-1].lower() in _CLUTTER


def _is_named_like_an_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _NAMED_LIKE_IMAGES


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
