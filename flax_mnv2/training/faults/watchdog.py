"""A limit on work that nothing can interrupt, such as writing to storage that has stopped to answer."""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn


@contextlib.contextmanager
def ends_within(seconds: float, what: str) -> Iterator[None]:
    """Ends this process with status 1 if the block takes longer; ``what`` it does begins the message."""

    def give_up() -> None:
        print(
            f"error: {what} has taken {seconds:g} s, the limit of config.checkpoint.timeout, so this process ends. The "
            "storage seems not to answer: look at it (df, dmesg). The same command goes on from the newest whole "
            "checkpoint.",
            file=sys.stderr,
        )
        end_process(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(status: int) -> NoReturn:
    """Ends this process at once: nothing is waited for, not even what waits at exit for other hosts."""
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
