"""A prepared data set, opened for random access to its encoded examples."""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import tensorflow_datasets as tfds

from flax_mnv2.data.datasets.preparation import DIGESTS
from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.errors import DataError


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
        return {
            name: value.decode(errors="replace") if self._features.get(name) is str else value
            for name, value in record.items()
        }

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
      kind: of its examples, "segmentation" or "classification"; ``example`` is the TypedDict that each of them is.
    """

    name: str
    labels: tuple[str, ...]
    builders: Mapping[str, Callable[[], tfds.core.DatasetBuilder]] = dataclasses.field(repr=False, compare=False)
    as_stored: bool = False
    left_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict, repr=False)

    kind: ClassVar[str]
    example: ClassVar[type]

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.builders)

    def source(self, split: str) -> ExampleSource:
        """Returns the examples of a split in their stored order, which is that of the archive or list of ids.

        A DataError where there is no such split, its archive is damaged, or prepared files are missing.
        """
        if split not in self.builders:
            raise DataError(f"{self.name} has no split {split!r} here; it has {', '.join(self.split_names)}.")
        return ExampleSource(self.builders[split](), split, example=self.example, as_stored=self.as_stored)

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Returns what changes with the examples of a split, not with where they lie, JSON.

        It has their ``digest``, None where TFDS or an earlier version prepared them, and ``sizes``: how many examples
        of how many bytes.
        """
        info = self.builders[split]().info
        digest = (info.metadata or {}).get(DIGESTS, {}).get(split)
        return {"digest": digest, "sizes": [info.splits[split].num_examples, int(info.splits[split].num_bytes)]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationDataset(Dataset):
    """Images with one label each; a source gives :class:`LabeledExample`."""

    kind = "classification"
    example = LabeledExample


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationDataset(Dataset):
    """Images with masks; a source gives :class:`EncodedExample`."""

    ignore_label: int  # mask value of pixels without a class
    max_size: Mapping[str, tuple[int, int]]  # largest height and largest width by split
    num_examples: Mapping[str, int]  # by split

    kind = "segmentation"
    example = EncodedExample

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
            **attributes,
        )


def opened(
    splits: Iterable[str], builder: tfds.core.DatasetBuilder
) -> dict[str, Callable[[], tfds.core.DatasetBuilder]]:
    """Returns ``Dataset.builders`` of splits that are prepared already."""
    return dict.fromkeys(splits, lambda: builder)
