"""Data sets stored as TFRecord become ArrayRecord without TensorFlow, and damage is found.

The TFRecord files are written here by tensorboardX, whose code for framing and checksums is its own.
"""

import json
import shutil
import struct
import sys

import google_crc32c
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorboardX.record_writer import RecordWriter

from flax_mnv2.data.archives.tfrecord import make_record, read_records
from flax_mnv2.data.datasets.examples import LocalInfo
from flax_mnv2.data.datasets.prepared import LOCK_FILE
from flax_mnv2.data.prepare.conversion import convert
from flax_mnv2.errors import DataError

RECORDS = [b"first", b"", bytes(range(256)) * 300, b"last"]


def write_tfrecord(path, records):
    writer = RecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()


def test_read_records(tmp_path):
    path = tmp_path / "x.tfrecord"
    write_tfrecord(path, RECORDS)
    assert list(read_records(path)) == RECORDS
    assert path.read_bytes() == b"".join(map(make_record, RECORDS))
    path.write_bytes(b"")
    assert list(read_records(path)) == []
    with pytest.raises(DataError, match=r"Cannot read .*absent"):
        list(read_records(tmp_path / "absent"))


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_always_found(tmp_path, seed):
    path = tmp_path / "x.tfrecord"
    write_tfrecord(path, RECORDS)
    data = bytearray(path.read_bytes())
    position = np.random.default_rng(seed).integers(len(data)) if seed else 7  # the length's highest byte
    data[position] ^= 1 << seed
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.tfrecord, record at byte \d+: the checksum of its (length|data) does not"):
        list(read_records(path))


def test_a_cut_file_is_always_found(tmp_path):
    path = tmp_path / "x.tfrecord"
    write_tfrecord(path, RECORDS)
    whole = path.read_bytes()
    ends = np.cumsum([len(record) + 16 for record in RECORDS]).tolist()
    for length in (1, 11, 12, 20, ends[0] + 5, ends[2] - 1, ends[2] - 50_000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="the file ends within"):
            list(read_records(path))


@pytest.mark.parametrize("length", [5, 1 << 31, (1 << 64) - 1])
def test_lengths_are_checked_against_the_file(tmp_path, length):
    """Even where the checksum of the length is right."""
    start = struct.pack("<Q", length)
    checksum = google_crc32c.value(start)
    masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
    (tmp_path / "x").write_bytes(start + struct.pack("<I", masked) + b"abc")
    with pytest.raises(DataError, match=rf"should have {length:,} bytes, but the file ends"):
        list(read_records(tmp_path / "x"))


