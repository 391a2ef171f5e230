"""Batches made in order by a few threads, ahead of their use, with a limit on every wait.

Executors of the standard library are joined when the interpreter ends, so one read that hangs would keep the process
from ending. These threads are daemons: what hangs is left behind.
"""

import collections
import concurrent.futures
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

_GRACE = 2.0  # seconds that close waits for batches in the making: a thread inside OpenCV should end before Python does


class WaitError(Exception):
    """A wait has reached its limit; the message says what was waited for."""


class BatchThreads:
    """Items of a sequence in their order: ``first``, ``first + step``, … to its end."""

    def __init__(self, items: Sequence[Any], *, num_threads: int, buffer_size: int, first: int = 0, step: int = 1):
        """Starts when the first item is asked for.

        Args:
          items: whose ``__getitem__`` makes an item; called from several threads.
          num_threads: each makes an item of its own; 0 makes nothing ahead, one thread makes each when asked.
          buffer_size: items made ahead.
          first: position of the first.
          step: distance between positions.
        """
        self._items = items
        self._order = iter(range(first, len(items), step))
        self._num_threads = max(num_threads, 1)
        self._ahead = max(buffer_size, num_threads) if num_threads else 0
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._futures: collections.deque[concurrent.futures.Future] = collections.deque()
        self._closed = False

    def next(self, timeout: float | None) -> Any:
        """The next item.

        Args:
          timeout: seconds to wait for it; None is without end.

        Raises:
          StopIteration: there are no more.
          WaitError: it is not ready in time.
          Exception: what making it has raised.
        """
        if self._closed:
            raise ValueError("The iterator of batches is closed.")
        if not self._threads:
            self._start()
        self._submit(max(self._ahead, 1))
        if not self._futures:
            raise StopIteration
        future = self._futures[0]
        try:
            item = future.result(timeout)
        except TimeoutError:
            if future.done():  # a read of the data has raised it
                raise
            raise WaitError(f"{self._num_threads} thread(s) of this process") from None
        self._futures.popleft()
        self._submit(self._ahead)
        return item

    def close(self) -> None:
        """Ends the threads; one that hangs in a read is left to itself. It may be called twice."""
        if self._closed:
            return
        self._closed = True
        for future in self._futures:
            future.cancel()
        self._futures.clear()
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._work, name=f"batch {number}", daemon=True)
            for number in range(self._num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def _submit(self, ahead: int) -> None:
        while len(self._futures) < ahead and (position := next(self._order, None)) is not None:
            future = concurrent.futures.Future()
            self._futures.append(future)
            self._jobs.put((position, future))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            position, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._items[position])
            except BaseException as error:  # of whatever kind, it belongs to whom the batch was for
                future.set_exception(error)
            del job, future  # else the last batch would stay in memory while this thread waits
