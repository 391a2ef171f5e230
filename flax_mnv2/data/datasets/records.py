"""A prepared data set, opened for random access to its encoded examples."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import tensorflow_datasets as tfds

from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.errors import DataError


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


class Records:
    """Random access to the records of a split, in their stored order; safe to share between threads, can be pickled.

    Attributes:
      folder: of the data set.
      place: the same with the split, for messages.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, *, encoded: Sequence[str]):
        """Opens the records.

        Args:
          builder: of a prepared data set.
          split: one of its splits.
          encoded: names of the features that stay as they are stored.

        Raises:
          DataError: prepared files are missing.
        """
        info = builder.info.splits[split]
        self.folder = str(builder.data_dir)
        self.place = f"{self.folder}, split {split}"
        self._files = [str(file) for file in info.filepaths]
        self._ends = list(itertools.accumulate(info.shard_lengths))
        for file in info.filepaths:
            if not file.exists():
                raise DataError(
                    f"The prepared data set is damaged: {file} is missing. Delete "
                    f"{self.folder} and start again to rebuild it."
                )
        skip = tfds.decode.SkipDecoding()
        self._source = builder.as_data_source(split, decoders=dict.fromkeys(encoded, skip))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the features of one record; those that a damaged record lacks may be absent or None.

        Raises:
          BadExampleError: it cannot be read. ArrayRecord keeps a hash of every chunk, so that damage does not pass
            for data.
        """
        try:
            return self._source[index]
        except Exception as error:  # RuntimeError from C++, KeyError and others from what unpacks a record
            raise BadExampleError(
                self.name(index),
                f"its record cannot be read ({error or type(error).__name__}). Delete {self.folder} and start again to "
                "rebuild it",
            ) from error

    def name(self, index: int) -> str:
        """File and position of a record, for an example whose own name cannot be read."""
        file = bisect.bisect_right(self._ends, index)
        return f"record {index - (self._ends[file - 1] if file else 0)} of {self._files[file]}"


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
        """Returns one example.

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
class Dataset:
    """A prepared data set.

    Attributes:
      name: such as ``imagenet2012``, or with TFDS's config, such as ``voc_segmentation/2012``.
      labels: the data set's own names of the classes, by index (ImageNet: synset ids such as ``n01440764``).
      builders: by split, what gives the prepared builder. A split of ImageNet is built when it is first asked for,
        so an evaluation does not wait for the training images.
      kind: of its examples, "segmentation" or "classification".
    """

    name: str
    labels: tuple[str, ...]
    builders: Mapping[str, Callable[[], tfds.core.DatasetBuilder]] = dataclasses.field(repr=False, compare=False)

    kind: ClassVar[str]
    _features: ClassVar[tuple[str, ...]]  # of every example
    _encoded: ClassVar[tuple[str, ...]]  # those that stay as they are stored
    _text: ClassVar[str]  # the one that names an example

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.builders)

    def source(self, split: str) -> ExampleSource:
        """Returns the examples of a split in their stored order, which is that of the archive or list of ids.

        Raises:
          DataError: there is no such split, its archive is damaged, or prepared files are missing.
        """
        if split not in self.builders:
            raise DataError(f"{self.name} has no split {split!r} here; it has {', '.join(self.split_names)}.")
        records = Records(self.builders[split](), split, encoded=self._encoded)
        return ExampleSource(records, features=self._features, text=self._text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationDataset(Dataset):
    """Images with one label each; a source gives :class:`LabeledExample`."""

    kind = "classification"
    _features = tuple(LabeledExample.__annotations__)
    _encoded = ("image",)
    _text = "file_name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationDataset(Dataset):
    """Images with masks; a source gives :class:`EncodedExample`.

    Attributes:
      ignore_label: mask value of pixels without a class.
      max_size: largest height and largest width by split.
      num_examples: number of examples by split.
    """

    ignore_label: int
    max_size: Mapping[str, tuple[int, int]]
    num_examples: Mapping[str, int]

    kind = "segmentation"
    _features = tuple(EncodedExample.__annotations__)
    _encoded = ("image", "segmentation_mask")
    _text = "image_id"

    @classmethod
    def of(cls, builder: tfds.core.DatasetBuilder) -> "SegmentationDataset":
        """Returns what ``builder``, which is prepared, has."""
        metadata = builder.info.metadata
        return cls(
            name="/".join(filter(None, (builder.name, getattr(builder.builder_config, "name", None)))),
            labels=tuple(metadata["labels"]),
            builders=opened(builder.info.splits, builder),
            ignore_label=metadata["ignore_label"],
            max_size={split: tuple(size) for split, size in metadata["max_size"].items()},
            num_examples={split: info.num_examples for split, info in builder.info.splits.items()},
        )


def opened(
    splits: Iterable[str], builder: tfds.core.DatasetBuilder
) -> dict[str, Callable[[], tfds.core.DatasetBuilder]]:
    """Returns ``Dataset.builders`` of splits that are prepared already."""
    return dict.fromkeys(splits, functools.partial(_same, builder))


def _same(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    return builder
