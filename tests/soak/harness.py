"""Runs that are broken on purpose: start ``train.py`` and ``eval.py`` on a tiny config, cut them, compare what is left.

Used by the tests beside it and by soak.py. Everything a run is compared by is read from its folder, with Orbax and by
hand, not through the code that is tested.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from coloured_photos import make_photos

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
RECIPE = HERE / "tiny_recipe.py"
BLOCKS = ((8, 1, 2), (8, 1, 1))  # of the tiny network
WALL_CLOCK = ("images_per_second",)  # figures that no two runs share


# ---- starting and cutting runs --------------------------------------------------------------------------------------


class Data:
    """Where the data sets of tiny runs lie: drawn shapes, and photos of single colours."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.photos = folder / "photos"
        if not self.photos.exists():
            make_photos(self.photos, train=12, test=5)

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
                "XLA_FLAGS": "--xla_backend_optimization_level=0",
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

    def wait_for(self, text: str, timeout: float = 120.0) -> bool:
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

    def end(self, timeout: float = 180.0) -> int:
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
    run answers.
    """
    import child
    import pytest

    from flax_mnv2.training.faults.interrupt import Interrupted
    from flax_mnv2.training.loop import train

    with pytest.MonkeyPatch.context() as patch:
        if fault is not None:
            child.arm(fault, patch.setattr)
        try:
            train(config, workdir, parallel=_parallel(config.to_json(sort_keys=True), mode, devices), **options)
        except Interrupted as stopped:
            return stopped.code
    return 0


@contextlib.contextmanager
def two_processes(
    *flags,
    own: Mapping[int, Sequence[str]] | None = None,
    faults: Mapping[int, dict] | None = None,
    heartbeat: float = 60.0,
    **options,
) -> Iterator[list[Child]]:
    """Two processes of one ``train.py`` with two devices each.

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
            child = Child("train.py", *flags, *place, devices=2, **fault, **options)
            children.append(stack.enter_context(child))
        yield children


def check_ends(children: Sequence[Child], *expected: int) -> None:
    """Waits for the ends of children, whose exit statuses must be these."""
    found = tuple(child.end(timeout=600) for child in children)
    assert found == expected, "\n".join([f"{found}, expected {expected}", *(child.printed for child in children)])


BATCHES = 3


def global_batches(config, *, processes: int, workers: int, start_step: int = 0) -> list[dict[str, np.ndarray]]:
    """The first global batches of a run, put together from the share of every process."""
    import jax
    import pytest

    from flax_mnv2.tasks.registry import get_task

    config.data.num_workers = workers
    dataset = get_task(config.task).load_dataset(config.data)
    task = get_task(config.task).for_training(config, dataset.labels)
    shares = []
    for index in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: processes)
            patch.setattr(jax, "process_index", lambda index=index: index)
            with task.train_batches(dataset, start_step=start_step) as batches:
                shares.append([next(batches) for _ in range(BATCHES)])
    together = zip(*shares, strict=True)
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in together]


@functools.cache
def _parallel(config: str, mode: str, devices: int):
    """Devices that compile each step of a config once; what a step computes follows from the config alone."""
    import jax

    from flax_mnv2.training.parallel import make_parallel

    del config  # the key
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


# ---- what a run left ------------------------------------------------------------------------------------------------


def steps(workdir: pathlib.Path) -> list[int]:
    """Of the checkpoints in a run's folder, by their names alone."""
    return _steps_of(names(workdir / "checkpoints"))


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name."""
    import jax
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / f"step_{step}"
    found = {}
    for item in ("variables", "training", "ema"):
        if (folder / item).is_dir():
            reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
            tree = reader.restore(folder / item, restore_args=_as_numpy(reader.metadata(folder / item)))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def _as_numpy(metadata):
    import jax
    import orbax.checkpoint as ocp

    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` without the figures of the clock; all must be whole."""
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in WALL_CLOCK} for line in lines]


