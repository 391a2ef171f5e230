"""What the scripts share: flags, readable errors, exit status."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from flax_mnv2.compilation_cache import use_compilation_cache
from flax_mnv2.devices import check_devices
from flax_mnv2.errors import USER_ERROR_STATUS, ConfigError, UserError
from flax_mnv2.training.faults.interrupt import quit_at_once_when_due

if TYPE_CHECKING:
    from flax_mnv2.training.multihost import Place


def run(main: Callable[[Sequence[str]], None], *, of_run: bool = False) -> None:
    """Parses flags and runs ``main``; a user's mistake prints one message and exits with status 2.

    With ``of_run`` flags ``--config.…`` without ``--config`` override what the run in ``--workdir``, or of
    ``--checkpoint``, has recorded. Call under ``if __name__ == "__main__"``: input workers are new processes that
    import the script again.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            if of_run:
                _take_recorded_config(argv)
            rest = flags.FLAGS(argv)
            config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
            if config is not None:
                config.keys()  # a recipe that could not be loaded raises when it is used
        except UserError as error:
            _stop(str(error))
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            # ml_collections raises plain Python errors for config fields that do not exist or have another
            # type, and for files that it cannot load.
            _stop(_readable(error))
        if len(rest) > 1:
            _stop(f"Unexpected argument {rest[1]!r}; flags begin with --.")
        return rest

    def guarded(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant, such as opening read-only
        quit_at_once_when_due()
        gc.set_threshold(100_000)  # looking again and again through what tracing makes took a tenth of its time
        try:
            main(argv)
        except UserError as error:
            _stop(str(error))
        except KeyboardInterrupt:  # before there is anything to save, or where nothing is saved
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    app.run(guarded, flags_parser=parse)


def _take_recorded_config(argv: Sequence[str]) -> None:
    """Puts a run's recorded config in the place of ``--config``, where it is overridden and not given."""
    overridden = any(re.match(r"--?(no)?config\.", argument) for argument in argv)
    if not overridden or _value_of("config", argv):
        return
    from flax_mnv2.training.workdir import config_for_evaluation

    place = {name: value for name in ("workdir", "checkpoint") if (value := _value_of(name, argv))}
    if place:
        config = config_for_evaluation(None, {}, **place)
        delattr(flags.FLAGS, "config")
        config_flags.DEFINE_config_dict("config", config, lock_config=True)


def _value_of(name: str, argv: Sequence[str]) -> str:
    """Returns the value of a flag before flags are parsed, or nothing."""
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if equals else following
    return ""


def define_host_flags() -> None:
    """Defines the flags of scripts that can run on several hosts; :func:`hosts` reads them."""
    flags.DEFINE_bool("distributed", None, "Ask the cluster (TPU pod slice, Slurm, ...) for the other processes.")
    flags.DEFINE_string("coordinator_address", "", "HOST:PORT of process 0, where the cluster does not tell.")
    flags.DEFINE_integer("num_processes", None, "Processes of the run, on all hosts.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
    flags.DEFINE_float("initialization_timeout", 300.0, "Seconds to wait for the other processes.", lower_bound=1.0)
    flags.DEFINE_float(
        "host_timeout", 30.0, "Seconds without a heartbeat after which a process counts as dead.", lower_bound=1.0
    )


@contextlib.contextmanager
def hosts(config: ml_collections.ConfigDict, *same: str, agreed_stop: bool) -> Iterator[None]:
    """Holds a session with the other processes of a run, as flags and environment say; alone it has none.

    Enter it before anything that makes JAX look for devices or compile: it looks for them, and from then on compiled
    programs are kept as ``config.compilation_cache`` says. The config, and the flags named by ``same``, must be the
    same on all hosts. With ``agreed_stop`` the block asks a ``StopRequest``, so that SIGTERM to one process is for all.
    """
    from flax_mnv2.training.multihost import session

    use_compilation_cache(config.compilation_cache)
    given = flags.FLAGS
    place = find_place(
        distributed=given.distributed,
        coordinator_address=given.coordinator_address,
        num_processes=given.num_processes,
        process_id=given.process_id,
    )
    with session(
        place,
        config,
        settings={f"--{name}": given[name].value for name in same},
        timeout=given.initialization_timeout,
        heartbeat=given.host_timeout,
        agreed_stop=agreed_stop,
    ):
        check_devices()
        yield


def find_place(
    *,
    distributed: bool | None = None,
    coordinator_address: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Place | None:
    """Returns where this process stands, from its arguments and environment alone; None where it is the only one.

    ``distributed`` True asks a cluster that JAX knows, False never does, None does on the hosts of TPUs. For the others
    the environment has ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. A ConfigError says
    what is missing, contradictory, out of range or in use, or that there is no such cluster.
    """
    from flax_mnv2.training.multihost import Place

    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    count, index = _number(num_processes, "JAX_NUM_PROCESSES"), _number(process_id, "JAX_PROCESS_ID")
    values = {"--coordinator_address": address, "--num_processes": count, "--process_id": index}
    given = " and ".join(name for name, value in values.items() if value is not None)
    missing = " and ".join(name for name, value in values.items() if value is None)
    if distributed is False:
        if coordinator_address or num_processes is not None or process_id is not None:
            raise ConfigError(f"--nodistributed contradicts {given}. Give one of them.")
        return None
    if not missing:
        _check_place(address, count, index)
        return Place(address, count, index) if count > 1 else None
    if distributed and not (count is None and index is None):
        raise ConfigError(f"--distributed asks the cluster for everything; leave out {given}.")
    if given and not distributed:
        raise ConfigError(
            f"{missing} missing beside {given}. Give all three, as flags or as JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID; a cluster that JAX knows needs --distributed alone."
        )
    if distributed and not _on_cluster():
        raise ConfigError(
            "--distributed was given, but this is no cluster that JAX knows (TPU pod slice, Slurm, Open MPI, "
            "Kubernetes). Give --coordinator_address=HOST:PORT, --num_processes=N and --process_id=I instead."
        )
    return Place() if distributed or (_on_tpu_host() and _on_cluster()) else None


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise ConfigError(f"The environment variable {variable} must be a whole number; found {text!r}.")
    return int(text)


def _check_place(address: str, count: int, index: int) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"--coordinator_address must be HOST:PORT, such as 10.0.0.2:8476; found {address!r}.")
    if not 0 <= index < count:
        raise ConfigError(f"--process_id must be from 0 to below --num_processes; found {index} of {count} processes.")
    if index == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError:  # JAX would crash
            raise ConfigError(
                f"Process 0 cannot listen on port {port} of this machine; another run may use it. Choose another in "
                "--coordinator_address."
            ) from None


def _on_tpu_host() -> bool:
    """Returns whether JAX will use TPU chips of this machine."""
    from jax._src import cloud_tpu_init

    platforms = jax.config.jax_platforms
    return cloud_tpu_init.running_in_cloud_tpu_vm and (not platforms or "tpu" in platforms)


def _on_cluster() -> bool:
    """Returns whether JAX knows whom to ask for the other processes."""
    from jax._src.clusters import ClusterEnv

    try:
        return any(kind.is_env_present() for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
    except Exception as error:  # each kind of cluster has its own ways to fail
        raise ConfigError(
            f"The cluster does not answer ({type(error).__name__}: {error}). Give --coordinator_address, "
            "--num_processes and --process_id, or --nodistributed to use this host alone."
        ) from error


def _readable(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    if isinstance(error, OSError) or "Traceback" in text:  # ml_collections wraps what a recipe raised
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"Cannot load the recipe given by --config: {lines[-1]}"
    if not isinstance(error, flags.Error):
        said = text.replace("\\'\\n", ". ").replace("\\'", "").replace("\n", " ").strip("'\"")  # a repr in a repr
        text = f"No such config field, or a value of the wrong type: {said}"
    return f"{text}\nRun with --help for the flags; the fields are in flax_mnv2/training/config/defaults.py."


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR_STATUS)
