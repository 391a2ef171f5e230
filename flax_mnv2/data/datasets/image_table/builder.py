"""TFDS builder for images with a table of labels or numbers, of the user's own; it needs no TensorFlow."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from flax_mnv2.data.archives.archive import archive_stem, fingerprint, identity, open_tree
from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.examples import LocalBuilder, read_images
from flax_mnv2.data.datasets.image_table import targets
from flax_mnv2.data.datasets.image_table.finding import Images, checked_splits, read_tables
from flax_mnv2.data.datasets.image_table.rows import SPLITS, TRAIN, VAL, Table, refuse
from flax_mnv2.data.datasets.preparation import Outcome, images_and_holdout, left_out_of, max_left_out
from flax_mnv2.data.datasets.prepared import check_apart, is_prepared, prepared
from flax_mnv2.data.datasets.records import MultiLabelDataset, RegressionDataset, VectorDataset
from flax_mnv2.errors import DataError

MULTI_LABEL, REGRESSION = "image_table/multi_label", "image_table/regression"
_KINDS: Mapping[str, tuple[type[VectorDataset], Callable[..., targets.Targets]]] = {
    MULTI_LABEL: (MultiLabelDataset, targets.multi_label),
    REGRESSION: (RegressionDataset, targets.regression),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What of ``config.data`` decides what is stored."""

    archive: Path
    table: str  # a name in the archive or a path; empty: what is found
    labels: tuple[str, ...]  # columns or classes, in their order; empty: all
    holdout: float  # fraction of train that becomes val where there is no other split
    max_left_out: int  # rows without a readable image that may be left out


@dataclasses.dataclass(frozen=True)
class Item:
    """An image to store: its name in the archive, and its vector (C,) float32."""

    name: str
    vector: np.ndarray


def load(name: str, data: Mapping[str, Any], data_dir: Path) -> VectorDataset:
    """Opens the images at ``data["archive"]``, stored first if they are not yet; see ``registry.Entry.load``.

    ``data`` may have ``table`` (a path, or a name in the archive), ``labels`` (columns or classes to take, separated by
    commas), ``holdout`` (fraction of train that becomes ``val`` where no other split is; default 0.1, 0 is none), and
    ``bad_examples``: with "skip" up to ``max_bad_examples`` rows without a readable image are left out.
    """
    path, holdout = images_and_holdout(name, data)
    options = Options(
        archive=path,
        table=str(data.get("table") or ""),
        labels=tuple(label.strip() for label in (data.get("labels") or "").split(",") if label.strip()),
        holdout=holdout,
        max_left_out=max_left_out(data),
    )
    builder = prepared(lambda: _make_builder(name, options, data_dir), data_dir)
    kind, _ = _KINDS[name]
    return kind.of(name, builder, left_out=left_out_of(builder, options.max_left_out))


