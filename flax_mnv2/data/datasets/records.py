"""A prepared data set, opened for random access to its encoded examples."""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypedDict

import numpy as np
import tensorflow_datasets as tfds

from flax_mnv2.data.datasets.preparation import DIGESTS
from flax_mnv2.data.decode import decode_mask
from flax_mnv2.data.labels.histogram import absent, format_cells, format_table, shortened
from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.errors import DataError

_SHOWN = 12  # classes named in one line
_Sequence = tfds.features.Sequence


class EncodedExample(TypedDict):
    """One stored example: JPEG or PNG bytes, grey PNG bytes of class indices, and its name."""

    image: bytes
    segmentation_mask: bytes
    image_id: str


class LabeledExample(TypedDict):
    """One stored image with its class index; JPEG in ``imagenet2012``; any format that is read in ``image_folder``."""

    image: bytes
    label: int
    file_name: str


class VectorExample(TypedDict):
    """One stored image with a vector (C,) float32: 0 and 1 by class, or the values of a regression."""

    image: bytes
    label: np.ndarray
    file_name: str


class Objects(TypedDict):
    """The boxes of one image, as arrays of n rows."""

    bbox: np.ndarray  # (n, 4) float32, (y_min, x_min, y_max, x_max) as fractions of the image
    label: np.ndarray  # (n,) int64
    ignored: np.ndarray  # (n,) bool: crowds of COCO, difficult ones of VOC, which metrics leave out
    area: np.ndarray  # (n,) float32, in pixels; COCO's are of the objects' masks
    id: np.ndarray  # (n,) int64, COCO's; -1 where the source has none


class DetectionExample(TypedDict):
    """One stored image with its boxes, perhaps none; ``image_id`` is COCO's number in decimal, or a name."""

    image: bytes
    image_id: str
    file_name: str
    height: int
    width: int
    objects: Objects


