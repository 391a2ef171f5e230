"""Finding or fetching official archives, always checked against their published digest.

A download grows in ``NAME.DIGEST.part`` beside its target, which is what a later start, or the next address, goes on
from; it gets its name only when size and digest are right. It runs while the folder of data sets is locked
(:mod:`flax_mnv2.data.datasets.prepared`), so one process writes at a time.

Other downloaders do not do: TFDS's knows only sha256 (SBD publishes md5), tries one address and does not resume; pooch
1.9 does not resume; ``huggingface_hub``'s ``http_get`` resumes, but is not public, takes a wrong range for the right
one, gives up at an HTTP 503, and unpacks a ``.tgz`` that a server calls gzip-encoded.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from flax_mnv2.errors import DataError

_TIMEOUT_SECONDS = (5, 60)  # to connect, and between two pieces of data
_PIECE_BYTES = 1 << 20
_RETRIES = 3  # of one request
_BACKOFF_SECONDS = 1.0  # doubled from one retry to the next
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP: later it may work


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """A published archive: its file name, where it is offered, and how to recognise it."""

    name: str
    urls: tuple[str, ...]
    size: int | None  # in bytes; None where no source states it
    size_text: str  # for messages
    algorithm: str
    digest: str


def obtain(file: OfficialFile, *, places: Iterable[Path], target: Path) -> Path:
    """Returns the path of a verified copy: the first that exists in ``places``, else downloaded into ``target``.

    Addresses are tried in order, each going on from what the one before has brought. A DataError where a file in
    ``places`` is not the official one, no address works, or the folder ``target`` cannot be written.
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
    try:
        target.mkdir(parents=True, exist_ok=True)
        return _download(file, target / file.name)
    except OSError as error:
        raise DataError(
            f"Cannot write {target / file.name}: {error.strerror}. Free some space ({file.size_text} are "
            "needed) or set --config.data.data_dir to a folder that can be written."
        ) from error


class _AddressError(Exception):
    """One address did not deliver the file."""


def _problem(file: OfficialFile, path: Path) -> str:
    """How a local file differs from the official one; empty if it does not."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return _wrong_size(size, file.size)
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, file.algorithm).hexdigest()
    return "" if digest == file.digest else f"its {file.algorithm} is {digest}, expected {file.digest}"


def _wrong_size(found: int, expected: int) -> str:
    return f"it has {found:,} bytes, expected {expected:,}"


def _download(file: OfficialFile, final: Path) -> Path:
    part = final.with_name(f"{file.name}.{file.digest[:12]}.part")
    failures = []
    try:
        for url in file.urls:
            try:
                _complete(file, url, part)
                os.replace(part, final)
                return final
            except _AddressError as error:
                logging.warning("%s: %s", url, error)
                failures.append(f"{url} ({error})")
    except KeyboardInterrupt:
        logging.warning("Interrupted. %s", _kept(part))
        raise
    finally:
        if not _size(part):
            part.unlink(missing_ok=True)
    raise DataError(
        f"{file.name} is not on this machine and could not be downloaded from {' or '.join(failures)}. {_kept(part)}"
        f"Download {file.name} ({file.size_text}, {file.algorithm} {file.digest}) where there is a network, "
        f"put it at {final} and start again."
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _kept(part: Path) -> str:
    return f"{_size(part):,} bytes of it are kept in {part}: starting again goes on from there. " if _size(part) else ""


def _complete(file: OfficialFile, url: str, part: Path) -> None:
    """Completes the partial file from one address, by as many requests as bring it forward."""
    import requests
    import urllib3

    others = _size(part) > 0  # some of it may come from another address
    while True:
        before = _size(part)
        try:
            if not before or file.size is None or before < file.size:
                _fetch_rest(file, url, part)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _size(part) <= before:
                raise _AddressError(type(error).__name__) from error
            logging.warning("%s: %s after %s bytes; going on", url, type(error).__name__, f"{_size(part):,}")
            time.sleep(_BACKOFF_SECONDS)
            continue
        if not (problem := _problem(file, part)):
            return
        part.unlink()
        if not others:
            raise _AddressError(f"not the official file: {problem}")
        others = False
        logging.warning("%s, continued from %s, is another file: %s. Starting over.", part, url, problem)


def _fetch_rest(file: OfficialFile, url: str, part: Path) -> None:
    """One request for what is missing, written as far as it comes."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with (
        _session(patient=start > 0) as session,
        session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as reply,
    ):
        status, place = reply.status_code, reply.headers.get("Content-Range", "")
        if start and (status in (200, 416) or (status == 206 and not place.startswith(f"bytes {start}-"))):
            part.unlink()  # the server does not go on, or what is there is no beginning of what it has
            if status != 200:
                return _fetch_rest(file, url, part)
            start = 0
        elif status != (206 if start else 200):
            raise _AddressError(f"HTTP {status}")
        logging.info("Downloading %s (%s) from %s", file.name, file.size_text, url)
        _write(file, reply, part, start)


def _session(*, patient: bool) -> Any:
    """Returns a session that sends no password of the user's, which requests would take from ``~/.netrc``.

    It asks a busy server again, and one that does not answer only if ``patient``: another address may do better.
    """
    import requests
    import urllib3

    unanswered = _RETRIES if patient else False
    retry = urllib3.Retry(
        _RETRIES,
        connect=unanswered,
        read=unanswered,
        status_forcelist=_PASSING,
        backoff_factor=_BACKOFF_SECONDS,
        raise_on_status=False,
        respect_retry_after_header=False,  # it may be hours
    )
    session = requests.Session()
    session.auth = lambda request: request
    session.rebuild_auth = lambda request, response: None  # where a redirect is followed
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
    return session


def _write(file: OfficialFile, reply: Any, part: Path, start: int) -> None:
    from tqdm import tqdm

    length = reply.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else file.size
    if file.size is not None and total != file.size:
        raise _AddressError(f"not the official file: {_wrong_size(total, file.size)}")
    # disable=None: no bar unless the screen is a terminal
    with (
        open(part, "ab") as stream,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=file.name, disable=None) as bar,
    ):
        while piece := reply.raw.read1(_PIECE_BYTES, decode_content=False):  # as they are: the digest is of these
            stream.write(piece)
            stream.flush()
            bar.update(len(piece))
