"""A limit on the wait for grain's batches, and an end to the threads and worker processes that make them.

grain waits without end, and a read from a network disk may hang for as long. So daemon threads ask grain for the
batches, taking turns, and whoever wants one waits for its thread as long as the config says. Python joins all threads
but daemons before it exits: were the reads in grain's own pool of threads (``ReadOptions``), one that hangs would keep
the process from ending. Workers that hang are killed.
"""

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import grain

from flax_mnv2.errors import DataError

_PATIENCE = 20.0  # seconds in which healthy threads and workers should finish the batch that they are at
_GRACE = 3.0  # the same once a batch was overdue: a thread inside OpenCV should still end before Python does
_WORKER = "grain-process-prefetch"  # how grain's names of its processes begin
_GONE = "terminated unexpectedly"  # part of what grain says of one that was killed


class WaitError(Exception):
    """A wait has reached its limit."""


class Watchdog:
    """The elements of several data sets, one of each in turn, each waited for only so long.

    Each data set is read by a thread of its own, ``ahead`` elements before they are asked for; the first that ends,
    ends all. Nothing is read, and no thread or process started, before the first element is asked for.
    """

    def __init__(self, datasets: Sequence[grain.IterDataset], *, ahead: int):
        self._lanes = [_Lane(dataset, ahead) for dataset in datasets]
        self._turn = 0
        self._others: list[BaseProcess] = []
        self._started = self._overdue = self._closed = False

    def next(self, timeout: float) -> Any:
        """Returns the next element, or raises what making it has raised, again at every further call.

        After a WaitError, where it is not ready in ``timeout`` seconds, it may be asked for again. A DataError where a
        worker was killed, a ValueError after :meth:`close`.
        """
        if self._closed:
            raise ValueError("The iterator of batches is closed.")
        if not self._started:
            self._start()
        try:
            element = self._lanes[self._turn].next(timeout)
        except WaitError:
            self._overdue = True
            raise
        self._overdue = False
        self._turn = (self._turn + 1) % len(self._lanes)
        return element

    def close(self) -> None:
        """Ends threads and processes; those that hang are left behind as daemons, or killed. It may be called twice."""
        if self._started and not self._closed:
            atexit.unregister(self.close)
            for lane in self._lanes:
                lane.stop()
            if self._overdue or not self._join(_PATIENCE):
                self._kill_workers()
                self._join(_GRACE)
        self._closed = True

    def _start(self) -> None:
        self._started = True
        self._others = multiprocessing.active_children()
        atexit.register(self.close)  # before multiprocessing's own, which waits 25 s for each worker that hangs
        for lane in self._lanes:
            lane.thread.start()

    def _join(self, timeout: float) -> bool:
        """Returns whether all threads have ended in time."""
        deadline = time.monotonic() + timeout
        for lane in self._lanes:
            lane.thread.join(max(0.0, deadline - time.monotonic()))
        return not any(lane.thread.is_alive() for lane in self._lanes)

    def _kill_workers(self) -> None:
        """Kills the workers started since the beginning: grain does not say which iterator a worker belongs to."""
        for child in multiprocessing.active_children():
            if child.name.startswith(_WORKER) and child not in self._others:
                child.kill()


class _Lane:
    """One data set and the thread that reads it."""

    def __init__(self, dataset: grain.IterDataset, ahead: int):
        self.thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._dataset = dataset
        self._wanted = threading.Semaphore(ahead)
        self._made: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._asked = self._stopped = False
        self._error: BaseException | None = None

    def next(self, timeout: float) -> Any:
        if self._error is None:
            if not self._asked:
                self._asked = True
                self._wanted.release()
            try:
                element, self._error = self._made.get(timeout=timeout)
            except queue.Empty:
                raise WaitError from None
            self._asked = False
        if self._error is not None:
            raise self._error
        return element

    def stop(self) -> None:
        self._stopped = True
        self._wanted.release()

    def _work(self) -> None:
        try:
            with contextlib.closing(iter(self._dataset)) as elements:
                while self._wanted.acquire() and not self._stopped:
                    self._made.put((next(elements), None))
        except BaseException as error:  # of whatever kind, it belongs to whom the element was for
            self._made.put((None, _explained(error)))


def _explained(error: BaseException) -> BaseException:
    """Returns the error itself, or a DataError with advice where it is grain's about a worker that was killed."""
    if not isinstance(error, RuntimeError) or _GONE not in str(error):
        return error
    return DataError(
        f"An input worker has ended ({str(error).partition('. ')[0]}): it was killed, or it has said above what is "
        "wrong. With -9 memory ran out: set fewer --config.data.num_workers or a smaller "
        "--config.data.prefetch_buffer_size. With -7 /dev/shm is full: give the container more (docker run --shm-size)."
    )


def set_up_worker(index: int, count: int) -> None:
    """Runs in each worker before it makes batches; grain gives its number and how many there are."""
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
