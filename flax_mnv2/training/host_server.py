"""What process 0 keeps for all processes of a run: the roll call, barriers, and who has failed.

Every process, also process 0, holds one TCP connection to it (:mod:`flax_mnv2.training.host_link`). Messages are
JSON objects, one per line. The server finds mistakes of the start-up before JAX's own client connects, which answers
each of them by ending the process without a chance to explain.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

ENDED_WITHOUT_A_WORD = "it ended without a word (killed, out of memory, or its machine went down)"
_LONGEST_MESSAGE = 1 << 22  # bytes; a hello carries the whole config
_STRANGERS = 64  # connections of others, such as port scans, that are answered beside those of the run
_LINGER_SECONDS = 3.0  # for processes that arrive after the others were refused


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def beat_interval(limit: float) -> float:
    """Seconds between signs of life, where ``limit`` seconds of silence mean death."""
    return min(2.0, limit / 5)


@dataclasses.dataclass
class _Member:
    """A process of the run, as process 0 sees it; times are of this process's monotonic clock."""

    index: int
    host: str
    fields: dict[str, Any]
    writer: asyncio.StreamWriter
    heard: float
    suspected: float | None = None  # when it reported an error that another process may have caused
    suspicion: str = ""

    def __str__(self) -> str:
        return f"process {self.index} ({self.host})"


