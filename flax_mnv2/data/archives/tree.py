"""What a folder, a tar and a zip have in common: files addressed by relative POSIX names, only ever read."""

import abc
import codecs
import contextlib
import errno
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from flax_mnv2.errors import DataError, UserError

MAX_MEMBER_BYTES = 1 << 30  # of one file, which is read into memory as a whole
# What computers leave beside files: macOS, Synology, Windows, Linux.
_CLUTTER = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

Keep = Callable[[str], bool]


class FileTree(abc.ABC):
    """The plain files of a folder or archive, by name; a context manager that closes what is open.

    Names that lead outside are absent, and so is what is no plain file, or not of interest by ``keep``. A link is the
    file that it leads to. Nothing is ever written to a path that an archive gives.

    Names are in Unicode's composed form (NFC): macOS writes the accents of file names apart from their letters, others
    do not, and the two look alike.
    """

    def __init__(self, path: Path, keep: Keep):
        self.path = path
        self._keep = keep
        self._open = contextlib.ExitStack()
        self._files: dict[str, Any] = {}  # by name: what the subclass needs to read it
        self._folders: set[str] = set()
        self._repeated: set[str] = set()
        try:
            self._list()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "FileTree":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def names(self) -> list[str]:
        """Returns all file names, sorted."""
        return sorted(self._files)

    def folders(self) -> list[str]:
        """Returns all folder names, sorted; empty ones too, as far as the archive lists them."""
        found = set(self._folders)
        for name in (*self._files, *self._folders):
            found.update(str(parent) for parent in PurePosixPath(name).parents)
        return sorted(found - {"."})

    def repeated(self) -> list[str]:
        """Returns the names that stand in the archive more than once, sorted; the last one counts."""
        return sorted(self._repeated)

    def read_lines(self, name: str) -> list[str]:
        """Returns the lines of a list, without spaces around them; empty ones are left out."""
        try:
            lines = decode_text(self.read(name)).splitlines()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: {name} is not UTF-8 text ({error.reason}). Write one id per line, or get it again."
            ) from error
        return [line.strip() for line in lines if line.strip()]

    def close(self) -> None:
        """Gives back what is open."""
        self._open.close()

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Returns the contents of one file; a DataError where it is damaged or too large."""

    @abc.abstractmethod
    def _list(self) -> None:
        """Opens what is to be open, and notes all files and folders."""

    def _add_file(self, name: str, where: Any) -> None:
        if name in self._files:
            self._repeated.add(name)
        self._files[name] = where


def decode_text(data: bytes) -> str:
    """Returns a text file's text in composed form: UTF-8, or UTF-16 with a mark, as Windows's PowerShell writes.

    A UnicodeDecodeError where it is neither.
    """
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return unicodedata.normalize("NFC", data.decode(encoding))


def usable_name(path: Path, name: str) -> str | None:
    """Returns a member's name in normal form, or None if it leads outside its archive or is clutter of a system.

    A DataError where it has control characters, which would garble messages and lists.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        return None
    if not _CLUTTER.isdisjoint(parts) or parts[-1].startswith("._") or parts[-1] == "Icon\r":
        return None
    if _CONTROL.search(name):
        raise DataError(
            f"{path}: the member {name[:80]!a} has control characters or line ends in its name. Rename it and pack "
            "again."
        )
    return unicodedata.normalize("NFC", str(PurePosixPath(name)))


def check_size(path: Path, name: str, size: int) -> None:
    """Raises a DataError where a file is too large to be read into memory."""
    if size > MAX_MEMBER_BYTES:
        raise DataError(
            f"{path}: {name} has {size:,} bytes, expected at most {MAX_MEMBER_BYTES:,} for such a file. "
            "Check where it comes from, and remove or replace it."
        )


@contextlib.contextmanager
def damage_named(path: Path, member: str = "") -> Iterator[None]:
    """Turns whatever a reader of archives stumbles over into a DataError that names the archive."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tarfile, zipfile and the decompressors raise many types
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise DataError(
                f"No room in {tempfile.gettempdir()} to decompress {path}. Set TMPDIR to a larger folder, or "
                "give the archive as a plain .tar."
            ) from error
        raise DataError(
            f"{path}{f': {member}' if member else ''}: the archive is damaged or incomplete "
            f"({type(error).__name__}: {error}). Copy or download it again."
        ) from error
