"""Prepared data sets: built once, by one process, and opened for random access."""

import bisect
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.errors import ConfigError, DataError

ARRAY_RECORD = "array_record"  # TFDS's name of the format with random access
CONVERTED_FOLDER = ARRAY_RECORD  # beside the versions of a data set: those converted to it


def default_data_dir(data_dir: str) -> Path:
    """Where prepared data sets live: ``data_dir``, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
      ConfigError: it is an address such as ``gs://bucket``.
    """
    place = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in place:
        raise ConfigError(
            f"data_dir is {place!r}, but data sets are read and written as files. Mount the bucket (docs/tpu_pods.md, "
            "section 3) and give the path of the mount."
        )
    return Path(place).expanduser()


def prepared(make: Callable[[], tfds.core.DatasetBuilder], data_dir: Path, **options: Any) -> tfds.core.DatasetBuilder:
    """The builder of a prepared data set, which is built first where it is not there yet.

    Args:
      make: gives the builder; asked again after building, to read what was written.
      data_dir: the builder's folder of data sets.
      **options: arguments of ``download_and_prepare``.

    Raises:
      DataError: the data is damaged, or cannot be stored; no unfinished folder stays.
    """
    builder = make()
    if is_prepared(builder.data_dir):
        return builder
    _prepare(builder, data_dir, options)
    builder = make()
    if not is_prepared(builder.data_dir):
        raise DataError(
            f"The files of {builder.name} changed while they were read. Start again when they are complete."
        )
    return builder


class Records:
    """Random access to the records of a split, in their stored order; safe to share between threads, can be pickled.

    Attributes:
      folder: of the data set.
      place: the same with the split, for messages.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, *, images: Sequence[str]):
        """Opens the records, as :func:`open_records` does after a look at the files."""
        info = builder.info.splits[split]
        self.folder = str(builder.data_dir)
        self.place = f"{self.folder}, split {split}"
        self._files = [str(file) for file in info.filepaths]
        self._ends = list(itertools.accumulate(info.shard_lengths))
        skip = tfds.decode.SkipDecoding()
        self._source = builder.as_data_source(split, decoders=dict.fromkeys(images, skip))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The features of one record; those that a damaged record lacks may be absent or None.

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


def open_records(builder: tfds.core.DatasetBuilder, split: str, *, images: Sequence[str]) -> Records:
    """Random access to the records of a split, in their stored order.

    Args:
      builder: of a prepared data set.
      split: one of its splits.
      images: names of the features that stay encoded.

    Raises:
      DataError: prepared files are missing.
    """
    for file in builder.info.splits[split].filepaths:
        if not file.exists():
            raise DataError(
                f"The prepared data set is damaged: {file} is missing. Delete "
                f"{builder.data_dir} and start again to rebuild it."
            )
    return Records(builder, split, images=images)


def is_prepared(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder of a data set is complete: its description is there, which appears last."""
    return (Path(folder) / "dataset_info.json").is_file()


def file_formats(folder: Path) -> tuple[str, ...]:
    """The formats that a prepared data set is stored in, TFDS's names, the one it was built in first.

    Raises:
      DataError: its description is damaged.
    """
    path = folder / "dataset_info.json"
    try:
        description = json.loads(path.read_text())
        return (description.get("fileFormat", "tfrecord"), *description.get("alternativeFileFormats", ()))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"Cannot read {path} ({error}). Is it the folder of a data set that TFDS prepared?") from error


@contextlib.contextmanager
def alone_for(target: Path, data_dir: Path, *, what: str) -> Iterator[None]:
    """Hold the folder of data sets while ``target`` is made in it; remnants of a killed process go first.

    Args:
      target: the data set's folder; made by the caller, unless it is complete already.
      data_dir: folder of data sets; created if need be.
      what: what messages call the data set.

    Raises:
      DataError: there is something else at ``target``, or the caller met an OSError.
    """
    try:
        with _only_one(data_dir):
            if target.exists() and not is_prepared(target):
                raise DataError(f"{target} is not a complete data set. Delete that folder to have it rebuilt.")
            for leftover in target.parent.glob(f"incomplete.*_{target.name}"):
                shutil.rmtree(leftover)
            try:
                yield
            except BaseException:
                with contextlib.suppress(OSError):
                    target.parent.rmdir()  # if empty
                raise
    except OSError as error:
        raise DataError(
            f"Cannot prepare {what} in {data_dir}: {error}. Set data_dir (--config.data.data_dir in training) to a "
            "folder that can be written and has room."
        ) from error


def _prepare(builder: tfds.core.DatasetBuilder, data_dir: Path, options: dict[str, Any]) -> None:
    """Build the data set, alone; whatever goes wrong, no unfinished folder stays."""
    target = Path(builder.data_dir)
    with alone_for(target, data_dir, what=builder.info.full_name):
        if is_prepared(target):  # another process was faster
            return
        logging.info("Preparing %s in %s; this happens once.", builder.info.full_name, target)
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        builder.download_and_prepare(**options)


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold an advisory lock on the folder, so that two processes do not build at once."""
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process prepares a data set in {data_dir}; waiting for it to end.", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            logging.warning("No lock on %s (%s): prepare this data set in one process only.", data_dir, error)
        yield
    finally:
        os.close(descriptor)
