"""A limit on the wait for grain's batches, and an end to whatever makes them.

grain waits without end, and a read from a network disk may hang for as long. So daemon threads ask grain for the
batches, taking turns, and whoever wants one waits for its thread as long as the config says. Python joins all threads
but daemons before it exits: were the reads in grain's own pool of threads (``ReadOptions``), one that hangs would keep
the process from ending. Workers that hang are killed.
"""

import atexit
import contextlib
import multiprocessing
import queue
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import grain

from flax_mnv2.data.loader.workers import explained, kill_workers

_PATIENCE = 20.0  # seconds in which healthy threads and workers should finish the batch that they are at
_GRACE = 3.0  # the same once a batch was overdue: a thread inside OpenCV should still end before Python does


class WaitError(Exception):
    """A wait has reached its limit."""


class Watchdog:
    """The elements of several data sets, one of each in turn, each waited for only so long."""

    def __init__(self, datasets: Sequence[grain.IterDataset], *, ahead: int):
        """Nothing is read, and no thread or process started, before the first element is asked for.

        Args:
          datasets: each is read by a thread of its own; the first that ends, ends all.
          ahead: elements of each made before they are asked for.
        """
        self._lanes = [_Lane(dataset, ahead) for dataset in datasets]
        self._turn = 0
        self._others: list[BaseProcess] = []
        self._started = self._overdue = self._closed = False

    def next(self, timeout: float) -> Any:
        """The next element; after a WaitError it may be asked for again.

        Raises:
          StopIteration: there are no more.
          WaitError: it is not ready in ``timeout`` seconds.
          DataError: a worker was killed.
          ValueError: :meth:`close` was called.
          Exception: what making it has raised; every further call raises it again.
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
                kill_workers(self._others)
                self._join(_GRACE)
        self._closed = True

    def _start(self) -> None:
        self._started = True
        self._others = multiprocessing.active_children()
        atexit.register(self.close)  # before multiprocessing's own, which waits 25 s for each worker that hangs
        for lane in self._lanes:
            lane.start()

    def _join(self, timeout: float) -> bool:
        """Whether all threads have ended in time."""
        deadline = time.monotonic() + timeout
        for lane in self._lanes:
            lane.join(max(0.0, deadline - time.monotonic()))
        return not any(lane.is_alive() for lane in self._lanes)


class _Lane:
    """One data set and the thread that reads it."""

    def __init__(self, dataset: grain.IterDataset, ahead: int):
        self._dataset = dataset
        self._wanted = threading.Semaphore(ahead)
        self._made: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._asked = self._stopped = False
        self._error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

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

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        try:
            with contextlib.closing(iter(self._dataset)) as elements:
                while self._is_wanted():
                    self._made.put((next(elements), None))
        except BaseException as error:  # of whatever kind, it belongs to whom the element was for
            self._made.put((None, explained(error)))

    def _is_wanted(self) -> bool:
        self._wanted.acquire()
        return not self._stopped