class HostServer:
    """Listens for the processes of one run, in a thread of its own."""

    def __init__(self, port: int, *, count: int, jax_port: int, timeout: float, limit: float):
        """Opens the port and begins the roll call.

        Args:
          port: to listen on, on all interfaces.
          count: processes of the run.
          jax_port: where JAX's coordination service will listen; told to all.
          timeout: seconds that the roll call may take.
          limit: seconds of silence after which a process counts as dead.

        Raises:
          OSError: the port is taken.
        """
        self._count, self._jax_port, self._timeout, self._limit = count, jax_port, timeout, limit
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._socket = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
        self._members: dict[int, _Member] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._phase = "gathering"  # then running, or refused with a reason
        self._reason, self._num_refused, self._refused_all = "", 0, threading.Event()
        self._failed = False
        self._reached: dict[str, dict[int, Any]] = {}
        self._stop_signal: int | None = None
        self._stop_steps: dict[int, int | None] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="host server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening; after a refusal, waits a little for those who have not heard it."""
        if self._phase == "refused":
            self._refused_all.wait(_LINGER_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    # ---- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        start = asyncio.start_server(self._serve, sock=self._socket, limit=_LONGEST_MESSAGE)
        server = self._loop.run_until_complete(start)
        tasks = [self._loop.create_task(self._call_roll()), self._loop.create_task(self._watch())]
        self._loop.run_forever()
        server.close()
        for task in tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()  # its reader then ends by itself
        self._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True))
        self._loop.close()

    async def _call_roll(self) -> None:
        await asyncio.sleep(self._timeout)
        if self._phase == "gathering":
            missing = ", ".join(str(index) for index in range(self._count) if index not in self._members)
            there = ", ".join(map(str, sorted(self._members.values(), key=lambda member: member.index)))
            await self._refuse_all(
                f"Of {self._count} processes not all have come within {self._timeout:g} s; there are {there}; missing "
                f"process {missing}. Start every one with its own --process_id and the same --num_processes."
            )

    async def _watch(self) -> None:
        """Sends signs of life and listens for missing ones."""
        interval = beat_interval(self._limit)
        while True:
            await asyncio.sleep(interval)
            if self._phase != "running":
                continue
            await self._send_all({"kind": "beat"})
            now = time.monotonic()
            members = list(self._members.values())
            for member in members:
                if now - member.heard > self._limit:
                    await self._fail(member, f"no sign of life for {self._limit:g} s (machine or network down?)")
            suspects = [member for member in members if member.suspected is not None]
            if suspects:
                first = min(suspects, key=lambda member: member.suspected)
                others = [member for member in members if member.suspected is None]
                # Everyone else is alive after it: then nobody's death has caused its error.
                if all(member.heard > first.suspected + interval for member in others):
                    await self._fail(first, first.suspicion)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, closed at its end; strangers cannot open more than a few beside the run's."""
        if len(self._writers) < 2 * self._count + _STRANGERS:
            self._writers.add(writer)
            try:
                await self._talk(reader, writer)
            finally:
                self._writers.discard(writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From the hello to the end."""
        try:
            index, count, host, fields = _read_hello(await asyncio.wait_for(reader.readline(), timeout=10))
        except (OSError, TimeoutError, ValueError):
            return  # a port scan, or a person with a browser
        member = _Member(index, host, fields, writer, heard=time.monotonic())
        if not await self._admit(member, count):
            return
        # Of a member that sends what no process of this program does, no more is read: it counts as lost.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            while line := await reader.readline():
                member.heard = time.monotonic()
                await self._take(member, json.loads(line))
        await self._lost(member)

    async def _admit(self, member: _Member, count: int) -> bool:
        if self._phase == "refused":
            await self._refuse(member.writer, self._reason)
        elif self._phase == "running":
            await self._refuse(
                member.writer,
                f"A run with all its {self._count} processes uses this address already. Choose another port in "
                "--coordinator_address.",
            )
        elif member.index >= count:
            await self._refuse(member.writer, f"--process_id is {member.index} of {count}; they count from 0.")
        elif count != self._count:
            await self._refuse_all(
                f"--num_processes is {count} in {member} and {self._count} in process 0. Give all the same.",
                member.writer,
            )
        elif twin := self._members.get(member.index):
            await self._refuse_all(
                f"Two processes have --process_id={member.index}, on {twin.host} and on {member.host}. Give each its "
                f"own, from 0 to {self._count - 1}.",
                member.writer,
            )
        else:
            self._members[member.index] = member
            if len(self._members) == self._count:
                if difference := _differences([self._members[index] for index in range(self._count)]):
                    await self._refuse_all(difference)
                else:
                    self._phase = "running"
                    welcome = {"kind": "welcome", "jax_port": self._jax_port, "host": self._members[0].host}
                    await self._send_all(welcome)
            return True
        return False

    async def _take(self, member: _Member, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "failed":
            if message["certain"]:
                await self._fail(member, message["reason"])
            elif member.suspected is None:
                member.suspected, member.suspicion = time.monotonic(), message["reason"]
        elif kind == "reach":
            values = self._reached.setdefault(message["name"], {})
            values[member.index] = message["value"]
            if len(values) == self._count:
                del self._reached[message["name"]]
                await self._send_all({"kind": "reached", "name": message["name"], "value": values[0]})
        elif kind == "stop" and self._stop_signal is None:
            self._stop_signal = message["signal"]
            await self._send_all({"kind": "stop_wanted", "signal": self._stop_signal})
        elif kind == "at":
            self._stop_steps[member.index] = message["step"]
            if len(self._stop_steps) == self._count:
                steps = self._stop_steps.values()
                await self._send_all({"kind": "stop_at", "step": None if None in steps else max(steps)})
        elif kind == "leave":
            self._members.pop(member.index, None)

    async def _lost(self, member: _Member) -> None:
        """A connection has ended."""
        if self._members.get(member.index) is not member:
            return  # it has left, or was never taken
        if self._phase == "running":
            await self._fail(member, ENDED_WITHOUT_A_WORD)
        else:
            del self._members[member.index]  # it may come again

    async def _fail(self, member: _Member, reason: str) -> None:
        """Tells all, process 0 last: it may end as soon as it knows."""
        if self._failed:
            return
        self._failed = True
        await self._send_all({"kind": "failed", "index": member.index, "host": member.host, "reason": reason})

    async def _send_all(self, message: Mapping[str, Any]) -> None:
        for _, member in sorted(self._members.items(), reverse=True):  # a copy: members may leave meanwhile
            await self._send(member.writer, message)

    async def _refuse_all(self, reason: str, *also: asyncio.StreamWriter) -> None:
        self._phase, self._reason = "refused", reason
        for writer in (*also, *(self._members[index].writer for index in sorted(self._members, reverse=True))):
            await self._refuse(writer, reason)

    async def _refuse(self, writer: asyncio.StreamWriter, reason: str) -> None:
        await self._send(writer, {"kind": "refused", "reason": reason})
        self._num_refused += 1
        if self._num_refused >= self._count:
            self._refused_all.set()

    async def _send(self, writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
        try:
            writer.write(encode(message))
            await asyncio.wait_for(writer.drain(), timeout=1)
        except (OSError, TimeoutError):
            pass  # its reader will see the end


def _read_hello(line: bytes) -> tuple[int, int, str, dict[str, Any]]:
    """Index, count, host and fields; raises a ValueError for what no process of this program sends."""
    try:
        hello = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(hello, dict):
        raise ValueError("no object")
    index, count, host, fields = (hello.get(key) for key in ("index", "count", "host", "fields"))
    numbers = type(index) is int and type(count) is int and index >= 0
    if not (numbers and isinstance(host, str) and isinstance(fields, dict)):
        raise ValueError("no hello")
    return index, count, host, fields


def _differences(members: list[_Member]) -> str:
    """The message for processes whose settings differ from those of process 0; empty where none does."""
    first, lines = members[0], []
    for member in members[1:]:
        for name in sorted(first.fields.keys() | member.fields.keys()):
            ours, theirs = (host.fields.get(name, "(absent)") for host in (first, member))
            if ours != theirs:
                lines.append(f"  {name}: {ours!r} in {first}, {theirs!r} in {member}")
    if not lines:
        return ""
    return "The processes of a run must have the same settings:\n" + "\n".join(lines)
