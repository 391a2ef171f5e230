"""Finding or fetching official archives, always checked against their published digest.

TFDS' own download manager is not used: it knows only sha256 (SBD publishes md5), tries one address, and
waits long where there is no network.

A download grows in ``NAME.DIGEST.part`` beside its target, which is what a later start, or the next address, goes on
from; it gets its name only when size and digest are right. One process writes at a time. Requests carry no
credentials: the proxies of the environment are used, ``~/.netrc`` is not.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from absl import logging

from flax_mnv2.errors import DataError

_TIMEOUT_SECONDS = (5, 60)  # to connect, and between two pieces of data
_PIECE_BYTES = 1 << 20
_SLOW_SECONDS, _SLOW_BYTES = 60, 1 << 16  # a server that gives less in that time has as good as stopped
_FUTILE_ATTEMPTS = 4  # in a row, at one address, that brought nothing
_MAX_ATTEMPTS = 50  # at one address
_BACKOFF_SECONDS = 1.0  # doubled from one futile attempt to the next
_STALLED_SECONDS = 600  # another process's download that does not grow for so long has stopped
_POLL_SECONDS = 0.5
_MAX_BYTES = 1 << 33  # of a file whose size is not known
_MAX_REDIRECTS = 10
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP: later it may work
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


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

    Addresses are tried in order, each going on from what the one before has brought.

    Args:
      file: what to get.
      places: paths where the user may have put the file.
      target: folder for a download; made if absent.

    Raises:
      DataError: a file in ``places`` is not the official one, there is none and no address works, or ``target`` cannot
        be written.
    """
    for path in places:
        if path.is_file():
            return _checked(file, path)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _part_of(file, target) as part:
            if (target / file.name).is_file():  # another process was faster
                return _checked(file, target / file.name)
            return _fetch(file, part, target / file.name)
    except OSError as error:
        raise DataError(
            f"Cannot write {target / file.name}: {error.strerror}. Free some space ({file.size_text} are "
            "needed) or set --config.data.data_dir to a folder that can be written."
        ) from error


class _AddressError(Exception):
    """One address did not deliver the file, and will not."""


class _AttemptError(Exception):
    """The connection failed or the server was busy; another attempt may go on."""


@dataclass
class _Part:
    """A download that has begun: an open file and its path."""

    path: Path
    file: IO[bytes]

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def clear(self) -> None:
        self.file.truncate(0)


def _checked(file: OfficialFile, path: Path) -> Path:
    logging.info("Checking %s (%s)", path, file.size_text)
    if problem := _problem(file, path):
        raise DataError(
            f"{path} is not the official {file.name}: {problem}. It may be incomplete: delete it, or "
            f"replace it by the file from {file.urls[0]}."
        )
    return path


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


@contextlib.contextmanager
def _part_of(file: OfficialFile, target: Path) -> Iterator[_Part]:
    """The partial download, open and held against other processes; an empty one is not left behind."""
    path = target / f"{file.name}.{file.digest[:12]}.part"
    waiting_since, seen = None, -1
    while True:
        stream = open(path, "ab")  # noqa: SIM115 (closed below)
        part = _Part(path, stream)
        with stream:
            if not _hold(stream):
                if waiting_since is None:
                    logging.info("Another process downloads %s; waiting for it.", path)
                if part.size != seen:
                    waiting_since, seen = time.monotonic(), part.size
                if time.monotonic() - waiting_since > _STALLED_SECONDS:
                    raise DataError(
                        f"Another process holds {path}, which has not grown for {_STALLED_SECONDS:.0f} s. End that "
                        "process, and start again."
                    )
            elif _is_at(stream, path):
                try:
                    yield part
                finally:
                    if not part.size:
                        path.unlink(missing_ok=True)
                return
            else:  # it was finished, or removed, between being opened and being held
                continue
        time.sleep(_POLL_SECONDS)


