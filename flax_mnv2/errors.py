"""Errors that a user can mend.

The scripts print these as one message without a traceback and exit with status 2; library callers
catch them like any ``ValueError``. Each message says what is at fault, what was expected, what was
found, and what to do. A package that is missing is named with the extra to install.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

USER_ERROR_STATUS = 2  # exit status of every command of ours that ends with one of these
INTERRUPTED_STATUS = 130  # the shell's for SIGINT


class UserError(ValueError):
    """A mistake in what the user supplied; base class of the errors below."""


class ConfigError(UserError):
    """A configuration field is misspelt, mistyped, or out of its range."""


class DataError(UserError):
    """A data set, archive, image or mask is missing, damaged or inconsistent."""


class CheckpointError(UserError):
    """Weights or a checkpoint do not fit the model, or cannot be read."""


@contextlib.contextmanager
def needs_extra(extra: str, importer: str) -> Iterator[None]:
    """Names the extra where an import in the block finds a package missing.

    Args:
      extra: of ``pyproject.toml``, such as ``"train"``.
      importer: ``__name__`` of the module with the block; as ``"__main__"`` it is a command, which prints the message
        and exits with the status of a user's mistake.

    Raises:
      ModuleNotFoundError: of a module that is imported, with the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == __package__:
            raise
        message = f"This needs {package}, which is not installed. {how_to_install(extra)}."
        if importer != "__main__":
            raise ModuleNotFoundError(message, name=error.name) from None
        print(f"error: {message}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


def exit_status(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit status: 0 done; 2 a user's mistake or 130 interrupted, which is printed."""
    try:
        command()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS
    return 0


def how_to_install(extra: str) -> str:
    """Returns the command for a user who installed the library, or who has a copy of the project."""
    return f"Install it: pip install 'flax-mnv2[{extra}]', or in a copy of the project pip install '.[{extra}]'"
