"""Metrics on a disk without room."""

import os
import pathlib
import resource

import pytest

from flax_mnv2 import DataError
from flax_mnv2.training.metrics_writer import MetricsWriter, read_metrics


@pytest.fixture
def full_disk():
    """Turns the size that files may have down and up; a write then fails as on a full disk (root meets it, too)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_room(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))

    yield set_room
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _write(writer, steps):
    for step in steps:
        writer.write(step, "train", {"loss": step / 7, "learning_rate": 0.1})


def test_a_full_disk_stops_the_run_with_a_message(tmp_path, full_disk):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        full_disk(1000)
        with pytest.raises(DataError, match=r"File too large\. Free some space"):
            _write(writer, range(100))
        full_disk(None)
    assert 1 < len(read_metrics(tmp_path)) < 30


def test_or_what_is_missing_is_written_when_there_is_room_again(tmp_path, full_disk, capsys):
    with MetricsWriter(tmp_path, resume_step=0, tolerant=True) as writer:
        full_disk(1000)
        _write(writer, range(50))
        full_disk(None)
        _write(writer, range(50, 60))
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(60))
    assert capsys.readouterr().out.count("warning: Cannot write") == 1


def test_event_files_of_one_second_do_not_overwrite_each_other(tmp_path):
    for step in (0, 5):
        with MetricsWriter(tmp_path, resume_step=step) as writer:
            _write(writer, [step + 1])
    files = list(pathlib.Path(tmp_path / "tensorboard").iterdir())
    assert len(files) == 2
    assert all(os.path.getsize(file) > 100 for file in files)
