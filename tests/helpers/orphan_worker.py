"""Run by test_pipeline.py: makes batches in a worker process, says which, and waits to be killed."""

import multiprocessing
import time

import numpy as np

from flax_mnv2.data.loader.batches import shuffled_batches


def make_row(index, rng):
    return {"index": np.int64(index)}


if __name__ == "__main__":
    options = {"batch_size": 2, "seed": 0, "start_step": 0, "num_threads": 1, "num_workers": 1}
    with shuffled_batches(make_row, range(10), **options) as batches:
        next(batches)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(300)
