"""One run at a time in a workdir: a second would remove what the first is saving."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import IO

import jax

from flax_mnv2.errors import DataError

LOCK_NAME = ".lock"
_PATIENCE_SECONDS = 60.0  # a run that was told to stop saves first
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir; the kernel lets go of it when the process ends, however it ends.

    Waits for a run that is about to end. A file system without locks is used without. With several hosts, process 0
    holds it for all.

    Raises:
      DataError: another run goes on there.
    """
    if jax.process_index() != 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((workdir / LOCK_NAME).open("a+", encoding="utf-8"))
            _hold(file, workdir)
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        except OSError as error:
            print(f"warning: no lock on {workdir} ({error.strerror}); start one run at a time there", flush=True)
        yield


def _hold(file: IO[str], workdir: pathlib.Path) -> None:
    """Locks a file until it is closed. Input workers do not inherit such a lock."""
    deadline, said = time.monotonic() + _PATIENCE_SECONDS, False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):  # POSIX allows for either
            file.seek(0)
            holder = file.read(200).strip() or "another process"
        if time.monotonic() > deadline:
            raise DataError(
                f"A run goes on in {workdir}: {holder} has held it for {_PATIENCE_SECONDS:g} s. Stop that one "
                "(SIGTERM: it saves first), or choose another --workdir."
            )
        if not said:
            print(f"A run goes on in {workdir}: {holder}; waiting for it to end", flush=True)
            said = True
        time.sleep(_POLL_SECONDS)
