"""Two runs in one workdir: the second waits for the first, and says so where that does not end."""

import fcntl
import subprocess
import sys
import threading

import pytest

from flax_mnv2 import DataError
from flax_mnv2.training.faults import run_lock
from flax_mnv2.training.faults.run_lock import LOCK_NAME, only_run

HOLDS = """
import pathlib, sys, time
from flax_mnv2.training.faults.run_lock import only_run
with only_run(pathlib.Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_who_the_first_is(tmp_path, other, monkeypatch):
    monkeypatch.setattr(run_lock, "_PATIENCE_SECONDS", 0.3)
    with (
        pytest.raises(DataError, match=rf"A run goes on in .*: process {other.pid} on .* another --workdir"),
        only_run(tmp_path),
    ):
        pytest.fail("two runs in one folder")


def test_a_second_run_waits_for_the_end_of_the_first_however_it_ends(tmp_path, other, capsys):
    threading.Timer(0.5, other.kill).start()
    with only_run(tmp_path):
        assert other.wait() == -9
        assert f"process {other.pid} on" in capsys.readouterr().out
    with only_run(tmp_path):  # again, in this process
        pass


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with only_run(tmp_path):
        assert "no lock on" in capsys.readouterr().out
    assert (tmp_path / LOCK_NAME).exists()
