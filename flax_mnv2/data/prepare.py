"""Prepared data sets: built once, by one process, and opened for random access."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from flax_mnv2.errors import DataError


def default_data_dir(data_dir: str) -> Path:
    """Where prepared data sets live: ``data_dir``, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared(make: Callable[[], tfds.core.DatasetBuilder], data_dir: Path) -> tfds.core.DatasetBuilder:
    """The builder of a prepared data set, which is built first where it is not there yet.

    Args:
      make: gives the builder; asked again after building, to read what was written.
      data_dir: the builder's folder of data sets.

    Raises:
      DataError: the data is damaged, or cannot be stored; no unfinished folder stays.
    """
    builder = make()
    if _is_prepared(builder):
        return builder
    _prepare(builder, data_dir)
    return make()


def open_records(builder: tfds.core.DatasetBuilder, split: str, *, images: Sequence[str]) -> Sequence[Any]:
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
    skip = tfds.decode.SkipDecoding()
    return builder.as_data_source(split, decoders=dict.fromkeys(images, skip))


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