class ExampleSource:
    """Random access to the encoded examples of one split, in their stored order.

    Safe to share between threads; can be pickled. ``place`` is the folder and the split, for messages.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, *, example: type, as_stored: bool = False):
        """Opens the records; a DataError where prepared files are missing.

        ``example`` is a TypedDict of what every example has: bytes are images that stay encoded, a string its name.
        ``as_stored`` is the rule by which to decode them, as ``data.decode`` has it.
        """
        self.as_stored = as_stored
        info = builder.info.splits[split]
        self._folder = str(builder.data_dir)
        self.place = f"{self._folder}, split {split}"
        self._features = example.__annotations__
        self._files = [str(file) for file in info.filepaths]
        self._ends = list(itertools.accumulate(info.shard_lengths))
        for file in info.filepaths:
            if not file.exists():
                raise DataError(
                    f"The prepared data set is damaged: {file} is missing. Delete "
                    f"{self._folder} and start again to rebuild it."
                )
        skip = tfds.decode.SkipDecoding()
        decoders = {name: skip for name, kind in self._features.items() if kind is bytes}
        self._records = builder.as_data_source(split, decoders=decoders)
        sequences = {name: each for name, each in builder.info.features.items() if isinstance(each, _Sequence)}
        self._sequences = {
            name: {key: (inner.np_dtype, inner.shape) for key, inner in each.feature.items()}
            for name, each in sequences.items()
        }

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Any:
        """Returns one example; a BadExampleError where its record is damaged, or lacks a feature.

        ArrayRecord keeps a hash of every chunk, so that damage does not pass for data.
        """
        try:
            record = self._records[index]
        except Exception as error:  # RuntimeError from C++, KeyError and others from what unpacks a record
            raise self._bad(index, f"cannot be read ({error or type(error).__name__})") from error
        missing = [name for name in self._features if record.get(name) is None]
        if missing:
            raise self._bad(index, f"has no {', '.join(missing)}")
        return {name: self._converted(name, value) for name, value in record.items()}

    def _converted(self, name: str, value: Any) -> Any:
        """Returns text as a string, and the rows of a sequence, which TFDS gives one by one, as arrays."""
        if name in self._sequences:
            kinds = self._sequences[name].items()
            return {key: np.array(value[key], dtype).reshape(-1, *shape) for key, (dtype, shape) in kinds}
        return value.decode(errors="replace") if self._features.get(name) is str else value

    def _bad(self, index: int, what: str) -> BadExampleError:
        file = bisect.bisect_right(self._ends, index)
        name = f"record {index - (self._ends[file - 1] if file else 0)} of {self._files[file]}"
        return BadExampleError(name, f"its record {what}. Delete {self._folder} and start again to rebuild it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared data set.

    Attributes:
      name: such as ``imagenet2012``, or with TFDS's config, such as ``voc_segmentation/2012``.
      labels: the data set's own names of the classes, by index (ImageNet: synset ids such as ``n01440764``).
      builders: by split, what gives the prepared builder. A split of ImageNet is built when it is first asked for,
        so an evaluation does not wait for the training images.
      as_stored: the rule by which its images are decoded, as ``data.decode`` has it.
      left_out: by split, what was wrong with files that were left out when it was prepared.
      read: by split, what of the archive it was read from, in words; empty where that is fixed.
      unread: splits that are there and were not asked for.
      shared: a line for every two splits that have examples in common.
      kind: of its examples, such as "segmentation"; ``example`` is the TypedDict that each of them is.
    """

    name: str
    labels: tuple[str, ...]
    builders: Mapping[str, Callable[[], tfds.core.DatasetBuilder]] = dataclasses.field(repr=False, compare=False)
    read: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unread: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    as_stored: bool = False
    left_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict, repr=False)

    kind: ClassVar[str]
    example: ClassVar[type]
    targets: ClassVar[str] = "classes"  # what the labels name
    counted: ClassVar[str] = "images"  # of which each has a class

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.builders)

    def source(self, split: str) -> ExampleSource:
        """Returns the examples of a split in their stored order, which is that of the archive or list of ids.

        A DataError where there is no such split, its archive is damaged, or prepared files are missing.
        """
        if split not in self.builders:
            there = "".join(f", and {name}, which was not asked for" for name in self.unread[:4])
            raise DataError(
                f"{self.name} has no split {split!r} here; it has {', '.join(self.split_names)}{there}. Set "
                f"--config.data.eval_split={self._to_evaluate_on()}, or .train_split to one that is there."
            )
        return ExampleSource(self.builders[split](), split, example=self.example, as_stored=self.as_stored)

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Returns what changes with the examples of a split, not with where they lie, JSON.

        It has their ``digest``, None where TFDS or an earlier version prepared them, and ``sizes``: how many examples
        of how many bytes.
        """
        info = self.builders[split]().info
        digest = (info.metadata or {}).get(DIGESTS, {}).get(split)
        return {"digest": digest, "sizes": [info.splits[split].num_examples, int(info.splits[split].num_bytes)]}

    def class_counts(self, split: str) -> np.ndarray:
        """Returns the number of images, or of pixels, of each class in a split, (C,) int64.

        Where nobody counted them when the data set was prepared, all of it is read.
        """
        counted = self._counted(split)
        if counted is not None:
            return np.asarray(counted, np.int64)
        source, counts = self.source(split), np.zeros(len(self.labels), np.int64)
        for index in range(len(source)):
            counts += self._count(source[index])
        return counts

    def class_fractions(self) -> dict[str, list[float]]:
        """Returns by split the fraction of what is ``counted`` that each class has, if a preparation counted it."""
        counts = {split: np.asarray(self._counted(split) or (), np.float64) for split in self.builders}
        return {split: (each / max(each.sum(), 1.0)).tolist() for split, each in counts.items() if each.size}

    def _counted(self, split: str) -> Sequence[int] | None:
        """Returns what was counted when the data set was prepared."""
        return None

    def _count(self, example: Any) -> np.ndarray:
        """Returns how often each class occurs in one example."""
        raise NotImplementedError

    def _to_evaluate_on(self) -> str:
        names = (*self.split_names, *self.unread)
        return next((name for name in names if not name.startswith("train")), names[0])

    def notes(self) -> list[str]:
        """Returns what was read and what is odd about it, a line each."""
        lines = [f"{split}: {what}" for split, what in self.read.items()] + list(self.shared)
        return lines + ([f"not read: {', '.join(self.unread)}"] if self.unread else [])

    def histogram(self) -> list[str]:
        """Returns a table of how often each class occurs in each split, as lines; none where nobody counted."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationDataset(Dataset):
    """Images with one label each; a source gives :class:`LabeledExample`."""

    images: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)  # by split, of every class

    kind = "classification"
    example = LabeledExample

    def _counted(self, split: str) -> Sequence[int] | None:
        return self.images.get(split)

    def _count(self, example: LabeledExample) -> np.ndarray:
        return np.arange(len(self.labels)) == example["label"]

    def histogram(self) -> list[str]:
        """Returns a table of the fraction of images that each class has in each split; none where nobody counted."""
        return format_table(self.labels, self.images, {}) if self.images else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorDataset(Dataset):
    """Images with a vector each; a source gives :class:`VectorExample`.

    ``mean`` and ``std`` have those of every target by split: of classes, mean is the fraction of the images.
    """

    mean: Mapping[str, tuple[float, ...]]
    std: Mapping[str, tuple[float, ...]]

    example = VectorExample

    @classmethod
    def of(cls, name: str, builder: tfds.core.DatasetBuilder, **attributes: Any) -> Self:
        """Returns what ``builder``, which is prepared, has, with ``attributes`` such as ``left_out``."""
        metadata = builder.info.metadata
        return cls(
            name=name,
            labels=tuple(metadata["labels"]),
            builders=opened(builder.info.splits, builder),
            mean={split: tuple(values) for split, values in metadata["mean"].items()},
            std={split: tuple(values) for split, values in metadata["std"].items()},
            **attributes,
        )


