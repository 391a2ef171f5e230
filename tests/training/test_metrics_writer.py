"""Metrics on a disk without room."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from flax_mnv2 import DataError
from flax_mnv2.data.archives.tfrecord import read_records
from flax_mnv2.training.logging.metrics_writer import MetricsWriter, read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
# In a process of its own: the size that files may have, which stands in for a full disk, is one for all of a process.
FULL_DISK = """
import pathlib, resource, sys
from flax_mnv2.training.logging.metrics_writer import MetricsWriter

folder, tolerant = pathlib.Path(sys.argv[1]), sys.argv[2] == "continue"
before = resource.getrlimit(resource.RLIMIT_FSIZE)
with MetricsWriter(folder, resume_step=0, tolerant=tolerant) as writer:
    for step in range(60):
        if step in (0, 50):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]) if step == 0 else before)
        writer.write(step, "train", {"loss": step / 7, sys.argv[3]: 0.1})
"""


def _run(folder, choice, metric="learning_rate"):
    return subprocess.run(
        [sys.executable, "-c", FULL_DISK, folder, choice, metric], capture_output=True, text=True, timeout=120
    )


def test_a_full_disk_stops_the_run_with_a_message(tmp_path):
    result = _run(tmp_path, "stop")
    assert result.returncode == 1
    assert f"{DataError.__name__}: Cannot write {tmp_path / 'metrics.jsonl'}" in result.stderr
    assert "File too large. Free some space" in result.stderr
    assert 1 < len(read_metrics(tmp_path)) < 30


@pytest.mark.parametrize("metric", ["learning_rate", "long" * 100])  # what waits is more than Python's buffers hold
def test_or_what_is_missing_is_written_when_there_is_room_again(tmp_path, metric):
    result = _run(tmp_path, "continue", metric)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("warning: Cannot write") == 1
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(60))
    (events,) = (tmp_path / "tensorboard").iterdir()
    steps = [Event.FromString(record).step for record in read_records(events)]
    assert steps == [0, 1, *range(60)]


def test_event_files_hold_what_tensorboard_x_would_write(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.5e9)
    values = {"loss": 0.5, "ä/mean_iou": float("nan"), "steps": 123456.0}
    with MetricsWriter(tmp_path, resume_step=299) as writer:
        writer.write(300, "train", values)
        writer.write(2**40, "val", {"loss": 1e-9})
    (path,) = (tmp_path / "tensorboard").iterdir()
    scalars = [Summary.Value(tag=f"train/{tag}", simple_value=value) for tag, value in values.items()]
    expected = [
        Event(wall_time=1.5e9, step=0, file_version="brain.Event:2"),
        Event(wall_time=1.5e9, step=300, session_log=SessionLog(status=SessionLog.START)),
        Event(wall_time=1.5e9, step=300, summary=Summary(value=scalars)),
        Event(wall_time=1.5e9, step=2**40, summary=Summary(value=[Summary.Value(tag="val/loss", simple_value=1e-9)])),
    ]
    records = list(read_records(path))
    assert records[1:] == [event.SerializeToString() for event in expected[1:]]
    assert Event.FromString(records[0]) == expected[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_event_files_of_one_second_do_not_overwrite_each_other(tmp_path, split):
    for step in (0, 5):
        with MetricsWriter(tmp_path, resume_step=step) as writer:
            writer.write(step + 1, split, {"loss": 0.5})
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2
    assert all(os.path.getsize(file) > 100 for file in files)
