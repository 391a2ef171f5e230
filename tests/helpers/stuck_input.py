"""Run by test_input_faults.py: an input that hangs, freezes or ends well; the process has to end in any case.

The first line it prints is what the iterator said, after which it leaves without closing anything.
"""

import multiprocessing
import os
import signal
import sys
import threading

import numpy as np

from flax_mnv2.data.loader.bad_examples import FaultRules
from flax_mnv2.data.loader.batches import shuffled_batches
from flax_mnv2.errors import DataError


class Hanging:
    """A disk that answers for the first ten examples it is asked for, and then no more."""

    place = "/mnt/gone, split train"

    def __init__(self):
        self._left = 10

    def __len__(self):
        return 100

    def __getitem__(self, index):
        self._left -= 1
        if self._left < 0:
            threading.Event().wait()
        return index


class Row:
    """Stands in for decoding."""

    def __init__(self, source):
        self._source = source

    def __call__(self, index, rng):
        return {"index": np.int64(self._source[index]), "image": np.zeros((64, 64, 3), np.uint8)}


def main(mode):
    source = range(100) if mode in ("frozen", "clean") else Hanging()
    workers = 0 if mode == "hanging threads" else 2
    batches = shuffled_batches(
        Row(source), source, batch_size=4, seed=0, start_step=0, num_threads=1, num_workers=workers, rules=FaultRules()
    )
    next(batches)  # workers take their time to start
    if mode != "clean":
        batches._timeout = 2.0
    if mode == "frozen":
        os.kill(max(child.pid for child in multiprocessing.active_children()), signal.SIGSTOP)
    try:
        for _ in range(20):
            next(batches)
    except DataError as error:
        print(error, flush=True)
    else:
        print("20 more", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
