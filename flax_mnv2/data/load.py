"""From ``config.data`` to a prepared data set with random access to its encoded examples."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import tensorflow_datasets as tfds
from absl import logging

from flax_mnv2.data.shapes_segmentation import SHAPES_IGNORE_LABEL, SHAPES_LABELS, ShapesSegmentation
from flax_mnv2.data.voc_segmentation import VOC_IGNORE_LABEL, VOC_LABELS, VocSegmentation, custom_config
from flax_mnv2.errors import ConfigError, DataError

DATASETS = (
    "voc_segmentation/2012",
    "voc_segmentation/2012_aug",
    "voc_segmentation/custom",
    "shapes_segmentation",
)


class EncodedExample(TypedDict):
    """One stored example: JPEG or PNG bytes, grey PNG bytes of class indices, and its name."""

    image: bytes
    segmentation_mask: bytes
    image_id: str


class ExampleSource:
    """Random access to the encoded examples of one split; safe to share between threads, can be pickled."""

    def __init__(self, records: Sequence[Any]):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> EncodedExample:
        record = self._records[index]
        return {**record, "image_id": record["image_id"].decode()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationDataset:
    """A prepared data set.

    Attributes:
      name: TFDS name with config, such as ``voc_segmentation/2012``.
      labels: class names by index.
      ignore_label: mask value of pixels without a class.
      max_size: largest height and largest width by split.
      num_examples: number of examples by split.
    """

    name: str
    labels: tuple[str, ...]
    ignore_label: int
    max_size: Mapping[str, tuple[int, int]]
    num_examples: Mapping[str, int]
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False, compare=False)

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.num_examples)

    def source(self, split: str) -> ExampleSource:
        """The examples of a split, in the order of its list of ids.

        Raises:
          DataError: there is no such split, or prepared files are missing.
        """
        if split not in self.num_examples:
            raise DataError(f"{self.name} has no split {split!r}; it has {', '.join(self.split_names)}.")
        for file in self.builder.info.splits[split].filepaths:
            if not file.exists():
                raise DataError(
                    f"The prepared data set is damaged: {file} is missing. Delete "
                    f"{self.builder.data_dir} and start again to rebuild it."
                )
        skip = tfds.decode.SkipDecoding()
        records = self.builder.as_data_source(split, decoders={"image": skip, "segmentation_mask": skip})
        return ExampleSource(records)


def load_segmentation(data: Mapping[str, Any]) -> SegmentationDataset:
    """Prepare a data set if it is not yet prepared, and open it.

    Args:
      data: ``config.data``, a ConfigDict or any mapping with the keys

        - ``dataset``: one of :data:`DATASETS`;
        - ``data_dir``: where prepared data sets live; "" is ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``;
        - ``archive``: the archive or folder of ``voc_segmentation/custom``; else optionally the path of the
          official VOC tar;
        - ``sbd_archive``: optionally, SBD's benchmark.tgz or SegmentationClassAug masks;
        - ``labels``: for ``custom``, a text file with one name per line, or names separated by commas;
        - ``num_classes``: 0 is the number of labels; with no labels, names become class_0, class_1, …;
        - ``ignore_label``: mask value without a class (default 255).

        Other keys are ignored; absent ones are empty.

    Raises:
      ConfigError: a key is wrong or two contradict each other.
      DataError: the data is missing, damaged or inconsistent, or cannot be stored.
    """
    name = data.get("dataset", "")
    if name not in DATASETS:
        raise ConfigError(f"config.data.dataset is {name!r}, expected one of {', '.join(DATASETS)}.")
    data_dir = Path(data.get("data_dir") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    builder = _make_builder(name, data, data_dir)
    if not _is_prepared(builder):
        _prepare(builder, data_dir)
        builder = _make_builder(name, data, data_dir)
    metadata = builder.info.metadata
    return SegmentationDataset(
        name="/".join(filter(None, (builder.name, getattr(builder.builder_config, "name", None)))),
        labels=tuple(metadata["labels"]),
        ignore_label=metadata["ignore_label"],
        max_size={split: tuple(size) for split, size in metadata["max_size"].items()},
        num_examples={split: info.num_examples for split, info in builder.info.splits.items()},
        builder=builder,
    )


def _make_builder(name: str, data: Mapping[str, Any], data_dir: Path) -> tfds.core.DatasetBuilder:
    archive = data.get("archive") or ""
    if name == "voc_segmentation/custom":
        if not archive:
            raise ConfigError(
                "config.data.archive is empty, but voc_segmentation/custom needs the path of an archive or "
                "folder in VOC layout. Set --config.data.archive=PATH."
            )
        labels = _labels(data.get("labels") or "", data.get("num_classes") or 0)
        ignore_label = data.get("ignore_label", 255)
        if not 0 <= ignore_label <= 255:
            raise ConfigError(f"config.data.ignore_label is {ignore_label}, expected a pixel value from 0 to 255.")
        config = custom_config(archive, labels=labels, ignore_label=ignore_label)
        return VocSegmentation(config=config, data_dir=data_dir)
    if name == "shapes_segmentation":
        _check_fixed(name, data, SHAPES_LABELS, SHAPES_IGNORE_LABEL)
        return ShapesSegmentation(data_dir=data_dir)
    _check_fixed(name, data, VOC_LABELS, VOC_IGNORE_LABEL)
    config = name.partition("/")[2]
    sbd_archive = data.get("sbd_archive") or ""
    return VocSegmentation(config=config, archive=archive, sbd_archive=sbd_archive, data_dir=data_dir)


def _labels(text: str, num_classes: int) -> tuple[str, ...]:
    """Label names from a file or a list in one string, or made up from their number."""
    if not text:
        if num_classes <= 0:
            raise ConfigError(
                "config.data.labels and config.data.num_classes are both empty. Give the label names (a text "
                "file with one name per line, or names separated by commas), or at least their number."
            )
        labels = tuple(f"class_{index}" for index in range(num_classes))
    else:
        path = Path(text).expanduser()
        if "," not in text and not path.is_file():
            raise ConfigError(
                f"config.data.labels is {text!r}, which is neither a file nor several names separated by commas."
            )
        names = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else text.split(",")
        labels = tuple(name.strip() for name in names if name.strip())
    if num_classes and num_classes != len(labels):
        raise ConfigError(
            f"config.data.num_classes is {num_classes}, but config.data.labels names {len(labels)} classes "
            f"({', '.join(labels)}). Correct one of them, or set num_classes to 0."
        )
    if not 1 <= len(labels) <= 256:
        raise ConfigError(f"config.data.labels names {len(labels)} classes; masks of 8 bits hold 1 to 256.")
    return labels


def _check_fixed(name: str, data: Mapping[str, Any], labels: tuple[str, ...], ignore_label: int) -> None:
    """Refuse settings that cannot apply to a data set whose labels are fixed."""
    if data.get("labels"):
        raise ConfigError(f"config.data.labels is set, but the labels of {name} are fixed. Set it to ''.")
    for key, fixed in (("num_classes", len(labels)), ("ignore_label", ignore_label)):
        value = data.get(key)
        if value not in (None, fixed) and not (key == "num_classes" and value == 0):
            raise ConfigError(f"config.data.{key} is {value}, but {name} has {fixed}.")


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def _prepare(builder: tfds.core.DatasetBuilder, data_dir: Path) -> None:
    """Build the data set, alone; whatever goes wrong, no unfinished folder stays."""
    target = Path(builder.data_dir)
    try:
        with _only_one(data_dir):
            if _is_prepared(builder):  # another process was faster
                return
            if target.exists():
                raise DataError(f"{target} is not a complete data set. Delete that folder to have it rebuilt.")
            for leftover in target.parent.glob(f"incomplete.*_{target.name}"):  # of a killed process
                shutil.rmtree(leftover)
            logging.info("Preparing %s in %s; this happens once.", builder.info.full_name, target)
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            try:
                builder.download_and_prepare()
            except BaseException:
                with contextlib.suppress(OSError):
                    target.parent.rmdir()  # if empty
                raise
    except OSError as error:
        raise DataError(
            f"Cannot prepare {builder.info.full_name} in {data_dir}: {error}. Set --config.data.data_dir to "
            "a folder that can be written and has room."
        ) from error


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold an advisory lock on the folder, so that two processes do not build at once."""
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("Another process is preparing a data set in %s; waiting for it.", data_dir)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            logging.warning("No lock on %s (%s): prepare this data set in one process only.", data_dir, error)
        yield
    finally:
        os.close(descriptor)
