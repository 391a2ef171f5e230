"""Packages of formats and runtimes, which are extras."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flax_mnv2.errors import UserError, needs_extra


@contextlib.contextmanager
def needs_package(extra: str) -> Iterator[None]:
    """Raises a UserError that names the extra where an import in the block finds a package missing."""
    try:
        with needs_extra(extra, __name__):
            yield
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from None