def _hold(stream: IO[bytes]) -> bool:
    """Lock a file until it is closed; False where another process has it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        logging.warning("No lock on %s (%s): download in one process only.", stream.name, error)
    return True


def _is_at(stream: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _fetch(file: OfficialFile, part: _Part, final: Path) -> Path:
    failures = []
    try:
        for url in file.urls:
            try:
                _deliver(file, url, part)
                os.replace(part.path, final)
                return final
            except _AddressError as error:
                logging.warning("%s: %s", url, error)
                failures.append(f"{url} ({error})")
    except KeyboardInterrupt:
        logging.warning("Interrupted. %s", _kept(part))
        raise
    raise DataError(
        f"{file.name} is not on this machine and could not be downloaded from {' or '.join(failures)}. {_kept(part)}"
        f"Download {file.name} ({file.size_text}, {file.algorithm} {file.digest}) where there is a network, "
        f"put it at {final} and start again."
    )


def _kept(part: _Part) -> str:
    return (
        f"{part.size:,} bytes of it are kept in {part.path}: starting again goes on from there. " if part.size else ""
    )


def _deliver(file: OfficialFile, url: str, part: _Part) -> None:
    """Complete the partial file from one address, in as many attempts as bring it forward."""
    if file.size is not None and part.size > file.size:
        part.clear()
    futile, answered, others = 0, False, part.size > 0  # others: some of it may come from another address
    for _ in range(_MAX_ATTEMPTS):
        before = part.size
        try:
            if before != file.size:
                _attempt(file, url, part)
            if not (problem := _problem(file, part.path)):
                return
            part.clear()
            if not others:
                raise _AddressError(f"not the official file: {problem}")
            others, reason = False, "not the official file"
            logging.warning("%s, continued from %s, is another file: %s. Starting over.", part.path, url, problem)
        except _AttemptError as error:
            reason = str(error)
            answered |= error.__cause__ is None or part.size > before
            if not answered:  # nobody there: the next address may do better
                raise _AddressError(reason) from error
            futile = 0 if part.size > before else futile + 1
            if futile == _FUTILE_ATTEMPTS:
                break
            wait = _BACKOFF_SECONDS * 2**futile
            logging.warning("%s: %s after %s bytes; going on in %.0f s", url, reason, f"{part.size:,}", wait)
            time.sleep(wait)
    raise _AddressError(f"{reason}, again and again")


def _attempt(file: OfficialFile, url: str, part: _Part) -> None:
    """One request for what is missing, written to its end."""
    import requests
    import urllib3

    try:
        with _session() as session, _ask(session, url, part.size) as reply:
            total = _begin(file, reply, part)
            logging.info("Downloading %s (%s) from %s", file.name, file.size_text, url)
            _write(file, reply, part, total)
    except (ValueError, requests.exceptions.SSLError) as error:
        raise _AddressError(type(error).__name__) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _AttemptError(type(error).__name__) from error


def _session() -> Any:
    """A session that uses the environment's proxies and no password of the user's, and leaves redirects to us."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: Any) -> None:
            """None: the library would read into memory all that comes with a redirect."""

    session = Session()
    session.auth = lambda request: request  # else the library takes one from ~/.netrc
    session.headers["Accept-Encoding"] = "identity"  # the digest is that of the bytes as they are
    return session


def _ask(session: Any, url: str, start: int) -> Any:
    """The reply to a request for everything from ``start``, after redirects."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    for _ in range(_MAX_REDIRECTS):
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise _AddressError(f"it leads to {url[:80]!a}, which is neither http nor https")
        reply = session.get(url, stream=True, timeout=_TIMEOUT_SECONDS, headers=headers)
        if not reply.is_redirect:
            return reply
        reply.close()
        url = urllib.parse.urljoin(url, reply.headers["Location"])
    raise _AddressError(f"it leads on and on, more than {_MAX_REDIRECTS} times")


def _begin(file: OfficialFile, reply: Any, part: _Part) -> int | None:
    """Make the partial file end where the reply begins; the size of the whole as far as the server tells."""
    if reply.status_code in _PASSING:
        raise _AttemptError(f"HTTP {reply.status_code}")
    start, total = 0, None
    if reply.status_code == 206:
        match = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        if not match or int(match[1]) != part.size:  # another part than asked for
            part.clear()
            raise _AttemptError("a wrong Content-Range")
        start, total = part.size, None if match[2] == "*" else int(match[2])
    elif reply.status_code == 200:
        length = reply.headers.get("Content-Length", "")
        total = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    elif reply.status_code == 416 and part.size:  # what is there is no beginning of what the server has
        part.clear()
        raise _AttemptError("HTTP 416")
    else:
        raise _AddressError(f"HTTP {reply.status_code}")
    if total is not None and file.size is not None and total != file.size:
        raise _AddressError(f"not the official file: {_wrong_size(total, file.size)}")
    if not start:
        part.clear()
    return total


def _write(file: OfficialFile, reply: Any, part: _Part, total: int | None) -> None:
    from tqdm import tqdm

    expected = file.size or total
    window_end, window_bytes = time.monotonic() + _SLOW_SECONDS, 0
    # disable=None: no bar unless the screen is a terminal
    with tqdm(total=expected, initial=part.size, unit="B", unit_scale=True, desc=file.name, disable=None) as bar:
        written = part.size
        while piece := reply.raw.read1(_PIECE_BYTES, decode_content=False):
            if written + len(piece) > (expected or _MAX_BYTES):
                part.clear()
                raise _AddressError(f"it sends more than the {expected or _MAX_BYTES:,} bytes expected")
            part.file.write(piece)
            part.file.flush()
            written += len(piece)
            bar.update(len(piece))
            window_bytes += len(piece)
            if time.monotonic() > window_end:
                if window_bytes < _SLOW_BYTES:
                    raise _AttemptError(f"fewer than {_SLOW_BYTES:,} bytes in {_SLOW_SECONDS} s")
                window_end, window_bytes = time.monotonic() + _SLOW_SECONDS, 0
    if expected is not None and written < expected:
        raise _AttemptError("the connection ended early")
