"""Errors that a user can mend.

The scripts print these as one message without a traceback and exit with status 2; library callers
catch them like any ``ValueError``. Each message says what is at fault, what was expected, what was
found, and what to do.
"""

USER_ERROR_STATUS = 2  # exit status of every command of ours that ends with one of these


class UserError(ValueError):
    """A mistake in what the user supplied; base class of the errors below."""


class ConfigError(UserError):
    """A configuration field is misspelt, mistyped, or out of its range."""


class DataError(UserError):
    """A data set, archive, image or mask is missing, damaged or inconsistent."""


class CheckpointError(UserError):
    """Weights or a checkpoint do not fit the model, or cannot be read."""