def _make_builder(name: str, options: Options, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder, one that only reads where the data set is prepared.

    Its config is named after the archive and a digest of all that decides what is stored, as of ``image_folder``.
    """
    path = options.archive
    check_apart(path, data_dir)
    outside = Path(options.table).expanduser() if options.table else None
    outside = outside.resolve() if outside is not None and outside.exists() else None
    read = (identity(path), identity(outside) if outside else options.table)
    choices = (options.labels, options.holdout, options.max_left_out > 0)
    config_name = f"{name.partition('/')[2]}_{archive_stem(path)}_{fingerprint(*read, *choices)}"
    target = data_dir / ImageTable.name / config_name / str(ImageTable.VERSION)
    if is_prepared(target):
        return tfds.builder_from_directory(target)
    tree = open_tree(path)
    try:
        tables = _read_tables(tree, outside, options.table)
        labels, splits, notes = _examples(tree, tables, options, _KINDS[name][1])
    except BaseException:
        tree.close()
        raise
    logging.info("%s", notes)
    config = tfds.core.BuilderConfig(name=config_name, description=f"images of {path}; {notes}")
    return ImageTable(
        tree=tree,
        splits=splits,
        labels=labels,
        config=config,
        data_dir=data_dir,
        max_left_out=options.max_left_out,
    )


def _read_tables(tree: FileTree, outside: Path | None, table: str) -> list[Table]:
    if outside is None:
        return read_tables(tree, table)
    folder, name = (outside, "") if outside.is_dir() else (outside.parent, outside.name)
    with open_tree(folder, keep=lambda found: not name or found == name) as beside:
        return [
            dataclasses.replace(table, rows=[dataclasses.replace(row, folder="") for row in table.rows])
            for table in read_tables(beside, name)
        ]


def _examples(
    tree: FileTree, tables: Sequence[Table], options: Options, read: Callable[..., targets.Targets]
) -> tuple[tuple[str, ...], dict[str, list[Item]], str]:
    """Returns names of the targets, the images of every split in the order of the table, and what was read."""
    labels, vectors = read(tables, options.labels)
    rows = [row for table in tables for row in table.rows]
    images = Images(tree)
    found = images.find(rows, may_miss=options.max_left_out)
    kept = checked_splits(rows, found, [tuple(vector) for vector in vectors])
    splits: dict[str, list[Item]] = {}
    for position, name in kept.items():
        splits.setdefault(rows[position].split or TRAIN, []).append(Item(name, vectors[position]))
    if TRAIN not in splits:
        raise DataError(f"{tree.path}: no row of the table is for {TRAIN}; its splits are {', '.join(splits)}.")
    if len(splits) == 1 and options.holdout:
        splits = _hold_out(tree, splits[TRAIN], options.holdout)
    counts = {
        "rows": len(rows),
        "rows without an image": len(rows) - len(found),
        "repeated rows": len(found) - len(kept),
        "images in no row": len(images.names - set(kept.values())),
    }
    notes = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    return labels, ordered, f"{' and '.join(table.name for table in tables)}: {notes}"


def _hold_out(tree: FileTree, items: Sequence[Item], fraction: float) -> dict[str, list[Item]]:
    """Returns train without, and ``val`` with, the images whose digests come first."""
    count = max(1, round(fraction * len(items)))
    if count >= len(items):
        raise DataError(
            f"{tree.path} has no split for evaluation and {len(items)} image(s). Add images, or set "
            "--config.data.holdout=0 to train without an evaluation."
        )
    digests = {item.name: hashlib.sha256(item.name.encode(errors="surrogateescape")).digest() for item in items}
    held_out = set(sorted(digests, key=digests.__getitem__)[:count])
    return {
        TRAIN: [item for item in items if item.name not in held_out],
        VAL: [item for item in items if item.name in held_out],
    }


class ImageTable(LocalBuilder):
    """Images, as they are, with a vector each; ``tree`` is closed when the data set is built."""

    def __init__(self, *, tree: FileTree, splits: Mapping[str, list[Item]], labels: tuple[str, ...], **kwargs: Any):
        self._tree, self._splits, self._labels = tree, splits, labels
        self._bad: list[str] = []
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self._vector_info(labels=self._labels, description=f"Images with {len(self._labels)} targets each.")

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Builds the data set unless it is there; nothing is left behind where a file is no image."""
        with self._tree:
            super().download_and_prepare(**kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the images are the user's own
        return self._noted({split: self._generate_examples(split, items) for split, items in self._splits.items()})

    def _generate_examples(self, split: str, items: list[Item]) -> Iterator[Outcome]:
        vectors = []
        for item, image in zip(items, read_images(self._tree, [item.name for item in items]), strict=True):
            if isinstance(image, DataError):
                self._bad.append(str(image))
                yield image
                continue
            vectors.append(item.vector)
            yield {"image": image, "label": item.vector, "file_name": item.name}
        self._check_bad(split, len(vectors))
        self.info.metadata["mean"][split] = np.mean(vectors, axis=0, dtype=np.float64).tolist()
        self.info.metadata["std"][split] = np.std(vectors, axis=0, dtype=np.float64).tolist()

    def _check_bad(self, split: str, stored: int) -> None:
        """Raises a DataError of all unreadable images once all are known, or of a split with no other."""
        if self._bad and len(self._bad) <= self._max_left_out and stored:
            logging.warning("Left out %d images that cannot be read: %s", len(self._bad), "; ".join(self._bad[:5]))
        elif self._bad and (split == list(self._splits)[-1] or not stored):
            raise refuse(
                f"{self._tree.path} holds what is no readable image",
                self._bad,
                "Replace them, or leave them out: --config.data.bad_examples=skip.",
            )