def scalars(workdir: pathlib.Path) -> dict[tuple[str, int], list[float]]:
    """What TensorBoard shows: a restart hides what earlier files have from its step on. A cut tail is left out."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    from flax_mnv2.data.prepare.conversion import read_records
    from flax_mnv2.errors import DataError

    shown: dict[tuple[str, int], list[float]] = {}
    for path in sorted((workdir / "tensorboard").glob("events.*")):
        try:
            for record in read_records(path):
                event = Event.FromString(record)
                if event.session_log.status == SessionLog.START:
                    shown = {place: values for place, values in shown.items() if place[1] < event.step}
                for value in event.summary.value:
                    if value.tag.rpartition("/")[2] not in WALL_CLOCK:
                        shown.setdefault((value.tag, event.step), []).append(value.simple_value)
        except DataError:
            continue
    return shown


def differences(one: pathlib.Path, other: pathlib.Path, *, kept: bool = True) -> list[str]:
    """What two runs of the same config left differently, a line each; none where they are the same bit for bit.

    Args:
      one: folder of a run that reached its end.
      other: of another.
      kept: whether the checkpoints that are kept must be those of the same steps.
    """
    found = []
    if kept and steps(one) != steps(other):
        found.append(f"checkpoints: {steps(one)} and {steps(other)}")
    newest = [max(steps(folder), default=None) for folder in (one, other)]
    if newest[0] != newest[1] or newest[0] is None:
        found.append(f"newest checkpoint: {newest[0]} and {newest[1]}")
    else:
        found += different_arrays(arrays(one, newest[0]), arrays(other, newest[0]))
    lines = [metrics(one), metrics(other)]
    found += [f"metrics.jsonl: {a} and {b}" for a, b in zip(*lines, strict=False) if a != b][:3]
    if len(lines[0]) != len(lines[1]):
        found.append(f"metrics.jsonl: {[[(line['step'], line['split']) for line in part] for part in lines]}")
    shown = [scalars(one), scalars(other)]
    if shown[0] != shown[1]:
        places = sorted(
            place for place in shown[0].keys() | shown[1].keys() if shown[0].get(place) != shown[1].get(place)
        )
        found += [f"TensorBoard {place}: {shown[0].get(place)} and {shown[1].get(place)}" for place in places[:3]]
    return found


def different_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Names of arrays that are not the same bit for bit."""
    assert one, "a checkpoint without arrays"
    if one.keys() != other.keys():
        return [f"arrays: {sorted(one.keys() ^ other.keys())[:3]}"]
    return [f"array {name}" for name in one if one[name].tobytes() != other[name].tobytes()][:3]


# ---- damage to what a run left --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Kills:
    """What came of kills during saves: how many, what was wrong afterwards, and how many found a checkpoint."""

    tried: int = 0
    going_on: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)


def kill_saves(folder: pathlib.Path, *, times: int, rng: random.Random, say=lambda line: None) -> Kills:
    """Kills saver.py ``times`` at random moments; each start checks, array by array, what the last one left."""
    result = Kills()
    for _ in range(times + 1):
        last = result.tried == times
        before = _steps_of(names(folder))
        target = 3 + max(before, default=0) if last else 100_000
        command = [sys.executable, HERE / "saver.py", folder, str(target)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("from "):
                    break
            else:
                result.wrong.append("".join(lines))
                return result
            start = int(lines[-1].split()[1])
            if before and start <= max(before):  # it set aside what looked complete
                result.wrong.append("".join(lines))
            result.going_on += start > 1
            if not last:
                doomed = start + rng.randint(2, 5)  # this save, or what follows it
                for line in process.stdout:
                    if f"saving {doomed}" in line:
                        break
                time.sleep(rng.uniform(0.0, 0.2))
                process.kill()
                result.tried += 1
                say(f"kill {result.tried}: started from {start}, left {names(folder)}")
            rest = process.stdout.read()
            if process.wait(120) != (0 if last else -signal.SIGKILL):
                result.wrong.append(rest)
        finally:
            process.kill()
            process.stdout.close()
    return result


def _steps_of(names):
    return sorted(int(match[1]) for match in map(re.compile(r"step_(\d+)").fullmatch, names) if match)


def names(folder: pathlib.Path) -> list[str]:
    """Of what is in a folder."""
    return sorted(path.name for path in folder.glob("*"))


def damages(checkpoint: pathlib.Path, *, positions: int):
    """Every file of a checkpoint, relative, with each kind of damage, ``positions`` times."""
    files = sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())
    assert files, f"no files in {checkpoint}"
    for path in files:
        for kind in ("flip", "truncate", "empty"):
            for _ in range(positions if kind == "flip" else 1):
                yield path, kind


def damage(path: pathlib.Path, kind: str, rng: random.Random) -> None:
    """Flips a bit (``flip in content``: of a byte that is not 0), cuts the file at a random place, or empties it."""
    content = bytearray(path.read_bytes())
    if kind.startswith("flip") and content:
        places = np.flatnonzero(content) if kind == "flip in content" else range(len(content))
        content[rng.choice(places)] ^= 1 << rng.randrange(8)
    elif kind == "truncate" and content:
        del content[rng.randrange(len(content)) :]
    else:
        content.clear()
    path.write_bytes(content)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    """Of all below ``folder``: arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# ---- sizes ----------------------------------------------------------------------------------------------------------


def slope(samples: list[dict], name: str, *, per: int) -> float:
    """Growth of a figure per so many steps, by least squares."""
    return float(np.polyfit([size["step"] for size in samples], [size[name] for size in samples], 1)[0]) * per


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