class MultiLabelDataset(VectorDataset):
    """Images of any number of classes each."""

    kind = "multi_label_classification"

    def class_fractions(self) -> dict[str, list[float]]:
        """Returns by split the fraction of its images that each class is in; these do not add up to 1."""
        return {split: list(means) for split, means in self.mean.items()}

    def _count(self, example: VectorExample) -> np.ndarray:
        return example["label"].astype(np.int64)

    def notes(self) -> list[str]:
        """Returns what was read, and the classes that have no image in a split."""
        missing = {split: np.array(self.labels)[np.equal(means, 0)] for split, means in self.mean.items()}
        empty = [f"no image in {split}: {shortened(names, _SHOWN)}" for split, names in missing.items() if len(names)]
        return super().notes() + empty

    def histogram(self) -> list[str]:
        """Returns a table of the fraction of images that each class has in each split."""
        columns = {split: [f"{mean:.1%}" for mean in means] for split, means in self.mean.items()}
        return format_cells(self.labels, columns)


class RegressionDataset(VectorDataset):
    """Images with one or several numbers each."""

    kind, targets = "regression", "targets"

    def histogram(self) -> list[str]:
        """Returns a table of mean and standard deviation of each target in each split."""
        columns = {split: zip(means, self.std[split], strict=True) for split, means in self.mean.items()}
        cells = {split: [f"{mean:.4g} ± {std:.4g}" for mean, std in pairs] for split, pairs in columns.items()}
        return format_cells(self.labels, cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationDataset(Dataset):
    """Images with masks; a source gives :class:`EncodedExample`."""

    ignore_label: int  # mask value of pixels without a class
    max_size: Mapping[str, tuple[int, int]]  # largest height and largest width by split
    num_examples: Mapping[str, int]  # by split
    # By split, as ``labels.histogram.LabelHistogram.to_dict`` gives it; empty for what an older version has prepared.
    pixels: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    kind, counted = "segmentation", "pixels"
    example = EncodedExample

    def _counted(self, split: str) -> Sequence[int] | None:
        return self.pixels.get(split, {}).get("pixels")

    def _count(self, example: EncodedExample) -> np.ndarray:
        return np.bincount(decode_mask(example["segmentation_mask"]).ravel(), minlength=256)[: len(self.labels)]

    @classmethod
    def of(cls, builder: tfds.core.DatasetBuilder, **attributes: Any) -> "SegmentationDataset":
        """Returns what ``builder``, which is prepared, has, with ``attributes`` such as ``left_out``."""
        metadata = builder.info.metadata
        return cls(
            name="/".join(filter(None, (builder.name, getattr(builder.builder_config, "name", None)))),
            labels=tuple(metadata["labels"]),
            builders=opened(builder.info.splits, builder),
            ignore_label=metadata["ignore_label"],
            max_size={split: tuple(size) for split, size in metadata["max_size"].items()},
            num_examples={split: info.num_examples for split, info in builder.info.splits.items()},
            pixels=metadata.get("histogram", {}),
            read=metadata.get("read", {}),
            unread=tuple(metadata.get("unread", ())),
            shared=tuple(metadata.get("shared", ())),
            **attributes,
        )

    def notes(self) -> list[str]:
        """Returns what was read, and the classes that have no pixel in a split."""
        missing = {split: absent(self.labels, counts, self.ignore_label) for split, counts in self.pixels.items()}
        return super().notes() + [
            f"no pixel in {split}: {shortened(names, 8)}" for split, names in missing.items() if names
        ]

    def histogram(self) -> list[str]:
        """Returns a table of the fraction of pixels that each class has in each split, and that is ignored."""
        columns = {split: counts["pixels"] for split, counts in self.pixels.items()}
        ignored = [counts["ignored"] for counts in self.pixels.values()]
        return format_table(self.labels, columns, {"(ignored)": ignored}) if columns else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionDataset(Dataset):
    """Images with boxes; a source gives :class:`DetectionExample`."""

    category_ids: tuple[int, ...]  # COCO's, by class; 1, 2, … where the source has none
    integer_ids: bool  # whether image ids are numbers, as COCO's result format wants them
    max_boxes: Mapping[str, int]  # largest number in an image, by split
    num_examples: Mapping[str, int]  # by split
    boxes: Mapping[str, Sequence[int]]  # of every class, by split; empty for what an older version has prepared

    kind, counted = "detection", "boxes"
    example = DetectionExample

    def _counted(self, split: str) -> Sequence[int] | None:
        return self.boxes.get(split)

    @classmethod
    def of(cls, builder: tfds.core.DatasetBuilder, **attributes: Any) -> "DetectionDataset":
        """Returns what ``builder``, which is prepared, has, with ``attributes`` such as ``left_out``."""
        metadata = builder.info.metadata
        labels = tuple(metadata["labels"])
        return cls(
            labels=labels,
            builders=opened(builder.info.splits, builder),
            category_ids=tuple(metadata["category_ids"]) or tuple(range(1, len(labels) + 1)),
            integer_ids=metadata["integer_ids"],
            max_boxes=dict(metadata["max_boxes"]),
            boxes=metadata.get("boxes", {}),
            num_examples={split: info.num_examples for split, info in builder.info.splits.items()},
            **attributes,
        )


def opened(
    splits: Iterable[str], builder: tfds.core.DatasetBuilder
) -> dict[str, Callable[[], tfds.core.DatasetBuilder]]:
    """Returns ``Dataset.builders`` of splits that are prepared already."""
    return dict.fromkeys(splits, lambda: builder)
