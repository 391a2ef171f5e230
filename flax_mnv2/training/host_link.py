"""One process's connection to the others of its run.

A thread listens, sends signs of life, and ends this process with one message when another has failed, also while
the main thread hangs in a collective that will never finish.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from flax_mnv2.errors import UserError
from flax_mnv2.training.host_server import ENDED_WITHOUT_A_WORD, beat_interval, encode

PEER_FAILED_STATUS = 1
_RETRY_SECONDS = 0.5
_LONGEST_ANSWER = 1 << 22  # bytes


class HostError(UserError):
    """The processes of a run cannot find each other, or do not agree."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Which process failed first, and why.

    Attributes:
      index: the process.
      host: the name of its machine.
      reason: its own words, or what was seen of it.
    """

    index: int
    host: str
    reason: str

    def __str__(self) -> str:
        return f"Process {self.index} on {self.host} failed, so all stop: {self.reason}"


class HostLink:
    """The connection, opened by :func:`join`.

    Attributes:
      index: this process.
      jax_port: where process 0 offers JAX's coordination service.
      failure: of any process, once it is known.
    """

    def __init__(self, connection: socket.socket, *, index: int, jax_port: int, server_host: str, limit: float):
        """Starts listening; ``limit`` seconds of silence of process 0, on ``server_host``, count as its death."""
        self.index, self.jax_port = index, jax_port
        self.failure: Failure | None = None
        self._socket, self._server_host, self._limit = connection, server_host, limit
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._reached: dict[str, Any] = {}
        self._num_meetings = 0
        self._stop_signal: int | None = None
        self._stop_decided, self._stop_step = False, None
        self._passed, self._loop_ended = -1, False
        self._failing, self._leaving = False, False
        self._thread = threading.Thread(target=self._listen, name="host link", daemon=True)
        self._thread.start()

    # ---- for the main thread --------------------------------------------------------------------------------------

    def meet(self, value: Any = None) -> Any:
        """Waits until every process has come to its n-th meeting; returns what process 0 brought to it (JSON)."""
        self._num_meetings += 1
        name = str(self._num_meetings)
        self._send({"kind": "reach", "name": name, "value": value})
        with self._changed:
            self._changed.wait_for(lambda: name in self._reached)
            return self._reached.pop(name)

    def ask_to_stop(self, number: int) -> None:
        """Asks all processes to stop after a common step, because of signal ``number``."""
        self._send({"kind": "stop", "signal": number})

    def stops_at(self, step: int) -> int | None:
        """The signal for which all processes stop at ``step``, else None; to be asked at every step, counted from 0.

        A step is any piece of work that all processes do equally often, an update or a batch of an evaluation. When a
        stop is wanted, the listener reports the step after the last one at which this process went on, and from then
        on this waits for the largest report of all. So the others may already be at work on what follows a step, and
        need this process for it, while it waits here: it will be told to go on.
        """
        with self._changed:
            if step > self._passed:
                if self._stop_signal is not None:
                    self._changed.wait_for(lambda: self._stop_decided)
                    if self._stop_step is not None and step >= self._stop_step:
                        return self._stop_signal
                self._passed = step
            return None

    def begin_loop(self) -> None:
        """Says that steps follow, at which this process can stop."""
        with self._changed:
            self._passed, self._loop_ended = -1, False

    def end_loop(self) -> None:
        """Says that no further steps come, so that a stop can no longer be agreed on."""
        with self._changed:
            self._loop_ended = True

    def fail(self, reason: str, *, certain: bool) -> Failure:
        """Reports an error of this process and returns what is held to be the first failure of all.

        Args:
          reason: what a person should read.
          certain: the error is this process's own. Else it may follow from another's death, as those of collectives
            do, and process 0 looks for one first.
        """
        self._failing = True
        with self._changed:
            if self.failure is None:
                self._send({"kind": "failed", "reason": reason, "certain": certain})
                self._changed.wait_for(lambda: self.failure is not None, timeout=5 if certain else self._limit + 10)
            return self.failure or Failure(self.index, socket.gethostname(), reason)

    def leave(self) -> None:
        """Says goodbye. From here on the end of other processes, or of process 0, is none of this one's business."""
        self._leaving = True
        self._send({"kind": "leave"})
        self._thread.join()
        self._socket.close()

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        interval = beat_interval(self._limit)
        rest, heard, beaten = b"", time.monotonic(), 0.0
        self._socket.settimeout(interval / 2)
        while not self._leaving:
            try:
                data = self._socket.recv(1 << 16)
                if not data:
                    self._lost(ENDED_WITHOUT_A_WORD)
                    return
                heard = time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            except TimeoutError:
                pass
            except ConnectionResetError:  # as the kernel ends it where it held bytes that the dead had not read
                self._lost(ENDED_WITHOUT_A_WORD)
                return
            except OSError as error:
                self._lost(f"the connection to it broke ({error.strerror or error})")
                return
            now = time.monotonic()
            if now - beaten > interval:
                self._send({"kind": "beat"})
                beaten = now
            if now - heard > self._limit:
                self._lost(f"no sign of life for {self._limit:g} s (machine or network down?)")
                return

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        with self._changed:
            if kind == "failed":
                self._fail(Failure(message["index"], message["host"], message["reason"]))
            elif kind == "reached":
                self._reached[message["name"]] = message["value"]
            elif kind == "stop_wanted":
                self._stop_signal = message["signal"]
                self._send({"kind": "at", "step": None if self._loop_ended else self._passed + 1})
            elif kind == "stop_at":
                self._stop_decided, self._stop_step = True, message["step"]
            self._changed.notify_all()

    def _lost(self, reason: str) -> None:
        if not self._leaving:
            with self._changed:
                self._fail(Failure(0, self._server_host, reason))
                self._changed.notify_all()

    def _fail(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
            if not self._failing:  # else the main thread is on its way out and says why
                end_process(f"error: {failure}", PEER_FAILED_STATUS)

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):  # the listener will see the end
            self._socket.sendall(encode(message))


