"""Read-only access to the files of a folder, tar, compressed tar or zip, by name.

Nothing is ever written to a path taken from an archive. Members that are not plain files (links,
devices) and names that point outside the archive are treated as absent.
"""

import bz2
import collections
import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from flax_mnv2.errors import DataError

Keep = Callable[[str], bool]

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
)


class FileTree(Protocol):
    """Files addressed by relative POSIX names."""

    path: Path

    def names(self) -> list[str]:
        """All file names, sorted."""

    def folders(self) -> list[str]:
        """All folder names, sorted, empty ones too as far as the archive lists them."""

    def repeated(self) -> list[str]:
        """Names that stand in the archive more than once, sorted; the last one counts."""

    def read(self, name: str) -> bytes:
        """The contents of one file; DataError if it cannot be read."""

    def close(self) -> None:
        """Give back what is open."""


def open_tree(path: str | os.PathLike[str], *, keep: Keep | None = None) -> FileTree:
    """Open a folder or an archive; the kind of archive is told from its first bytes, not from its name.

    Args:
      path: folder, ``.tar``, compressed tar (gzip, bzip2, xz) or ``.zip``.
      keep: tells which names are of interest; others are treated as absent. It saves room and time
        with compressed archives, whose kept members are copied into an anonymous temporary file.

    Raises:
      DataError: there is nothing at ``path``, or the archive is damaged.
    """
    path = Path(path).expanduser()
    keep = keep or (lambda _: True)
    if path.is_dir():
        return _Folder(path, keep)
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise DataError(
            f"Cannot open the data archive {path}: {error.strerror}. "
            "Give the path of a folder, a .tar, .tar.gz, .tgz or .zip file."
        ) from error
    try:
        if magic.startswith(_ZIP_MAGIC):
            return _Zip(path, keep)
        decompress = next((opener for start, opener in _DECOMPRESSORS.items() if magic.startswith(start)), None)
        return _Tar(path, keep, decompress)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def inner_files(tree: FileTree, name: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the plain files of a tar that lies inside ``tree``, in their order.

    The inner tar is held in memory.

    Raises:
      DataError: it is damaged; the message names both archives.
    """
    data = tree.read(name)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in _plain_members(tar, lambda _: True):
                yield _normal(member.name), data[member.offset_data : member.offset_data + member.size]
            _check_end(data[tar.offset : tar.offset + tarfile.BLOCKSIZE])
    except _DAMAGE as error:
        raise _damaged(tree.path, error, name) from error


def identity(path: str | os.PathLike[str]) -> str:
    """A digest that changes when the archive, or any file of the folder, is replaced or touched.

    It covers the resolved path, sizes and modification times, not the contents.
    """
    path = Path(path).expanduser().resolve()
    digest = hashlib.sha256(os.fsencode(path))
    if path.is_dir():
        folder = _Folder(path, lambda _: True)
        files = [(name, path / name) for name in folder.names()]
    else:
        files = [("", path)]
    for name, file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"Cannot open the data archive {file}: {error.strerror}.") from error
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def archive_stem(path: Path) -> str:
    """The archive's name without its endings, of letters, digits and underscores: part of a data set's name."""
    stem = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(\.tar)?\.\w+$", "", path.name.lower())).strip("_")[:40]
    return stem or "archive"


def _damaged(path: Path, error: Exception, member: str = "") -> DataError:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return DataError(
            f"No room in {tempfile.gettempdir()} to decompress {path}. Set TMPDIR to a larger folder, or "
            "give the archive as a plain .tar."
        )
    where = f"{path}: {member}" if member else str(path)
    return DataError(
        f"{where}: the archive is damaged or incomplete ({type(error).__name__}: {error}). Copy or download it again."
    )


def _is_safe(name: str) -> bool:
    """Whether a name stays inside the archive and is not clutter of macOS."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not (
        name.startswith("/") or ".." in parts or "__MACOSX" in parts or parts[-1].startswith("._")
    )


def _normal(name: str) -> str:
    return str(PurePosixPath(name))


def _with_parents(names: Iterable[str], folders: Iterable[str]) -> list[str]:
    """The folders, and all that the files and folders lie in, sorted."""
    found = set(folders)
    for name in (*names, *found):
        found.update(str(parent) for parent in PurePosixPath(name).parents)
    return sorted(found - {"."})


