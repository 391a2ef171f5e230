"""Input that stops coming: slow and hanging reads, killed workers, killed parents."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from toy_rows import TrainRow

from flax_mnv2.data.loader.batches import train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.errors import DataError

HELPERS = pathlib.Path(__file__).parents[2] / "helpers" / "loader"
SOURCE = list(range(100))


def test_a_slow_batch_may_be_asked_for_again():
    rows, release = [], threading.Event()

    def slow(index, rng):
        release.wait()
        rows.append(index)
        return {"index": np.int64(index)}

    options = LoaderOptions(batch_size=2, num_threads=0, timeout=0.2)
    with train_batches(slow, range(4), options, start_step=0) as batches:
        for _ in range(2):
            with pytest.raises(DataError, match=r"No batch within 0\.2 s: waiting for threads .* read from its source"):
                next(batches)
        release.set()
        batches._timeout = 60.0
        assert next(batches)["index"].tolist() == rows


def test_a_read_that_times_out_by_itself_is_no_wait():
    def failing(index, rng):
        raise TimeoutError("the disk says so")

    options = LoaderOptions(batch_size=2, timeout=60.0)
    with train_batches(failing, range(4), options, start_step=0) as batches, pytest.raises(TimeoutError, match="disk"):
        next(batches)


def test_a_killed_worker_is_noticed_within_seconds_and_leaves_nothing():
    options = LoaderOptions(batch_size=4, num_threads=1, num_workers=2, timeout=120.0)
    with train_batches(TrainRow(SOURCE), SOURCE, options, start_step=0) as batches:
        _take(batches, 4)
        files = len(os.listdir("/proc/self/fd"))
        _take(batches, 50)
        assert len(os.listdir("/proc/self/fd")) < files + 20  # each batch opens three
        os.kill(multiprocessing.active_children()[1].pid, signal.SIGKILL)
        began = time.perf_counter()
        with pytest.raises(DataError, match=r"An input worker has ended \(.*exit code -9\).*data\.num_workers"):
            _take(batches, 1_000)
        assert time.perf_counter() - began < 10
    assert not multiprocessing.active_children()


def _take(batches, count):
    return [next(batches) for _ in range(count)]


@contextlib.contextmanager
def _script(name, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS), str(HELPERS.parents[2])])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, str(HELPERS / name), *arguments], env=environment, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("threads", "No batch within 2 s: waiting for threads of this process to read from /mnt/gone, split train."),
        ("workers", "No batch within 2 s: waiting for 2 input worker(s) to read from /mnt/gone, split train."),
        ("clean", "20 more"),
    ],
)
def test_the_process_ends_whatever_its_input_does(mode, said):
    with _script("stuck_input.py", mode) as process:
        assert process.stdout.readline().startswith(said)
        _, errors = process.communicate(timeout=40)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert "leaked" not in errors or mode == "workers"  # batches of killed ones are freed, but not without a word


def test_workers_end_with_a_parent_that_is_killed():
    with _script("orphan_worker.py") as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
        assert all(os.getpgid(worker) != os.getpgid(parent.pid) for worker in workers)  # group signals pass them by
        parent.kill()
    deadline = time.monotonic() + 30
    while alive := [worker for worker in workers if _runs(worker)]:
        assert time.monotonic() < deadline, f"still alive: {alive}"
        time.sleep(0.1)


def _runs(pid):
    """Whether a process runs; one that has ended may wait for somebody to take note."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
