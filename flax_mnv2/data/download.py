"""Finding or fetching official archives, always checked against their published digest.

TFDS' own download manager is not used: it knows only sha256 (SBD publishes md5), tries one address, and
waits long where there is no network.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from absl import logging

from flax_mnv2.errors import DataError

_TIMEOUT_SECONDS = (5, 60)  # to connect, and between two pieces of data
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """A published archive: its file name, where it is offered, and how to recognise it.

    ``size`` is exact in bytes, or None where no source states it; ``size_text`` is for messages.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None
    size_text: str
    algorithm: str
    digest: str


def obtain(file: OfficialFile, *, places: Iterable[Path], target: Path) -> Path:
    """The path of a verified copy: the first that exists in ``places``, else downloaded into ``target``.

    Args:
      file: what to get.
      places: paths where the user may have put the file.
      target: folder for a download; made if absent.

    Raises:
      DataError: a file in ``places`` is not the official one, or there is none and no address works.
    """
    for path in places:
        if path.is_file():
            logging.info("Checking %s (%s)", path, file.size_text)
            if problem := _problem(file, path):
                raise DataError(
                    f"{path} is not the official {file.name}: {problem}. It may be incomplete: delete it, or "
                    f"replace it by the file from {file.urls[0]}."
                )
            return path
    failures = []
    for url in file.urls:
        try:
            return _download(file, url, target)
        except _DownloadError as error:
            logging.warning("%s: %s", url, error)
            failures.append(f"{url} ({error})")
    raise DataError(
        f"{file.name} is not on this machine and could not be downloaded from {' or '.join(failures)}. "
        f"Download {file.name} ({file.size_text}, {file.algorithm} {file.digest}) where there is a network, "
        f"put it at {target / file.name} and start again."
    )


class _DownloadError(Exception):
    """One address did not deliver the file."""


def _problem(file: OfficialFile, path: Path) -> str:
    """How a local file differs from the official one; empty if it does not."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size:,} bytes, expected {file.size:,}"
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, file.algorithm).hexdigest()
    return "" if digest == file.digest else f"its {file.algorithm} is {digest}, expected {file.digest}"


def _download(file: OfficialFile, url: str, target: Path) -> Path:
    import requests
    from tqdm import tqdm

    try:
        target.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=f"{file.name}.", suffix=".part", dir=target)
        try:
            with (
                os.fdopen(descriptor, "wb") as output,
                requests.get(url, stream=True, timeout=_TIMEOUT_SECONDS) as reply,
            ):
                reply.raise_for_status()
                logging.info("Downloading %s (%s) from %s", file.name, file.size_text, url)
                # disable=None: no bar unless the screen is a terminal
                with tqdm(total=file.size, unit="B", unit_scale=True, desc=file.name, disable=None) as bar:
                    for piece in reply.iter_content(_PIECE_BYTES):
                        output.write(piece)
                        bar.update(len(piece))
            if problem := _problem(file, Path(partial)):
                raise _DownloadError(f"not the official file: {problem}")
            os.replace(partial, target / file.name)
            return target / file.name
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
    except requests.RequestException as error:
        raise _DownloadError(_reason(error)) from error
    except OSError as error:
        raise DataError(
            f"Cannot write {target / file.name}: {error.strerror}. Free some space ({file.size_text} are "
            "needed) or set --config.data.data_dir to a folder that can be written."
        ) from error


def _reason(error: Exception) -> str:
    """A failed request in a few words; the library's own text nests several reprs."""
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__
