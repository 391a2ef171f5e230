"""Several processes, usually one per host, that train or evaluate together on JAX's distributed runtime.

:func:`session` starts it and checks that all processes run the same thing. From then on JAX watches over them: where
one dies, it ends the others within the heartbeat limit, and its log names the task. How all stop together stands in
:class:`~flax_mnv2.training.faults.interrupt.StopRequest`.
"""

import contextlib
import importlib.metadata
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from flax_mnv2.errors import USER_ERROR_STATUS, ConfigError, DataError, UserError
from flax_mnv2.tasks.rules import flatten, jsonable
from flax_mnv2.training.faults.interrupt import Interrupted
from flax_mnv2.training.faults.watchdog import end_process
from flax_mnv2.version import __version__

# Fields that may differ from host to host: where its copy of the data lies, and how many workers prepare batches.
PER_HOST = (
    "data.data_dir",
    "data.archive",
    "data.sbd_archive",
    "data.table",
    "data.num_workers",
    "data.num_threads",
    "data.prefetch_buffer_size",
)
_LAST_WORDS_SECONDS = 2.0  # for others that fail for the same reason: JAX ends them with process 0


class Place(NamedTuple):
    """One process's place among all; without values, JAX asks the cluster."""

    address: str | None = None  # HOST:PORT where process 0 listens
    count: int | None = None  # of all processes
    index: int | None = None  # from 0

    def __str__(self) -> str:
        return f"process {self.index} of {self.count} at {self.address}" if self.address else "this process"


@contextlib.contextmanager
def session(
    place: Place | None,
    config: ml_collections.ConfigDict,
    *,
    settings: Mapping[str, Any] | None = None,
    timeout: float = 300.0,
    heartbeat: float = 30.0,
    agreed_stop: bool = True,
) -> Iterator[None]:
    """Connects the processes of a run for the time of the block, which must be the rest of the program.

    Enter it before anything makes JAX look for devices. When the block ends, all wait for each other. When it raises,
    this process says why and ends inside here, with status 2 for a :class:`UserError`, 130 for Ctrl-C, else 1; JAX
    then ends the others, with status 134. Where ``place`` is None nothing happens.

    The config, but for :data:`PER_HOST`, and ``settings``, JSON values by name, must be the same on all. They have
    ``timeout`` seconds to come together; after ``heartbeat`` seconds without a sign of life one counts as dead. With
    ``agreed_stop`` SIGTERM to one process asks all to stop, which ``StopRequest`` answers; else it ends that one.
    """
    if place is None:
        yield
        return
    _start_jax(place, timeout, heartbeat, agreed_stop)
    try:
        _check_same(config, settings or {})
        yield
    except Interrupted:
        _part()  # all have agreed to stop
        raise
    except BaseException as error:
        _fail(error, place)
    else:
        _part()


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """Runs the block on process 0, and when it is through with it, on the others."""
    if jax.process_index() > 0:
        meet()
    yield
    if jax.process_index() == 0:
        meet()


def from_leader(make: Callable[[], Any]) -> Any:
    """Returns what ``make`` gives on process 0, a JSON value, on every process."""
    if jax.process_count() == 1:
        return make()
    text = json.dumps(make()).encode() if jax.process_index() == 0 else b""
    size = -(-len(text) // 256) * 256  # few sizes: JAX compiles a program for each
    size = int(multihost_utils.broadcast_one_to_all(np.int32(size)))
    content = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(size), np.uint8))
    return json.loads(content.tobytes())


def meet() -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("flax_mnv2")


def check_enough_examples(num_examples: int, split: str) -> None:
    """Raises a DataError where some process would have nothing to train on, or other data than process 0."""
    if num_examples < jax.process_count():
        raise DataError(
            f"The split {split!r} has {num_examples} example(s) for {jax.process_count()} processes; each needs one "
            "at least. Use fewer hosts, or choose another config.data.train_split."
        )
    expected = from_leader(lambda: num_examples)
    if num_examples != expected:
        raise DataError(
            f"The split {split!r} has {expected} examples for process 0 and {num_examples} for process "
            f"{jax.process_index()}. Give all hosts the same data; look at config.data.data_dir on this one."
        )


def _start_jax(place: Place, timeout: float, heartbeat: float, agreed_stop: bool) -> None:
    # If the others do not come, JAX ends this process and says little more than "deadline exceeded".
    print(f"{place} waits for all others, {timeout:g} s at most", file=sys.stderr, flush=True)
    jax.config.update("jax_enable_preemption_service", agreed_stop)
    try:
        jax.distributed.initialize(
            *place,
            cluster_detection_method="deactivate" if place.address else None,
            initialization_timeout=round(timeout),
            heartbeat_timeout_seconds=round(heartbeat),
            shutdown_timeout_seconds=round(heartbeat),
        )
    except Exception as error:  # each kind of cluster has its own ways to fail
        raise ConfigError(
            f"JAX cannot start {place}: {type(error).__name__}: {error}. Give --coordinator_address, "
            "--num_processes and --process_id; --nodistributed uses this host alone."
        ) from error
    if jax.process_count() == 1:  # a cluster of one: SIGTERM needs no agreement
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_same(config: ml_collections.ConfigDict, settings: Mapping[str, Any]) -> None:
    """Raises a ConfigError on all processes where one has other fields, settings or versions than process 0."""
    fields = {f"config.{name}": value for name, value in jsonable(flatten(config)).items() if name not in PER_HOST}
    versions = {"flax_mnv2": __version__} | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    fields |= {f"version of {name}": version for name, version in versions.items()} | dict(settings)
    fields = {name: json.dumps(value) for name, value in fields.items()}
    expected = from_leader(lambda: fields)
    lines = [
        f"\n  {name}: {expected.get(name, 'absent')} in process 0, {fields.get(name, 'absent')} here"
        for name in sorted(fields.keys() | expected.keys())
        if fields.get(name) != expected.get(name)
    ]
    different = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(lines)))).tolist()
    if different:
        here = "".join(lines) or f" not those of {different}, which say what differs."
        raise ConfigError(
            f"All processes of a run must have the same settings. Those of process {jax.process_index()}:{here}"
        )


def _part() -> None:
    """Leaves together with all other processes."""
    meet()
    jax.distributed.shutdown()


def _fail(error: BaseException, place: Place) -> NoReturn:
    """Says why this process fails and ends it: at exit JAX would wait for the others, which wait for this one."""
    message, status = f"error: {error}", USER_ERROR_STATUS
    if isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", 128 + signal.SIGINT
    elif not isinstance(error, UserError):
        message, status = "".join(traceback.format_exception(error)).rstrip(), 1
    print(message, file=sys.stderr, flush=True)
    if _from_jax(error):  # perhaps because another process has died: JAX then names it and ends this one here
        with contextlib.suppress(RuntimeError):
            jax.distributed.shutdown()
    if not place.index:  # process 0, or unknown
        time.sleep(_LAST_WORDS_SECONDS)
    end_process(status)


def _from_jax(error: BaseException | None) -> bool:
    """Returns whether JAX's runtime raised an error, or what led to it."""
    if error is None or isinstance(error, jax.errors.JaxRuntimeError):
        return error is not None
    return _from_jax(error.__cause__ or error.__context__)
