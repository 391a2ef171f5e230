"""Runs that are broken on purpose: ``train.py`` and ``eval.py`` on a tiny config, in one or two processes.

Used by the tests of faults and by soak.py; remains.py compares what is left.
"""

import contextlib
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import quick_xla
from pictures import make_photos, prepare_shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
RECIPE = HERE / "tiny_recipe.py"
BLOCKS = ((8, 1, 1),)  # of the tiny network: one block, with a residual that drop path can drop


class Data:
    """Where the data sets of tiny runs lie: drawn shapes, and photos of single colours."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.photos = folder / "photos"
        if not self.photos.exists():
            make_photos(self.photos, train=12, test=5)
            prepare_shapes(folder / "prepared", val=8)

    def flags(self, variant: str) -> list[str]:
        """Of the command line, after the script."""
        place = [f"--config={RECIPE}:{variant}", f"--config.data.data_dir={self.folder / 'prepared'}"]
        return place + ([f"--config.data.archive={self.photos}"] if variant != "segmentation" else [])

    def config(self, variant: str, **fields):
        """The same as a config; ``fields`` by dotted name, with ``__`` for the dot."""
        from tiny_recipe import get_config

        config = get_config(variant)
        config.data.data_dir = str(self.folder / "prepared")
        if variant != "segmentation":
            config.data.archive = str(self.photos)
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        return config


class Child:
    """A script that runs: what it prints, its end, and signals to it. Killed at the end of a ``with`` block."""

    def __init__(self, script, *flags, devices=1, environment=None, prefix=(), **spec):
        """Starts ``script`` with ``flags``; ``spec`` is child.py's, ``prefix`` a command that starts commands."""
        command = [*prefix, sys.executable, HERE / "child.py", json.dumps({"blocks": BLOCKS, **spec}), script, *flags]
        self._process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
                "XLA_FLAGS": quick_xla.FLAGS,
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "PYTHONPATH": str(ROOT),
            }
            | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._lines.append("")
            self._changed.notify_all()

    @property
    def printed(self) -> str:
        """Output and error output so far."""
        return "".join(self._lines)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_for(self, text: str, timeout: float = 300.0) -> bool:
        """Waits until a line holds ``text``; False where the script ended without."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while text not in self.printed:
                if not self._reader.is_alive() or not self._changed.wait(deadline - time.monotonic()):
                    assert time.monotonic() < deadline, f"{timeout} s without {text!r}:\n{self.printed}"
                    return text in self.printed
        return True

    def workers(self) -> list[int]:
        """Ids of the input workers that it has started."""
        tasks = pathlib.Path(f"/proc/{self._process.pid}/task").glob("*/children")
        children = [int(number) for path in tasks for number in path.read_text().split()]
        commands = {number: pathlib.Path(f"/proc/{number}/cmdline").read_bytes() for number in children}
        return [number for number, command in commands.items() if b"spawn_main" in command]

    def send(self, number: signal.Signals) -> float:
        """Sends a signal; returns the moment."""
        self._process.send_signal(number)
        return time.monotonic()

    def end(self, timeout: float = 600.0) -> int:
        """Waits for the end; the exit status as a shell gives it, 128 + number for a signal that killed."""
        status = self._process.wait(timeout)
        self._reader.join(10)
        return 128 - status if status < 0 else status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        self._process.stdout.close()


def run(script, *flags, expect=0, **options) -> str:
    """Runs a script to its end, which must have the status ``expect``; returns what it printed."""
    with Child(script, *flags, **options) as child:
        status = child.end()
        assert status == expect, f"status {status}, expected {expect}:\n{child.printed}"
        return child.printed


def train_here(config, workdir: pathlib.Path, *, mode: str = "jit", devices: int = 1, fault=None, **options) -> int:
    """Trains in this process, where ``fault`` happens as child.py says; the exit status of a run that is told to stop.

    Quicker than a process of its own, the more so as runs of one config share their compiled steps; for signals that a
    run answers. The picture of the curve is left out.
    """
    import child
    import pytest

    from flax_mnv2.training.faults.interrupt import Interrupted
    from flax_mnv2.training.loop import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flax_mnv2.training.loop.save_curve", lambda *_: None)
        if fault is not None:
            child.arm(fault, patch.setattr)
        try:
            train(config, workdir, parallel=compiling_once(config, mode, devices), **options)
        except Interrupted as stopped:
            return stopped.code
    return 0


@contextlib.contextmanager
def two_processes(
    *flags,
    own: Mapping[int, Sequence[str]] | None = None,
    faults: Mapping[int, dict] | None = None,
    devices: int = 2,
    heartbeat: float = 60.0,
    **options,
) -> Iterator[list[Child]]:
    """Two processes of one ``train.py`` with so many devices each.

    ``own`` has further flags by process, ``faults`` what child.py does; one counts as dead after ``heartbeat`` seconds
    of silence, which a busy machine can cause, too.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--host_timeout={heartbeat}")
    with contextlib.ExitStack() as stack:
        children = []
        for index in (0, 1):
            place = (*shared, f"--process_id={index}", *(own or {}).get(index, ()))
            fault = {"fault": faults[index]} if index in (faults or {}) else {}
            child = Child("train.py", *flags, *place, devices=devices, **fault, **options)
            children.append(stack.enter_context(child))
        yield children


