"""Several processes, usually one per host, that train or evaluate together.

:func:`session` starts JAX on all of them, checks that they run the same thing, and stops all when one fails. What the
training loop needs beside JAX's collectives is here too: who goes first, and what process 0 decides for all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import socket
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_collections

from flax_mnv2.errors import USER_ERROR_STATUS, DataError, UserError
from flax_mnv2.training.config.defaults import flatten, jsonable
from flax_mnv2.training.faults.interrupt import Interrupted
from flax_mnv2.training.host_link import (
    PEER_FAILED_STATUS,
    HostError,
    HostLink,
    end_process,
    join,
)
from flax_mnv2.training.host_server import HostServer
from flax_mnv2.training.relay import Relay
from flax_mnv2.version import __version__

INITIALIZATION_TIMEOUT = 300.0
SILENCE_LIMIT = 30.0
FAILURE_STATUS = 1
# Fields that may differ from host to host: where its copy of the data lies, and how many hands prepare batches.
PER_HOST = (
    "data.data_dir",
    "data.archive",
    "data.sbd_archive",
    "data.num_workers",
    "data.num_threads",
    "data.prefetch_buffer_size",
)

Value = TypeVar("Value")
_state = types.SimpleNamespace(link=None)  # of this process: a program has one session at most


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place among all.

    Attributes:
      host: machine of process 0, by name or address.
      port: where process 0 listens.
      count: number of processes.
      index: this one, from 0.
      local_device_ids: the accelerators that are this process's; None for all of its machine.
    """

    host: str
    port: int
    count: int
    index: int
    local_device_ids: Sequence[int] | None = None