class _Folder:
    def __init__(self, path: Path, keep: Keep):
        self.path = path
        self._folders: list[str] = []
        self._names = sorted(name for name in self._walk() if keep(name))

    def _walk(self) -> Iterator[str]:
        visited = set()
        for folder, subfolders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # a link that leads back up
                subfolders.clear()
                continue
            visited.add(real)
            prefix = Path(folder).relative_to(self.path)
            if prefix.parts:
                self._folders.append(prefix.as_posix())
            yield from (name for name in ((prefix / file).as_posix() for file in files) if _is_safe(name))

    def names(self) -> list[str]:
        return self._names

    def folders(self) -> list[str]:
        return sorted(self._folders)

    def repeated(self) -> list[str]:
        return []

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read {self.path / name}: {error.strerror}.") from error

    def close(self) -> None:
        pass


class _Tar:
    """An index of (offset, size) into one open file: the tar itself, or a spool of its kept members."""

    def __init__(self, path: Path, keep: Keep, decompress: Callable[[Path], IO[bytes]] | None):
        self.path = path
        self._spans: dict[str, tuple[int, int]] = {}
        self._folders: set[str] = set()
        self._repeated: set[str] = set()
        self._file: IO[bytes] = tempfile.TemporaryFile() if decompress else open(path, "rb")  # noqa: SIM115
        try:
            if decompress:
                self._spool(keep, decompress)
            else:
                self._index(keep)
        except BaseException:
            self._file.close()
            raise

    def _index(self, keep: Keep) -> None:
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            for member in _plain_members(tar, keep, self._folders):
                self._add(member.name, member.offset_data, member.size)
            _check_end(os.pread(self._file.fileno(), tarfile.BLOCKSIZE, tar.offset))

    def _spool(self, keep: Keep, decompress: Callable[[Path], IO[bytes]]) -> None:
        with decompress(self.path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in _plain_members(tar, keep, self._folders):
                start = self._file.tell()
                with tar.extractfile(member) as source:
                    shutil.copyfileobj(source, self._file)
                if self._file.tell() - start != member.size:
                    raise EOFError(f"{member.name} is cut short")
                self._add(member.name, start, member.size)
            while stream.read(1 << 20):  # to the end, where the checksum is
                pass
        self._file.flush()

    def _add(self, name: str, offset: int, size: int) -> None:
        name = _normal(name)
        if name in self._spans:
            self._repeated.add(name)
        self._spans[name] = (offset, size)

    def names(self) -> list[str]:
        return sorted(self._spans)

    def folders(self) -> list[str]:
        return _with_parents(self._spans, self._folders)

    def repeated(self) -> list[str]:
        return sorted(self._repeated)

    def read(self, name: str) -> bytes:
        offset, size = self._spans[name]
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise _damaged(self.path, EOFError(f"{len(data)} of {size} bytes"), name)
        return data

    def close(self) -> None:
        self._file.close()


def _plain_members(tar: tarfile.TarFile, keep: Keep, folders: set[str] | None = None) -> Iterator[tarfile.TarInfo]:
    """The plain files; the folders that are listed between them are added to ``folders``."""
    for member in tar:
        if member.isdir() and folders is not None and _is_safe(member.name):
            folders.add(_normal(member.name))
        if member.isreg() and not member.issparse() and _is_safe(member.name) and keep(_normal(member.name)):
            yield member


def _check_end(block: bytes) -> None:
    """Refuse what follows the last member unless it is zeros or nothing: ``tarfile`` stops there in silence."""
    if any(block):
        raise tarfile.ReadError("a member's header is cut short or overwritten")


class _Zip:
    def __init__(self, path: Path, keep: Keep):
        self.path = path
        self._zip = zipfile.ZipFile(path)
        self._lock = threading.Lock()
        listed = [info for info in self._zip.infolist() if _is_safe(info.filename)]
        kept = [info for info in listed if self._is_plain(info) and keep(_normal(info.filename))]
        self._infos = {_normal(info.filename): info for info in kept}
        self._folders = [_normal(info.filename) for info in listed if info.is_dir()]
        counts = collections.Counter(_normal(info.filename) for info in kept)
        self._repeated = sorted(name for name, count in counts.items() if count > 1)

    @staticmethod
    def _is_plain(info: zipfile.ZipInfo) -> bool:
        kind = stat.S_IFMT(info.external_attr >> 16)
        return not info.is_dir() and kind in (0, stat.S_IFREG)

    def names(self) -> list[str]:
        return sorted(self._infos)

    def folders(self) -> list[str]:
        return _with_parents(self._infos, self._folders)

    def repeated(self) -> list[str]:
        return self._repeated

    def read(self, name: str) -> bytes:
        try:
            with self._lock:
                return self._zip.read(self._infos[name])
        except _DAMAGE as error:
            raise _damaged(self.path, error, name) from error

    def close(self) -> None:
        self._zip.close()
