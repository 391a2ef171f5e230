"""A limit on work that nothing can interrupt, such as writing to storage that has stopped to answer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from flax_mnv2.training.host_link import end_process


@contextlib.contextmanager
def ends_within(seconds: float, what: str) -> Iterator[None]:
    """Ends this process with status 1 if the block takes longer.

    Args:
      seconds: that the block may take.
      what: it does; a message begins with it, ``"Saving step 6 in runs/a"``.
    """
    message = (
        f"error: {what} has taken {seconds:g} s, the limit of config.checkpoint.timeout, so this process ends. The "
        "storage seems not to answer: look at it (df, dmesg). The same command goes on from the newest whole "
        "checkpoint."
    )
    timer = threading.Timer(seconds, end_process, (message, 1))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
