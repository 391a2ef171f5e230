"""grain's worker processes: what they do before they make batches, who they are, and what it means that one is gone."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

import cv2

from flax_mnv2.errors import DataError

_NAME = "grain-process-prefetch"  # how grain's names of its processes begin
_GONE = "terminated unexpectedly"  # part of what grain says of one that was killed


def set_up_worker(index: int, count: int) -> None:
    """Runs in each worker; grain gives its number and how many there are."""
    del index, count
    os.setpgid(0, 0)  # Ctrl-C and `timeout` signal the whole group; the parent answers them, and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)  # batches are made in parallel already; OpenCV's own threads would only compete with them
    atexit.register(os._exit, 1)  # taking Python down takes a second; to end without being told to is a fault
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and grain's would try for ever to hand it their batches."""
    multiprocessing.parent_process().join()
    os._exit(1)


def kill_workers(others: Sequence[BaseProcess]) -> None:
    """Kills the workers of this process but ``others``: grain does not say which iterator a worker belongs to."""
    for child in multiprocessing.active_children():
        if child.name.startswith(_NAME) and child not in others:
            child.kill()


def explained(error: BaseException) -> BaseException:
    """The error itself, or a DataError with advice where it is grain's about a worker that was killed."""
    if not isinstance(error, RuntimeError) or _GONE not in str(error):
        return error
    return DataError(
        f"An input worker has ended ({str(error).partition('. ')[0]}): it was killed, or it has said above what is "
        "wrong. With -9 memory ran out: set fewer --config.data.num_workers or a smaller "
        "--config.data.prefetch_buffer_size. With -7 /dev/shm is full: give the container more (docker run --shm-size)."
    )