class _Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Three shards of one split and one of another, with a config."""

    name = "numbers"
    VERSION = tfds.core.Version("2.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small", version="2.1.0")]

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["even", "odd"])}
        )
        return LocalInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"image": bytes([number]) * 500, "label": number % 2}


def read(folder):
    """(encoded image, label) of every example by split."""
    builder = tfds.builder_from_directory(folder)
    skip = {"image": tfds.decode.SkipDecoding()}
    sources = {split: builder.as_data_source(split, decoders=skip) for split in builder.info.splits}
    return {
        split: [(source[index]["image"], int(source[index]["label"])) for index in range(len(source))]
        for split, source in sources.items()
    }


@pytest.fixture
def prepared(tmp_path):
    """What TFDS would have prepared as TFRecord, and the same as ArrayRecord: two folders."""
    config = tfds.download.DownloadConfig(num_shards=3)
    builder = _Numbers(config="small", data_dir=str(tmp_path / "array"), file_format="array_record")
    builder.download_and_prepare(download_config=config)
    array = tmp_path / "array" / "numbers" / "small" / "2.1.0"
    assert len(list(array.glob("numbers-train.array_record-*-of-00003"))) == 3
    source = tmp_path / "data" / "numbers" / "small" / "2.1.0"
    source.mkdir(parents=True)
    for path in array.iterdir():
        if "array_record" not in path.name:
            shutil.copy(path, source)
    description = json.loads((source / "dataset_info.json").read_text())
    (source / "dataset_info.json").write_text(json.dumps({**description, "fileFormat": "tfrecord"}))
    for path in array.glob("*array_record*"):
        reader = array_record_module.ArrayRecordReader(str(path))
        write_tfrecord(source / path.name.replace("array_record", "tfrecord"), reader.read_all())
        reader.close()
    return source, array


def left_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE]


def test_conversion(prepared):
    source, array = prepared
    before = {path: path.read_bytes() for path in source.iterdir()}
    target = convert(source)
    assert target == source.parent / "array_record" / "2.1.0"
    assert read(target) == read(array)
    assert {split: len(examples) for split, examples in read(target).items()} == {"train": 20, "test": 3}
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in array.iterdir())
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    assert sorted(path.name for path in target.parent.iterdir()) == [LOCK_FILE, "2.1.0"]
    assert "tensorflow" not in sys.modules
    with pytest.raises(DataError, match="is there already"):
        convert(source)
    with pytest.raises(DataError, match="ArrayRecord already"):
        convert(target)


def test_conversion_into_another_place(prepared, tmp_path):
    source, array = prepared
    target = convert(source, data_dir=str(tmp_path / "other"))
    assert target == tmp_path / "other" / "numbers" / "small" / "2.1.0"
    assert read(target) == read(array)
    with pytest.raises(DataError, match="where the copy would go"):
        convert(source, data_dir=str(tmp_path / "data"))


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _drop_the_last_record(path):
    data = path.read_bytes()
    position = 0
    while (end := position + 16 + struct.unpack_from("<Q", data, position)[0]) < len(data):
        position = end
    path.write_bytes(data[:position])


DAMAGE = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "the file ends within it"),
    "flipped": (_flip, r"the checksum of its (length|data) does not match"),
    "missing": (lambda path: path.unlink(), r"train\.tfrecord-00001-of-00003 is missing: the data set is not complete"),
    "a record less": (_drop_the_last_record, r"holds \d examples, expected \d by its dataset_info\.json"),
}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_conversion_by_several_threads(prepared, num_workers):
    source, array = prepared
    path = source / "numbers-train.tfrecord-00000-of-00003"
    whole = path.read_bytes()
    _flip(path)
    with pytest.raises(DataError, match="the checksum of its"):
        convert(source, num_workers=num_workers)
    assert not left_in(source.parent / "array_record")
    path.write_bytes(whole)
    assert read(convert(source, num_workers=num_workers)) == read(array)


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_leaves_nothing(prepared, tmp_path, case):
    source, _ = prepared
    path = source / "numbers-train.tfrecord-00001-of-00003"
    damage, message = DAMAGE[case]
    whole = path.read_bytes()
    damage(path)
    with pytest.raises(DataError, match=message):
        convert(source)
    with pytest.raises(DataError, match=message):
        convert(source, data_dir=str(tmp_path / "other"))
    assert not left_in(tmp_path / "other")
    assert [path.name for path in (source.parent / "array_record").iterdir()] == [LOCK_FILE]
    path.write_bytes(whole)
    assert len(read(convert(source))["train"]) == 20


def test_remnants_of_a_killed_conversion(prepared):
    source, array = prepared
    remnant = source.parent / "array_record" / "incomplete.abc_2.1.0"
    remnant.mkdir(parents=True)
    (remnant / "numbers-train.array_record-00000-of-00003").write_bytes(b"half")
    assert read(convert(source)) == read(array)
    assert not remnant.exists()


def test_a_writer_that_fails(prepared, monkeypatch):
    source, _ = prepared

    class Full:
        def __init__(self, path, options):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr("flax_mnv2.data.prepare.conversion.array_record_module.ArrayRecordWriter", Full)
    with pytest.raises(DataError, match=r"Cannot prepare the ArrayRecord copy .*No space left on device"):
        convert(source)
    assert not left_in(source.parent / "array_record")


def test_an_interruption_leaves_nothing(prepared, monkeypatch):
    source, _ = prepared

    def interrupted(path):
        yield from list(read_records(path))[:1]
        raise KeyboardInterrupt

    monkeypatch.setattr("flax_mnv2.data.prepare.conversion.read_records", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source)
    assert [path.name for path in (source.parent / "array_record").iterdir()] == [LOCK_FILE]


@pytest.mark.parametrize("text", [None, "not json", "[]"])
def test_no_data_set(tmp_path, text):
    if text is not None:
        (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(DataError, match=r"Cannot read .*dataset_info\.json"):
        convert(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "../../evil"}, "cannot name a folder"),
        ({"name": "/tmp/evil"}, "cannot name a folder"),
        ({"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "../x"}]}, "not in it|Cannot"),
        ({"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "{NONE}"}]}, "Cannot open"),
        ({"splits": [{"name": "../train", "shardLengths": ["1"]}]}, "not in it|Cannot"),
        ({"splits": 7}, "Cannot open"),
        ({"version": "x"}, "Cannot open"),
    ],
)  # fmt: skip
def test_descriptions_do_not_lead_outside(tmp_path, change, match):
    """``dataset_info.json`` of a data set to convert may say anything; nothing appears but in the target."""
    source = tmp_path / "deep" / "mine" / "1.0.0"
    source.mkdir(parents=True)
    description = {"name": "mine", "version": "1.0.0", "fileFormat": "tfrecord", "splits": []} | change
    (source / "dataset_info.json").write_text(json.dumps(description))
    kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    (source / "features.json").write_text(json.dumps({"pythonClassName": kind, "featuresDict": {}}))
    with pytest.raises(DataError, match=match):
        convert(source, data_dir=str(tmp_path / "deep" / "out"))
    left = {path.relative_to(tmp_path).as_posix() for path in left_in(tmp_path)}
    assert left == {"deep/mine/1.0.0/dataset_info.json", "deep/mine/1.0.0/features.json"}