def join(
    host: str,
    port: int,
    *,
    index: int,
    count: int,
    fields: Mapping[str, Any],
    timeout: float,
    limit: float,
) -> HostLink:
    """Connects to process 0 and answers the roll call.

    Args:
      host: name or address of the machine of process 0.
      port: where its :class:`~flax_mnv2.training.host_server.HostServer` listens.
      index: this process.
      count: processes of the run.
      fields: settings that must be the same everywhere, JSON values by name.
      timeout: seconds until process 0 must be there, and again until all are.
      limit: seconds of silence that count as death.

    Raises:
      HostError: process 0 cannot be reached, or it refuses: processes are missing, doubled, or differ.
    """
    connection = _connect(host, port, timeout)
    try:
        connection.settimeout(timeout + 30)  # process 0 gives up first, and says why
        name = socket.gethostname()
        connection.sendall(encode({"index": index, "count": count, "host": name, "fields": dict(fields)}))
        answer = json.loads(_read_line(connection))
        if answer["kind"] != "refused":
            return HostLink(
                connection, index=index, jax_port=answer["jax_port"], server_host=answer["host"], limit=limit
            )
        reason = answer["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        connection.close()
        raise HostError(
            f"{host}:{port} was reached, but what answers there is no process 0 of this program, or it ended. Look "
            "at its output, and check --coordinator_address."
        ) from None
    connection.close()
    raise HostError(reason)


def end_process(message: str, status: int) -> None:
    """Prints and ends this process at once: nothing is waited for, not even what waits at exit for other hosts."""
    for child in multiprocessing.active_children():
        child.terminate()
    print(message, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _read_line(connection: socket.socket) -> bytes:
    """One line and no byte more: what follows belongs to the listener."""
    line = b""
    while byte := connection.recv(1):
        if byte == b"\n" or len(line) > _LONGEST_ANSWER:
            break
        line += byte
    return line


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection((host, port), timeout=max(0.1, min(10.0, left)))
        except OSError as error:
            if left < _RETRY_SECONDS:
                raise HostError(
                    f"Cannot reach process 0 at {host}:{port} within {timeout:g} s: {error.strerror or error}. Check "
                    "that it has been started, that --coordinator_address names its machine, and that no firewall "
                    "stands between."
                ) from None
            time.sleep(_RETRY_SECONDS)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
