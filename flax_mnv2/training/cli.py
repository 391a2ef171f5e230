"""What the scripts share: flags, readable errors, exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags, logging

from flax_mnv2.errors import USER_ERROR_STATUS, UserError
from flax_mnv2.training.faults.interrupt import quit_at_once_when_due


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses flags and runs ``main``; a user's mistake prints one message and exits with status 2.

    Call under ``if __name__ == "__main__"``: input workers are new processes that import the script again.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
            if config is not None:
                config.keys()  # a recipe that could not be loaded raises when it is used
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
        try:
            main(argv)
        except UserError as error:
            _stop(str(error))
        except KeyboardInterrupt:  # before there is anything to save, or where nothing is saved
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    app.run(guarded, flags_parser=parse)


def define_host_flags() -> None:
    """Defines the flags of scripts that can run on several hosts; :func:`hosts` reads them."""
    flags.DEFINE_bool("distributed", None, "Ask the cluster (TPU pod slice, Slurm, ...) for the other processes.")
    flags.DEFINE_string("coordinator_address", "", "HOST:PORT of process 0, where the cluster does not tell.")
    flags.DEFINE_integer("num_processes", None, "Processes of the run, on all hosts.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
    flags.DEFINE_float("initialization_timeout", 300.0, "Seconds to wait for the other processes.", lower_bound=1.0)
    flags.DEFINE_float(
        "host_timeout", 30.0, "Seconds of silence after which a process counts as dead.", lower_bound=1.0
    )


def hosts(config: ml_collections.ConfigDict, *same: str) -> contextlib.AbstractContextManager[None]:
    """A session with the other processes of a run, as the flags and the environment say; alone it does nothing.

    Enter it before anything that makes JAX look for devices.

    Args:
      config: must be the same on all hosts.
      *same: names of flags that must be, too.
    """
    from flax_mnv2.training.distributed import find_place, session

    given = flags.FLAGS
    place = find_place(
        distributed=given.distributed,
        coordinator_address=given.coordinator_address,
        num_processes=given.num_processes,
        process_id=given.process_id,
        timeout=given.initialization_timeout,
    )
    settings = {f"--{name}": given[name].value for name in same}
    return session(place, config, settings=settings, timeout=given.initialization_timeout, limit=given.host_timeout)


def _readable(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    if isinstance(error, OSError) or "Traceback" in text:  # ml_collections wraps what a recipe raised
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"Cannot load the recipe given by --config: {lines[-1]}"
    if not isinstance(error, flags.Error):
        text = f"No such config field, or a value of the wrong type: {text.replace(chr(10), ' ')}"
    return f"{text}\nRun with --help for the flags; the fields are in flax_mnv2/training/config/defaults.py."


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR_STATUS)
