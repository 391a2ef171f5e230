"""A data set that TFDS has prepared as TFRecord, written again as ArrayRecord; neither needs TensorFlow.

The examples are copied byte by byte, shard by shard. TFDS's own converter reads through TensorFlow and Apache Beam.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tqdm import tqdm

from flax_mnv2.data.archives.tfrecord import read_records
from flax_mnv2.data.datasets.prepared import (
    ARRAY_RECORD,
    CONVERTED_FOLDER,
    alone_for,
    default_data_dir,
    file_formats,
    is_prepared,
)
from flax_mnv2.errors import DataError

_TFRECORD = "tfrecord"
_WRITER_OPTIONS = "group_size:1"  # as TFDS writes: every record can be read alone


@dataclasses.dataclass(frozen=True)
class _Shard:
    source: Path
    target: Path
    num_examples: int


def convert(source: str | os.PathLike[str], *, data_dir: str = "", num_workers: int | None = None) -> Path:
    """Converts one version of a data set, and returns the folder of the copy, with the same shards in the same order.

    ``source`` is its folder, such as ``~/tensorflow_datasets/imagenet2012/5.1.0``; it is only read. ``data_dir`` is the
    folder of data sets to write to, as ``NAME[/CONFIG]/VERSION``; "" writes beside the source, to
    ``array_record/VERSION``, where ``config.data.dataset=imagenet2012`` finds it. ``num_workers`` are threads, one for
    each core unless given; ArrayRecord's writer compresses in threads of its own. A DataError where the source is
    damaged or not complete, or the target cannot be written; nothing is left behind.
    """
    source = Path(source).expanduser()
    formats = file_formats(source)
    if ARRAY_RECORD in formats:
        raise DataError(f"{source} is stored as ArrayRecord already; there is nothing to convert.")
    if formats[0] != _TFRECORD:
        raise DataError(f"{source} is stored as {formats[0]}, expected {_TFRECORD}.")
    try:
        info = tfds.builder_from_directory(source).info
    except Exception as error:  # TFDS and protocol buffers report damage by whatever they stumble over
        raise _unreadable(source, error) from error
    source = source.resolve()
    if data_dir:
        root = default_data_dir(data_dir)
        name = "/".join(part for part in (info.name, info.config_name, str(info.version)) if part)
        target = root / name
        if not target.resolve().is_relative_to(root.resolve()):  # a description may say anything
            raise DataError(
                f"{source} calls itself {name[:80]!a}, which cannot name a folder. Correct its dataset_info.json."
            )
    else:
        root = source.parent / CONVERTED_FOLDER
        target = root / source.name
    if target.resolve() == source:
        raise DataError(f"{source} is where the copy would go. Give another --data_dir, or none.")
    with alone_for(target, root, what=f"the ArrayRecord copy of {source}"):
        if is_prepared(target):
            raise DataError(f"{target} is there already. Use it, or delete it to convert anew.")
        with _unfinished(target) as folder:
            _copy_descriptions(source, folder)
            _convert_shards(_shards(info, source, folder), num_workers)
    return target


def _unreadable(source: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:500]
    return DataError(f"Cannot open {source} as a data set that TFDS prepared ({type(error).__name__}): {reason}")


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place in the end, and goes if anything fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="incomplete.", suffix=f"_{target.name}", dir=target.parent))
    try:
        folder.chmod(target.parent.stat().st_mode & 0o777)  # mkdtemp's are closed to others
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copy_descriptions(source: Path, folder: Path) -> None:
    """Copies all files but the records, with the new format in ``dataset_info.json``."""
    for path in source.iterdir():
        if path.is_file() and f".{_TFRECORD}" not in path.name:
            shutil.copyfile(path, folder / path.name)
    path = folder / "dataset_info.json"
    description = {**json.loads(path.read_text()), "fileFormat": ARRAY_RECORD}
    path.write_text(json.dumps(description, indent=2))


def _shards(info: tfds.core.DatasetInfo, source: Path, folder: Path) -> list[_Shard]:
    """What to convert to what, by the descriptions on both sides."""
    shards = []
    try:
        converted = tfds.builder_from_directory(folder).info
        for name, split in info.splits.items():
            paths = zip(split.filepaths, converted.splits[name].filepaths, split.shard_lengths, strict=True)
            shards += [_Shard(Path(old), Path(new), num_examples) for old, new, num_examples in paths]
    except Exception as error:  # as above
        raise _unreadable(source, error) from error
    for shard in shards:
        if shard.target.parent != folder or shard.source.parent != source:  # file names come from dataset_info.json
            raise DataError(
                f"{source} names the file {str(shard.source)!a}, which is not in it. Correct its dataset_info.json."
            )
    missing = [shard.source for shard in shards if not shard.source.is_file() and shard.num_examples]
    if missing:
        raise DataError(
            f"{missing[0]} is missing{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}: the data set is "
            "not complete. Copy it again, or build it anew."
        )
    return shards


def _convert_shards(shards: list[_Shard], num_workers: int | None) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(num_workers or os.cpu_count())
    try:
        results = pool.map(_convert_shard, shards)
        for _ in tqdm(results, total=len(shards), unit=" shards", desc="Converting", disable=None):
            pass
    except RuntimeError as error:  # of ArrayRecord's writer, such as a full disk
        raise OSError(str(error)) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _convert_shard(shard: _Shard) -> None:
    writer = array_record_module.ArrayRecordWriter(str(shard.target), _WRITER_OPTIONS)
    count = 0
    try:
        if shard.source.is_file() or shard.num_examples:
            for record in read_records(shard.source):
                writer.write(record)
                count += 1
    finally:
        writer.close()
    if count != shard.num_examples:
        raise DataError(
            f"{shard.source} holds {count} examples, expected {shard.num_examples} by its dataset_info.json. Copy it "
            "again, or build it anew."
        )
    reader = array_record_module.ArrayRecordReader(str(shard.target))
    try:
        if reader.num_records() != count:
            raise OSError(f"{shard.target} was not written whole")
    finally:
        reader.close()
