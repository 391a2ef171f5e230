"""From ``config.data`` to a prepared data set with random access to its encoded examples."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import tensorflow_datasets as tfds

from flax_mnv2.data.datasets import image_folder, imagenet
from flax_mnv2.data.datasets.prepared import Records, default_data_dir, open_records, prepared
from flax_mnv2.data.datasets.shapes import SHAPES_IGNORE_LABEL, SHAPES_LABELS, ShapesSegmentation
from flax_mnv2.data.datasets.voc import VOC_IGNORE_LABEL, VOC_LABELS, VocSegmentation, custom_config
from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.errors import ConfigError, DataError

DATASETS = (
    "voc_segmentation/2012",
    "voc_segmentation/2012_aug",
    "voc_segmentation/custom",
    "shapes_segmentation",
)
CLASSIFICATION_DATASETS = ("imagenet2012", "image_folder")


class EncodedExample(TypedDict):
    """One stored example: JPEG or PNG bytes, grey PNG bytes of class indices, and its name."""

    image: bytes
    segmentation_mask: bytes
    image_id: str


class LabeledExample(TypedDict):
    """One stored example of a classification data set: its image file, class index, and the name of the file.

    The file is a JPEG in ``imagenet2012``, and JPEG, PNG, WebP or BMP in ``image_folder``.
    """

    image: bytes
    label: int
    file_name: str


class ExampleSource:
    """Random access to the encoded examples of one split; safe to share between threads, can be pickled.

    Attributes:
      place: the folder and the split, for messages.
    """

    def __init__(self, records: Records, *, features: Sequence[str], text: str):
        """Reads ``records``.

        Args:
          records: of a prepared data set.
          features: what every example has.
          text: the one that names an example; TFDS gives it as bytes.
        """
        self._records = records
        self._features = tuple(features)
        self._text = text
        self.place = records.place

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Any:
        """One example.

        Raises:
          BadExampleError: its record is damaged, or lacks a feature.
        """
        record = self._records[index]
        missing = [name for name in self._features if record.get(name) is None]
        if missing:
            raise BadExampleError(
                self._records.name(index),
                f"its record has no {', '.join(missing)}. Delete {self._records.folder} and start again to rebuild it",
            )
        return {**record, self._text: record[self._text].decode(errors="replace")}


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
        """The examples of a split, as :class:`EncodedExample`, in the order of its list of ids.

        Raises:
          DataError: there is no such split, or prepared files are missing.
        """
        if split not in self.num_examples:
            raise DataError(f"{self.name} has no split {split!r}; it has {', '.join(self.split_names)}.")
        records = open_records(self.builder, split, images=("image", "segmentation_mask"))
        return ExampleSource(records, features=("image", "segmentation_mask", "image_id"), text="image_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationDataset:
    """Images with one label each, from archives or from a data set that TFDS has prepared.

    Attributes:
      name: such as ``imagenet2012``.
      labels: the data set's own names of the classes, by index (ImageNet: synset ids such as ``n01440764``).
      builders: by split, what gives the prepared builder. A split of ImageNet is built when it is first asked for,
        so an evaluation does not wait for the training images.
    """

    name: str
    labels: tuple[str, ...]
    builders: Mapping[str, Callable[[], tfds.core.DatasetBuilder]] = dataclasses.field(repr=False, compare=False)

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.builders)

    def source(self, split: str) -> ExampleSource:
        """The examples of a split, as :class:`LabeledExample`, in the order of the archive.

        Raises:
          DataError: there is no such split, its archive is damaged, or prepared files are missing.
        """
        if split not in self.builders:
            raise DataError(f"{self.name} has no split {split!r} here; it has {', '.join(self.split_names)}.")
        records = open_records(self.builders[split](), split, images=("image",))
        return ExampleSource(records, features=("image", "label", "file_name"), text="file_name")


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
    data_dir = default_data_dir(data.get("data_dir") or "")
    builder = prepared(lambda: _make_builder(name, data, data_dir), data_dir)
    metadata = builder.info.metadata
    return SegmentationDataset(
        name="/".join(filter(None, (builder.name, getattr(builder.builder_config, "name", None)))),
        labels=tuple(metadata["labels"]),
        ignore_label=metadata["ignore_label"],
        max_size={split: tuple(size) for split, size in metadata["max_size"].items()},
        num_examples={split: info.num_examples for split, info in builder.info.splits.items()},
        builder=builder,
    )


def load_classification(data: Mapping[str, Any]) -> ClassificationDataset:
    """Find a classification data set, and prepare it: ``image_folder`` now, ImageNet by split when asked for.

    Args:
      data: ``config.data``, a ConfigDict or any mapping with the keys

        - ``dataset``: one of :data:`CLASSIFICATION_DATASETS`;
        - ``data_dir``: as for :func:`load_segmentation`;
        - ``archive``: for ``imagenet2012`` the folder of ``ILSVRC2012_img_train.tar`` and
          ``ILSVRC2012_img_val.tar``; one of them is enough for its split. Empty: TFDS's own ``imagenet2012``, if it
          is prepared in ``data_dir`` as ArrayRecord, else what ``flax_mnv2.data.prepare.command`` built there, else the
          archives in the folder ``downloads/manual`` there. For ``image_folder`` a folder, tar or zip in the layout
          of :mod:`flax_mnv2.data.datasets.folder_files`;
        - ``holdout``: for ``image_folder``, the share of each class of train that becomes ``val`` if the archive has
          no split for evaluation (default 0.1; 0 is none).

        Other keys are ignored; absent ones are empty.

    Raises:
      ConfigError: a key is wrong.
      DataError: the data is not there, or damaged.
    """
    name = data.get("dataset", "")
    if name not in CLASSIFICATION_DATASETS:
        raise ConfigError(
            f"config.data.dataset is {name!r}, expected one of {', '.join(CLASSIFICATION_DATASETS)} for classification."
        )
    data_dir = default_data_dir(data.get("data_dir") or "")
    return {"imagenet2012": _load_imagenet, "image_folder": _load_image_folder}[name](data, data_dir)


def _load_imagenet(data: Mapping[str, Any], data_dir: Path) -> ClassificationDataset:
    labels = imagenet.imagenet_labels()
    _check_fixed("imagenet2012", data, num_classes=len(labels))
    archive = data.get("archive") or ""
    place = imagenet.manual_dir(archive, data_dir)
    existing = None if archive else imagenet.prepared_by_tfds(data_dir)
    if existing is not None:
        builders = _opened({split: existing for split in existing.info.splits if split in imagenet.SPLITS})
    else:
        builders = {
            split: functools.partial(prepared, functools.partial(imagenet.make_builder, split, tar, data_dir), data_dir)
            for split, tar in imagenet.find_archives(place).items()
        }
        if not archive:
            builders |= _opened(imagenet.installed(data_dir))
    if not builders:
        raise imagenet.no_archives(place)
    return ClassificationDataset(
        name="imagenet2012",
        labels=labels,
        builders={split: builders[split] for split in imagenet.SPLITS if split in builders},
    )


def _load_image_folder(data: Mapping[str, Any], data_dir: Path) -> ClassificationDataset:
    archive, holdout = data.get("archive") or "", data.get("holdout", 0.1)
    _check_fixed("image_folder", data)
    if not archive:
        raise ConfigError(
            "config.data.archive is empty, but image_folder needs the path of a folder, tar or zip of images. Set "
            "--config.data.archive=PATH."
        )
    if not 0 <= holdout < 1:
        raise ConfigError(f"config.data.holdout is {holdout}, expected a share from 0 to below 1, such as 0.1.")
    builder = prepared(lambda: image_folder.make_builder(archive, data_dir, holdout=holdout), data_dir)
    labels = tuple(builder.info.features["label"].names)
    _check_fixed("image_folder", data, num_classes=len(labels))
    return ClassificationDataset(
        name="image_folder", labels=labels, builders=_opened(dict.fromkeys(builder.info.splits, builder))
    )


def _opened(builders: Mapping[str, tfds.core.DatasetBuilder]) -> dict[str, Callable[[], tfds.core.DatasetBuilder]]:
    """Builders of prepared data, in the form of those that are yet to be asked for."""
    return {split: functools.partial(lambda builder: builder, builder) for split, builder in builders.items()}


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
        _check_fixed(name, data, num_classes=len(SHAPES_LABELS), ignore_label=SHAPES_IGNORE_LABEL)
        return ShapesSegmentation(data_dir=data_dir)
    _check_fixed(name, data, num_classes=len(VOC_LABELS), ignore_label=VOC_IGNORE_LABEL)
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


def _check_fixed(name: str, data: Mapping[str, Any], **fixed_values: int) -> None:
    """Refuse settings that cannot apply to a data set whose labels are fixed."""
    if data.get("labels"):
        raise ConfigError(f"config.data.labels is set, but the labels of {name} are fixed. Set it to ''.")
    for key, fixed in fixed_values.items():
        value = data.get(key)
        if value not in (None, fixed) and not (key == "num_classes" and value == 0):
            raise ConfigError(f"config.data.{key} is {value}, but {name} has {fixed}.")
