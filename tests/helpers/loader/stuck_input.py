"""Run by test_waiting.py: an input that hangs or ends well; the process has to end in any case.

The first line it prints is what the iterator said, after which it leaves without closing anything.
"""

import multiprocessing
import os
import signal
import sys
import threading

from toy_rows import TrainRow

from flax_mnv2.data.loader.batches import train_batches
from flax_mnv2.data.loader.options import LoaderOptions
from flax_mnv2.errors import DataError


class Hanging:
    """A disk that answers for the first ten examples it is asked for, and then no more."""

    place = "/mnt/gone, split train"

    def __init__(self):
        self._left = 20  # rows ask twice

    def __len__(self):
        return 100

    def __getitem__(self, index):
        self._left -= 1
        if self._left < 0:
            threading.Event().wait()
        return index


if __name__ == "__main__":
    mode = sys.argv[1]
    source = list(range(100)) if mode == "clean" else Hanging()
    options = LoaderOptions(batch_size=4, num_threads=1, num_workers={"threads": 0, "workers": 2, "clean": 1}[mode])
    batches = train_batches(TrainRow(source), source, options, start_step=0)
    kept = next(batches)  # workers take their time to start
    if mode != "clean":
        batches._timeout = 2.0
    if mode == "workers":
        os.kill(max(child.pid for child in multiprocessing.active_children()), signal.SIGSTOP)  # the other one hangs
    try:
        for _ in range(20):
            next(batches)
    except DataError as error:
        print(error, flush=True)
    else:
        print("20 more", flush=True)
