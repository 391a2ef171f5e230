"""Run by test_waiting.py: makes batches in a worker process, says which, and waits to be killed."""

import multiprocessing
import time

from toy_rows import TrainRow

from flax_mnv2.data.loader.batches import train_batches
from flax_mnv2.data.loader.options import LoaderOptions

if __name__ == "__main__":
    source = list(range(10))
    options = LoaderOptions(batch_size=2, num_threads=1, num_workers=1)
    with train_batches(TrainRow(source), source, options, start_step=0) as batches:
        next(batches)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(300)