def find_place(
    *,
    distributed: bool | None = None,
    coordinator_address: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = INITIALIZATION_TIMEOUT,
) -> Place | None:
    """Where this process stands; None where it is the only one.

    Either all three of address, number and id are given, here or as ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``; or the cluster is one that JAX knows (TPU pods, Slurm, Open MPI,
    Kubernetes) and ``distributed`` is set. On the hosts of a TPU pod slice it need not be.

    Args:
      distributed: True asks the cluster; False never does; None does on machines with TPUs.
      coordinator_address: ``HOST:PORT`` of process 0.
      num_processes: on all hosts.
      process_id: of this one, from 0.
      timeout: seconds that the cluster may take to answer.

    Raises:
      HostError: something is missing, contradictory or out of range, or the cluster is not known.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = _number(num_processes, "JAX_NUM_PROCESSES")
    index = _number(process_id, "JAX_PROCESS_ID")
    given = {"--coordinator_address": address or None, "--num_processes": count, "--process_id": index}
    missing = [name for name, value in given.items() if value is None]
    if distributed is False:
        if coordinator_address or num_processes is not None or process_id is not None:
            raise HostError(f"--nodistributed contradicts {', '.join(given.keys() - set(missing))}. Give one of them.")
        return None
    if not missing:
        host, port = _split(address)
        if count < 1 or not 0 <= index < count:
            raise HostError(
                f"--process_id must be from 0 to below --num_processes; found {index} of {count} processes."
            )
        return Place(host, port, count, index) if count > 1 else None
    if distributed:
        if count is not None or index is not None:
            raise HostError(f"--distributed asks the cluster for everything; leave out {_names(given, missing)}.")
        return _ask_cluster(timeout, required=True)
    if len(missing) < len(given):
        raise HostError(
            f"{' and '.join(missing)} missing beside {_names(given, missing)}: several processes need all three, "
            "as flags or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; clusters that JAX knows "
            "need --distributed alone."
        )
    return _ask_cluster(timeout, required=False) if _on_tpu_host() else None


@contextlib.contextmanager
def session(
    place: Place | None,
    config: ml_collections.ConfigDict,
    *,
    settings: Mapping[str, Any] | None = None,
    timeout: float = INITIALIZATION_TIMEOUT,
    limit: float = SILENCE_LIMIT,
) -> Iterator[None]:
    """Connects the processes of a run for the time of the block, which must be the rest of the program.

    Call it before anything makes JAX look for devices. With one process it does nothing. When the block ends, all
    wait for each other. When it raises, or when another process fails, this process ends inside here: at exit JAX
    would wait for processes that come no more. Its status is 2 for its own :class:`UserError`, else 1.

    Args:
      place: from :func:`find_place`.
      config: of the run; must be the same on all hosts but for :data:`PER_HOST`.
      settings: what else must be the same, by name; JSON values.
      timeout: seconds that all may take to come together.
      limit: seconds without a sign of life after which a process counts as dead.

    Raises:
      HostError: the processes cannot find each other, or they do not agree.
    """
    if place is None:
        yield
        return
    server = None
    if place.index == 0:
        server = _open_server(place, timeout, limit)
    try:
        _state.link = join(
            place.host,
            place.port,
            index=place.index,
            count=place.count,
            fields=_fields(config) | dict(settings or {}),
            timeout=timeout,
            limit=limit,
        )
    except HostError:
        if server is not None:
            server.close()
        raise
    relay = None
    try:
        relay = _start_jax(place, _state.link.jax_port, timeout, limit)
        yield
    except Interrupted:
        _end(server, relay)  # all have agreed to stop
        raise
    except BaseException as error:
        _report(_state.link, error)
    else:
        _end(server, relay)


def link() -> HostLink | None:
    """The connection of the session; None with one process.

    Raises:
      HostError: there are several processes, but JAX was started without :func:`session`.
    """
    if _state.link is None and jax.process_count() > 1:
        raise HostError(
            f"There are {jax.process_count()} processes that nobody watches over. Call inside "
            "flax_mnv2.training.distributed.session, which starts JAX on them, and not jax.distributed.initialize."
        )
    return _state.link


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """Runs the block on process 0, and when it is through with it, on the others."""
    connection = link()
    if connection is not None and connection.index > 0:
        connection.meet()
    yield
    if connection is not None and connection.index == 0:
        connection.meet()


def from_leader(make: Callable[[], Value]) -> Value:
    """What ``make`` gives on process 0, on every process; a JSON value."""
    connection = link()
    if connection is None:
        return make()
    return connection.meet(make() if connection.index == 0 else None)


def meet() -> None:
    """Waits until all processes are here."""
    from_leader(lambda: None)


def check_enough_examples(num_examples: int, split: str) -> None:
    """Raises a DataError where some host would have nothing to train on."""
    if num_examples < jax.process_count():
        raise DataError(
            f"The split {split!r} has {num_examples} example(s) for {jax.process_count()} processes; each needs one "
            "at least. Use fewer hosts, or choose another config.data.train_split."
        )


# ---- finding the others -------------------------------------------------------------------------------------------


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if given is not None or not text:
        return given
    try:
        return int(text)
    except ValueError:
        raise HostError(f"The environment variable {variable} must be a whole number; found {text!r}.") from None


def _names(given: dict[str, Any], missing: list[str]) -> str:
    return " and ".join(name for name in given if name not in missing)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise HostError(f"--coordinator_address must be HOST:PORT, such as 10.0.0.2:8476; found {address!r}.")
    return host.strip("[]"), int(port)


def _on_tpu_host() -> bool:
    """Whether JAX will use TPU chips of this machine; looks at the PCI bus alone, asks no network."""
    from jax._src import cloud_tpu_init

    platforms = _jax_platforms()
    return cloud_tpu_init.running_in_cloud_tpu_vm and (not platforms or "tpu" in platforms)


def _jax_platforms() -> str | None:
    return jax.config.jax_platforms


def _ask_cluster(timeout: float, *, required: bool) -> Place | None:
    from jax._src import clusters

    try:
        address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, round(timeout)
        )
    except Exception as error:  # each kind of cluster has its own ways to fail: no answer, odd variables
        raise HostError(
            f"The cluster does not say who is in it ({type(error).__name__}: {error}). Give --coordinator_address, "
            "--num_processes and --process_id, or --nodistributed to use this host alone."
        ) from error
    if None in (address, count, index):
        if not required:
            return None
        raise HostError(
            "--distributed was given, but this is no cluster that JAX knows (TPU pod slice, Slurm, Open MPI, "
            "Kubernetes). Give --coordinator_address=HOST:PORT, --num_processes=N and --process_id=I instead."
        )
    if count == 1:
        return None
    host, port = _split(address)
    return Place(host, port, count, index, devices)


# ---- beginning and end --------------------------------------------------------------------------------------------


def _fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    fields = {f"config.{name}": value for name, value in jsonable(flatten(config)).items() if name not in PER_HOST}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    return {"version of flax_mnv2": __version__, **{f"version of {name}": v for name, v in versions.items()}, **fields}


def _open_server(place: Place, timeout: float, limit: float) -> HostServer:
    with socket.create_server(("", 0)) as free:
        jax_port = free.getsockname()[1]
    try:
        return HostServer(place.port, count=place.count, jax_port=jax_port, timeout=timeout, limit=limit)
    except OSError as error:
        raise HostError(
            f"Process 0 cannot listen on port {place.port} of this machine: {error.strerror or error}. Another run "
            "may use it; choose another port in --coordinator_address."
        ) from None


def _start_jax(place: Place, jax_port: int, timeout: float, limit: float) -> Relay | None:
    # Process 0 ends with its service, so it alone needs no relay.
    relay = Relay(place.host, jax_port) if place.index else None
    everywhere = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    jax.distributed.initialize(
        relay.address if relay else f"127.0.0.1:{jax_port}",
        place.count,
        place.index,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"{everywhere}:{jax_port}",
        initialization_timeout=round(timeout),
        heartbeat_timeout_seconds=round(max(100, 3 * limit)),  # ours comes first, with a message
        shutdown_timeout_seconds=30,
    )
    return relay


def _end(server: HostServer | None, relay: Relay | None) -> None:
    """All have come to the end: they part together."""
    _state.link.meet()
    _state.link.leave()
    jax.distributed.shutdown()
    if relay is not None:
        relay.close()
    if server is not None:
        server.close()
    _state.link = None


def _report(connection: HostLink, error: BaseException) -> None:
    """Tells the others of this process's error and ends it; never returns."""
    if isinstance(error, UserError):
        own, reason = f"error: {error}", str(error)
    else:
        own = "".join(traceback.format_exception(error)).rstrip()
        reason = f"{type(error).__name__}: {error}".strip(": ").splitlines()[0]
    failure = connection.fail(reason, certain=not _may_follow(error))
    if failure.index != connection.index:
        end_process(f"error: {failure}", PEER_FAILED_STATUS)
    end_process(own, USER_ERROR_STATUS if isinstance(error, UserError) else FAILURE_STATUS)


def _may_follow(error: BaseException | None) -> bool:
    """Whether an error comes from JAX's runtime, as it does when another process is gone."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False
