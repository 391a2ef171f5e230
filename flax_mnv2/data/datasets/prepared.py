"""Prepared data sets: built once, by one process."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import tensorflow_datasets as tfds
from absl import logging

from flax_mnv2.errors import ConfigError, DataError

ARRAY_RECORD = "array_record"  # TFDS's name of the format with random access
CONVERTED_FOLDER = ARRAY_RECORD  # beside the versions of a data set: those converted to it
LOCK_FILE = ".preparing.lock"  # in the folder of data sets; it stays there


def default_data_dir(data_dir: str) -> Path:
    """Returns where prepared data sets live: ``data_dir``, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``."""
    place = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in place:
        raise ConfigError(
            f"data_dir is {place!r}, but data sets are read and written as files. Mount the bucket (docs/tpu_pods.md, "
            "section 3) and give the path of the mount."
        )
    return Path(place).expanduser()


def check_apart(images: Path, data_dir: Path) -> None:
    """Raises a DataError where prepared data sets would lie in the folder ``images`` that they are made of."""
    if images.is_dir() and data_dir.resolve().is_relative_to(images):
        raise DataError(
            f"The folder of prepared data sets, {data_dir}, lies in the folder of images, {images}, and would change "
            "it. Set --config.data.data_dir to another place."
        )


def prepared(make: Callable[[], tfds.core.DatasetBuilder], data_dir: Path, **options: Any) -> tfds.core.DatasetBuilder:
    """Returns the builder of a prepared data set, which is built first where it is not there yet.

    ``make`` gives the builder, and is asked again after building, to read what was written; ``options`` are those of
    ``download_and_prepare``. A DataError where the data is damaged or cannot be stored; no unfinished folder stays.
    """
    builder = make()
    if is_prepared(builder.data_dir):
        return builder
    target = Path(builder.data_dir)
    with alone_for(target, data_dir, what=builder.info.full_name):
        if not is_prepared(target):  # else another process was faster
            logging.info("Preparing %s in %s; this happens once.", builder.info.full_name, target)
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            builder.download_and_prepare(**options)
    builder = make()
    if not is_prepared(builder.data_dir):
        raise DataError(
            f"The files of {builder.name} changed while they were read. Start again when they are complete."
        )
    return builder


def is_prepared(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a folder of a data set is complete: its description is there, which appears last."""
    return (Path(folder) / "dataset_info.json").is_file()


def file_formats(folder: Path) -> tuple[str, ...]:
    """Returns the formats that a prepared data set is stored in, TFDS's names, the one it was built in first."""
    path = folder / "dataset_info.json"
    try:
        description = json.loads(path.read_text())
        return (description.get("fileFormat", "tfrecord"), *description.get("alternativeFileFormats", ()))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"Cannot read {path} ({error}). Is it the folder of a data set that TFDS prepared?") from error


@contextlib.contextmanager
def alone_for(target: Path, data_dir: Path, *, what: str) -> Iterator[None]:
    """Locks the folder of data sets while the caller makes ``target`` in it, unless that is complete already.

    Remnants of a killed process go first. An OSError that the caller meets becomes a DataError about ``what``.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _locked(data_dir):
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


def _locked(data_dir: Path) -> filelock.BaseFileLock:
    """Returns an acquired lock on the folder, to be released by ``with``."""
    lock = filelock.FileLock(data_dir / LOCK_FILE)
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Another process prepares a data set in {data_dir}; waiting for it to end.", flush=True)
        return lock.acquire()
