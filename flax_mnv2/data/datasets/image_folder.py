"""TFDS builder for images of the user's own, in folders by split and class; it needs no TensorFlow."""

import collections
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from flax_mnv2.data.archives.archive import archive_stem, fingerprint, identity, open_tree
from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.examples import LocalBuilder, read_images
from flax_mnv2.data.datasets.folder_layout import HELD_OUT, TRAIN, Layout, find_layout, more
from flax_mnv2.data.datasets.preparation import Outcome, images_and_holdout, left_out_of, max_left_out
from flax_mnv2.data.datasets.prepared import check_apart, is_prepared, prepared
from flax_mnv2.data.datasets.records import ClassificationDataset, opened
from flax_mnv2.data.decode import UPRIGHT
from flax_mnv2.errors import DataError


def load(name: str, data: Mapping[str, Any], data_dir: Path) -> ClassificationDataset:
    """Opens the images at ``data["archive"]``, and stores them first if they are not yet; see ``registry.Entry.load``.

    ``data["holdout"]`` is the fraction of train that becomes ``val`` where there is no split for evaluation (default
    0.1; 0 is none). A split that cannot be used is left out unless ``data["train_split"]`` or ``data["eval_split"]``
    name it; files that are no images are left out as ``data["bad_examples"]`` says.
    """
    path, holdout = images_and_holdout(name, data)
    asked, limit = {data.get("train_split") or TRAIN, data.get("eval_split") or HELD_OUT}, max_left_out(data)
    builder = prepared(lambda: _make_builder(path, data_dir, holdout, asked, limit), data_dir)
    metadata = builder.info.metadata or {}  # an older version wrote none
    unusable = metadata.get("unusable", {})
    for split in sorted(asked & unusable.keys()):
        raise DataError(unusable[split])
    return ClassificationDataset(
        name=name,
        labels=tuple(builder.info.features["label"].names),
        builders=opened(builder.info.splits, builder),
        read=metadata.get("read", {}) | {split: f"left out. {reason}" for split, reason in unusable.items()},
        images=metadata.get("images", {}),
        left_out=left_out_of(builder, limit),
    )


def _make_builder(
    path: Path, data_dir: Path, holdout: float, asked: Collection[str], limit: int
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a folder or archive of images: one that only reads, where it is prepared in ``data_dir``.

    Its config is named after a digest of the archive's path, size and time of change (of all files, for a folder) and
    of ``holdout``, so that two archives never share a prepared data set, and a changed one is built anew; the rule of
    decoding is part of it too, for what was prepared under another.
    """
    check_apart(path, data_dir)
    name = f"{archive_stem(path)}_{fingerprint(identity(path), holdout, UPRIGHT)}"
    target = data_dir / ImageFolder.name / name / str(ImageFolder.VERSION)
    if is_prepared(target):
        return tfds.builder_from_directory(target)
    tree = open_tree(path)
    try:
        layout = find_layout(tree, holdout, asked)
    except BaseException:
        tree.close()
        raise
    config = tfds.core.BuilderConfig(name=name, description=f"images of {path}")
    return ImageFolder(tree=tree, layout=layout, config=config, data_dir=data_dir, max_left_out=limit)


class ImageFolder(LocalBuilder):
    """Images, as they are, with the names of their folders as labels.

    ``layout`` has the path in ``tree`` and the class of every image; ``tree`` is closed when the data set is built.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "Splits inside classes are no classes."}  # noqa: RUF012 (as in the base class)

    def __init__(self, *, tree: FileTree, layout: Layout, **kwargs: Any):
        self._tree = tree
        self._layout = layout
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        layout = self._layout
        counts = {split: collections.Counter(label for _, label in found) for split, found in layout.splits.items()}
        metadata = {
            "read": layout.read,
            "unusable": layout.left_out,
            "images": {split: [count[label] for label in layout.labels] for split, count in counts.items()},
        }
        description = f"Images of {len(layout.labels)} classes."
        return self._classification_info(description=description, labels=layout.labels, metadata=metadata)

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Builds the data set unless it is there; nothing is left behind where a file is no image."""
        with self._tree:
            super().download_and_prepare(**kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the images are the user's own
        splits = self._layout.splits
        return self._noted({split: self._generate_examples(split, images) for split, images in splits.items()})

    def _generate_examples(self, split: str, images: list[tuple[str, str]]) -> Iterator[Outcome]:
        remaining = set()
        read = read_images(self._tree, [name for name, _ in images], prefix=f"{self._tree.path}: ")
        for (name, label), image in zip(images, read, strict=True):
            if isinstance(image, DataError):
                yield image
            else:
                remaining.add(label)
                yield {"image": image, "label": label, "file_name": name}
        empty = sorted({label for _, label in images} - remaining)
        if empty and remaining and split == TRAIN and self._max_left_out:  # else all bad files are named in the end
            raise DataError(
                f"{self._tree.path}: no image of the class {empty[0]}{more(empty)} in {split} can be read. Replace "
                "them, or remove the class."
            )
