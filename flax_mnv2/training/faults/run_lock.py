"""One run at a time in a workdir: a second would remove what the first is saving."""

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator

import filelock
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
    """
    if jax.process_index() != 0:
        yield
        return
    lock = filelock.FileLock(
        workdir / LOCK_NAME, poll_interval=_POLL_SECONDS, fallback_to_soft=False, on_acquired=_sign
    )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_hold(lock, workdir))
        except OSError as error:
            print(f"warning: no lock on {workdir} ({error.strerror}); start one run at a time there", flush=True)
        yield


def _hold(lock: filelock.FileLock, workdir: pathlib.Path) -> filelock.AcquireReturnProxy:
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"A run goes on in {workdir}: {_holder(workdir)}; waiting for it to end", flush=True)
    try:
        return lock.acquire(timeout=_PATIENCE_SECONDS)
    except filelock.Timeout:
        raise DataError(
            f"A run goes on in {workdir}: {_holder(workdir)} has held it for {_PATIENCE_SECONDS:g} s. Stop that one "
            "(SIGTERM: it saves first), or choose another --workdir."
        ) from None


def _sign(file: int) -> None:
    """Writes into the file whose it is now."""
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _holder(workdir: pathlib.Path) -> str:
    return (workdir / LOCK_NAME).read_text(encoding="utf-8").strip() or "another process"
