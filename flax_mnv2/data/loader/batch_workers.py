"""Batches made by worker processes: worker w of W makes batches w, w + W, …

The processes share nothing but one socket each with this one: no lock that a killed or frozen worker could keep, and
nothing to clean up after it. So they are ended by SIGKILL, which also ends those that are stopped or hang in a read.
"""

import atexit
import functools
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import cv2

from flax_mnv2.data.loader.batch_memory import Batch, receive, send_batch, send_error
from flax_mnv2.data.loader.batch_threads import BatchThreads, WaitError
from flax_mnv2.errors import DataError, UserError

_READY = 2  # batches of each worker on the way to this process, beside those in its own buffer
_JOIN = 5.0  # seconds for the kernel to end a killed process


class BatchWorkers:
    """The same items as :class:`~flax_mnv2.data.loader.batch_threads.BatchThreads` gives, which each worker uses."""

    def __init__(self, batches: Sequence[Batch], *, num_workers: int, num_threads: int, buffer_size: int):
        """Starts when the first batch is asked for.

        Args:
          batches: what makes them, which can be pickled.
          num_workers: processes.
          num_threads: in each, as for ``BatchThreads``.
          buffer_size: in each, as for ``BatchThreads``.
        """
        self._batches = batches
        self._num_workers = num_workers
        self._settings = {"num_threads": num_threads, "buffer_size": buffer_size}
        self._workers: list[tuple[BaseProcess, socket.socket]] = []
        self._given = 0
        self._end = functools.partial(_end, self._workers)
        self._closed = False

    def next(self, timeout: float) -> Batch:
        """The next batch, waited for at most ``timeout`` seconds; after a WaitError there is no more.

        Raises:
          StopIteration: there are no more.
          WaitError: it is not ready in time.
          DataError: the worker was killed.
          Exception: what making it has raised.
        """
        if self._closed:
            raise ValueError("The iterator of batches is closed.")
        if self._given == len(self._batches):
            raise StopIteration
        if not self._workers:
            self._start()
        number = self._given % self._num_workers
        process, connection = self._workers[number]
        try:
            kind, content = receive(connection, timeout)
            connection.sendall(b"+")
        except TimeoutError:
            self._closed = True  # half a message may have been read
            raise WaitError(f"input worker {number + 1} of {self._num_workers} (process {process.pid})") from None
        except (EOFError, ConnectionError):
            process.join(_JOIN)
            raise DataError(
                f"Input worker {number + 1} of {self._num_workers} has ended (exit code {process.exitcode}): it was "
                "killed, or memory ran out, or it has said above what is wrong. Fewer --config.data.num_workers or a "
                "smaller --config.data.prefetch_buffer_size need less memory."
            ) from None
        if kind == "error":
            raise content
        self._given += 1
        return content

    def close(self) -> None:
        """Ends the processes, whatever they do. It may be called twice."""
        self._closed = True
        self._end()
        atexit.unregister(self._end)

    def _start(self) -> None:
        # Before multiprocessing's own, which would wait without end for a worker that is stopped.
        atexit.register(self._end)
        context = multiprocessing.get_context("spawn")
        for number in range(self._num_workers):
            ours, theirs = socket.socketpair()
            process = context.Process(
                target=_work,
                args=(theirs, self._batches, number, self._num_workers, self._settings),
                name=f"input worker {number + 1}",
                daemon=True,
            )
            self._workers.append((process, ours))
            with theirs:  # when the worker has it alone, its end is noticed here
                process.start()


def _end(workers: list[tuple[BaseProcess, socket.socket]]) -> None:
    started = [process for process, _ in workers if process.pid is not None]
    for process in started:
        process.kill()
    for process in started:
        process.join(_JOIN)
    for _, connection in workers:
        connection.close()
    workers.clear()


def _work(
    connection: socket.socket, batches: Sequence[Batch], number: int, count: int, settings: dict[str, Any]
) -> None:
    """The life of a worker process: make the next batch, send it, wait until it is wanted."""
    os.setpgid(0, 0)  # Ctrl-C and `timeout` signal the whole group; the parent answers them, and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    cv2.setNumThreads(0)  # batches are made in parallel already; OpenCV's own threads would only compete with them
    feed = BatchThreads(batches, first=number, step=count, **settings)
    ahead = 0
    while True:
        if ahead == _READY:
            if not connection.recv(1):
                return
            ahead -= 1
        try:
            batch = feed.next(None)
        except StopIteration:
            break
        except Exception as error:  # of whatever kind, the parent raises it
            if not isinstance(error, UserError):
                error.add_note(f"In input worker {number + 1}:\n{traceback.format_exc()}")
            send_error(connection, error)
            break
        send_batch(connection, batch)
        ahead += 1
        del batch
    while connection.recv(1):  # the parent has not read everything yet
        pass


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and one that waits for a disk would not notice otherwise."""
    multiprocessing.parent_process().join()
    os._exit(1)
