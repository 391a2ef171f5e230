"""What the scripts share: flags, readable errors, exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from flax_mnv2.errors import UserError

USER_ERROR_STATUS = 2


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
        try:
            main(argv)
        except UserError as error:
            _stop(str(error))

    app.run(guarded, flags_parser=parse)


def _readable(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    if isinstance(error, OSError) or "Traceback" in text:  # ml_collections wraps what a recipe raised
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"Cannot load the recipe given by --config: {lines[-1]}"
    if not isinstance(error, flags.Error):
        text = f"No such config field, or a value of the wrong type: {text.replace(chr(10), ' ')}"
    return f"{text}\nRun with --help for the flags; the fields are in flax_mnv2/training/run_config.py."


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR_STATUS)
