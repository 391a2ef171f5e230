"""The address of an image → its bytes, within a size and a time limit."""

from __future__ import annotations

import time
from typing import Any

from flax_mnv2.errors import DataError
from flax_mnv2.files import shown
from flax_mnv2.version import __version__

MAX_BYTES = 64 * 2**20  # of one file; a camera's largest JPEG has half of it
TIMEOUT_S = 30  # to wait for each piece, and for all of them, which is looked at as each one comes
_AT_ONCE = 2**16


def is_url(source: Any) -> bool:
    """Says whether it is the text of an http or https address, and no path."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def fetch(url: str) -> bytes:
    """Returns what lies at an address; sends nothing but the request for it.

    Raises a DataError where that cannot be had, is larger than :data:`MAX_BYTES` or slower than :data:`TIMEOUT_S`.
    """
    import http.client  # here, as they take their time to import and few need them
    import urllib.request

    deadline = time.monotonic() + TIMEOUT_S
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"flax_mnv2/{__version__}"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return _read(response, deadline)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(
            f"Cannot fetch the image {shown(url)}: {error or type(error).__name__}. Expected one of at most "
            f"{MAX_BYTES:,} bytes within {TIMEOUT_S} s; check the address, or download it and give its path."
        ) from None


def _read(response: Any, deadline: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(_AT_ONCE):
        data += chunk
        if len(data) > MAX_BYTES:
            raise ValueError("it is larger")
        if time.monotonic() > deadline:
            raise TimeoutError("it takes longer")
    return bytes(data)
