"""A script of this repository with a tiny network, in which something happens at a moment that is given:

    python child.py '{"blocks": null, "fault": {"signal": "SIGTERM", "during": "training", "at": 3}}' train.py …

``blocks`` is the network's table, null for the whole one. ``during`` is preparing, compiling, or training, evaluating
or saving, for which ``at`` counts steps, batches or saves from 1. The signal is sent to this process at once, or
``delay`` seconds later by a thread; with ``again`` a second one follows that many seconds after it. With ``pace``
every step and every batch of an evaluation takes so many seconds at least. ``samples`` names a file that gets a JSON
line of this process's size every ``sample_every`` steps. ``poison`` lists training examples of a classifier, by
position, whose loss is NaN. ``float64`` computes in that, which configs do not offer. The picture of the curve is
left out, which takes as long as JAX to import.
"""

import json
import os
import pathlib
import runpy
import signal
import sys
import threading
import time

import jax
import numpy as np

import flax_mnv2.layer_plan

NO_CLASS = 200  # a label beyond all classes, which makes a loss NaN


def cache_programs():
    """Lets every process keep what it compiles, where JAX writes the programs of process 0 alone."""
    from jax._src import compilation_cache, compiler

    def write(key, seconds, name, backend, executable, *callbacks):  # JAX 0.11 passes none
        if not any(callbacks):
            compilation_cache.put_executable_and_time(key, name, executable, backend, int(seconds))

    compiler._cache_write = write


def send(fault):
    """Sends the signal now, or ``delay`` seconds later."""

    def shoot():
        time.sleep(fault.get("delay", 0.0))
        for pause in (0.0, *([fault["again"]] if "again" in fault else [])):
            time.sleep(pause)
            os.kill(os.getpid(), getattr(signal, fault["signal"]))

    print(f"fault: {fault['signal']} while {fault['during']}", flush=True)
    if fault.get("delay") or "again" in fault:
        threading.Thread(target=shoot, daemon=True).start()
    else:
        shoot()


def arm(fault, setattr=setattr):
    """Arranges for the fault; ``setattr`` may be a test's, which undoes it."""
    from flax_mnv2.checkpoint.run import Checkpoints
    from flax_mnv2.training import loop
    from flax_mnv2.training import run as run_module
    from flax_mnv2.training.logging.progress import Progress

    counts = {"saving": 0, "evaluating": 0}

    def count(during):
        counts[during] += 1
        if fault["during"] == during and counts[during] == fault["at"]:
            send(fault)

    advance, save, get_task, prefetch = Progress.advance, Checkpoints.save, run_module.get_task, loop.prefetch

    def advance_and_fail(self):
        advance(self)
        if self._title.startswith("evaluating"):
            count("evaluating")
        elif fault["during"] == "training" and self._done == fault["at"]:
            send(fault)

    def save_and_fail(self, *args, **kwargs):
        save(self, *args, **kwargs)
        count("saving")

    def get_task_and_fail(name):
        if fault["during"] == "preparing":
            send(fault)  # the data set is loaded next
        return get_task(name)

    def prefetch_and_fail(*args):
        if fault["during"] == "compiling":
            send(fault)  # the first step follows
        return prefetch(*args)

    setattr(Progress, "advance", advance_and_fail)
    setattr(Checkpoints, "save", save_and_fail)
    setattr(run_module, "get_task", get_task_and_fail)
    setattr(loop, "prefetch", prefetch_and_fail)


def slow_down(seconds):
    """From now on every step and every batch of an evaluation takes longer."""
    from flax_mnv2.training.logging.progress import Progress

    advance = Progress.advance

    def advance_slowly(self):
        advance(self)
        time.sleep(seconds)

    Progress.advance = advance_slowly


class _Spoilt:
    """Batches in which some examples have other values, after everything on the host has checked them."""

    def __init__(self, batches, positions, values):
        self._batches, self._positions, self._values = batches, positions, values
        self.bad_examples = batches.bad_examples

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._batches.close()

    def __iter__(self):
        return self

    def __next__(self):
        batch = dict(next(self._batches))
        for name, value in self._values.items():
            batch[name] = batch[name].copy()
            batch[name][np.isin(batch["index"], self._positions)] = value
        return batch


def spoil(task, positions, values, setattr=setattr):
    """From now on these training examples of a class of tasks have these values."""
    original = task.train_batches

    def train_batches(self, dataset, *, start_step):
        return _Spoilt(original(self, dataset, start_step=start_step), positions, values)

    setattr(task, "train_batches", train_batches)


def sample(path, every):
    """Notes memory, open files, threads and time every so many training steps."""
    import gc

    from flax_mnv2.training.logging.progress import Progress

    advance = Progress.advance

    def advance_and_note(self):
        advance(self)
        if self._title == "training" and self._done % every == 0:
            gc.collect()  # what waits to be collected is no leak
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            line = {
                "step": self._done,
                "arrays": len(jax.live_arrays()),
                "objects": len(gc.get_objects()),
                "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
                "open_files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "seconds": time.monotonic(),
            }
            with pathlib.Path(path).open("a") as file:
                file.write(json.dumps(line) + "\n")

    Progress.advance = advance_and_note


def main():
    spec = json.loads(sys.argv[1])
    if spec["blocks"]:
        flax_mnv2.layer_plan.BLOCK_TABLE = tuple(map(tuple, spec["blocks"]))
    sys.argv = sys.argv[2:]
    sys.modules["torch"] = None  # as where only the requirements are installed: TensorBoard's writer would import it
    cache_programs()
    if "fault" in spec:
        arm(spec["fault"])
    if "pace" in spec:
        slow_down(spec["pace"])
    if "poison" in spec:
        from flax_mnv2.tasks.classification.task import ClassificationTask

        spoil(ClassificationTask, spec["poison"], {"label": NO_CLASS})
    if spec.get("float64"):
        from flax_mnv2.training.config import checks as config_checks

        jax.config.update("jax_enable_x64", True)
        config_checks._RULES["dtype"] = (lambda value: value == "float64", "float64")
        sys.argv.append("--config.dtype=float64")
    if "samples" in spec:
        sample(spec["samples"], spec["sample_every"])
    from flax_mnv2.training import loop

    loop.save_curve = lambda *_: None
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