def check_ends(children: Sequence[Child], *expected: int) -> None:
    """Waits for the ends of children, whose exit statuses must be these."""
    found = tuple(child.end() for child in children)
    assert found == expected, "\n".join([f"{found}, expected {expected}", *(child.printed for child in children)])


BATCHES = 3
# No step of a run with a constant learning rate depends on these fields.
OUTSIDE_THE_STEPS = ("num_steps", "log_every_steps", "eval_every_steps", "checkpoint", "non_finite")


def global_batches(config, *, processes: int, workers: int, start_step: int = 0) -> list[dict[str, np.ndarray]]:
    """The first global batches of a run, put together from the part of every process."""
    import jax
    import pytest

    from flax_mnv2.tasks.registry import get_task

    config.data.num_workers = workers
    dataset = get_task(config.task).load_dataset(config.data)
    task = get_task(config.task).for_training(config, dataset.labels)
    by_process = []
    for index in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: processes)
            patch.setattr(jax, "process_index", lambda index=index: index)
            with task.train_batches(dataset, start_step=start_step) as batches:
                by_process.append([next(batches) for _ in range(BATCHES)])
    together = zip(*by_process, strict=True)
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in together]


def compiling_once(config, mode: str = "jit", devices: int = 1, what: str = "training"):
    """Returns ways to run that compile each step of a config once; what a step computes follows from the config alone.

    ``what`` keeps the steps of training apart from those of an evaluation alone. Not for tests that change what a step
    computes in another way.
    """
    import flax_mnv2.layer_plan

    fields = config.to_dict()
    if config.optimizer.schedule == "constant":
        for name in OUTSIDE_THE_STEPS:
            fields.pop(name)
    fields["data"].pop("num_workers")  # which batches do not depend on
    key = json.dumps([what, flax_mnv2.layer_plan.BLOCK_TABLE, fields], sort_keys=True)
    return _parallel(key, mode, devices)


@functools.cache
def _parallel(key: str, mode: str, devices: int):
    import jax

    from flax_mnv2.training.parallel import make_parallel

    del key
    parallel = make_parallel(mode, jax.devices()[:devices])
    for name in ("compile_train_step", "compile_eval_step"):
        setattr(parallel, name, _once(getattr(parallel, name)))
    return parallel


def _once(compile_step):
    compiled = []

    def compile_or_take(step):
        compiled[:] = compiled or [compile_step(step)]
        return compiled[0]

    return compile_or_take
