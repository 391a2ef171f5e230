"""Read-only access to the files of a folder, tar, compressed tar or zip, by name.

Nothing is ever written to a path taken from an archive. Members that are not plain files (links, devices) and names
that point outside the archive are treated as absent; what an archive claims to hold is checked against
:mod:`flax_mnv2.data.archives.archive_limits` when it is opened. In a folder, links are followed, as
people link their data sets together; pipes, devices and sockets are absent, so that nothing waits for them.
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
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from flax_mnv2.data.archives.archive_limits import (
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    MAX_ZIP_DIRECTORY_BYTES,
    Tally,
    check_name,
    check_ratio,
    check_size,
)
from flax_mnv2.data.archives.tar_members import FileBlocks, StreamBlocks, members
from flax_mnv2.errors import DataError, UserError

Keep = Callable[[str], bool]

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_ENTRY = b"PK\x01\x02"  # begins every line of a zip's directory
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python decompresses the others without a bound
_ZIP_LOCAL_BYTES = 30  # before each member, beside its name
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_PIECE_BYTES = 1 << 20
# What Python's readers raise on damaged archives; ValueError, ArithmeticError and LookupError where a number is wild.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
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

    def read(self, name: str, *, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """The contents of one file; DataError if it cannot be read or has more than ``limit`` bytes."""

    def close(self) -> None:
        """Give back what is open."""


def open_tree(path: str | os.PathLike[str], *, keep: Keep | None = None) -> FileTree:
    """Open a folder or an archive; the kind of archive is told from its first bytes, not from its name.

    Args:
      path: folder, ``.tar``, compressed tar (gzip, bzip2, xz) or ``.zip``.
      keep: tells which names are of interest; others are treated as absent. It saves room and time
        with compressed archives, whose kept members are copied into an anonymous temporary file.

    Raises:
      DataError: there is nothing at ``path``, or the archive is damaged, or it holds more than any data set.
    """
    path = Path(path).expanduser()
    keep = keep or (lambda _: True)
    if path.is_dir():
        return _Folder(path, keep)
    try:
        with _open_plain(path) as file:
            magic = file.read(6)
    except OSError as error:
        raise DataError(
            f"Cannot open the data archive {path}: {error.strerror}. "
            "Give the path of a folder, a .tar, .tar.gz, .tgz or .zip file."
        ) from error
    except ValueError as error:  # a NUL in the path
        raise DataError(f"Cannot open the data archive {str(path)!a}: {error}.") from error
    try:
        if magic.startswith(_ZIP_MAGIC):
            return _Zip(path, keep)
        decompress = next((opener for start, opener in _DECOMPRESSORS.items() if magic.startswith(start)), None)
        return _Tar(path, keep, decompress)
    except UserError:
        raise
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
        for member in members(FileBlocks(io.BytesIO(data)), f"{tree.path}: {name}"):
            if not member.is_folder and _is_safe(member.name):
                check_name(f"{tree.path}: {name}", member.name)
                yield _normal(member.name), data[member.offset : member.offset + member.size]
    except UserError:
        raise
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


def _open_plain(path: Path) -> IO[bytes]:
    """Open a regular file; OSError for all else, and it never waits, as opening a pipe would."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe, a device or a folder, expected a regular file")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _is_safe(name: str) -> bool:
    """Whether a name stays inside the archive and is not clutter of macOS."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not (
        name.startswith("/")
        or ".." in parts
        or "__MACOSX" in parts
        or parts[-1].startswith("._")
        or parts[-1] == "Icon\r"
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
        self._names = []
        for name in self._walk():
            if keep(name):
                check_name(path, name)
                self._names.append(name)
        self._names.sort()

    def _walk(self) -> Iterator[str]:
        """Plain files, and links to such; folders that may not be read are passed over."""
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
            for file in files:
                name = (prefix / file).as_posix()
                if _is_safe(name) and stat.S_ISREG(_mode(os.path.join(folder, file))):
                    yield name

    def names(self) -> list[str]:
        return self._names

    def folders(self) -> list[str]:
        return sorted(self._folders)

    def repeated(self) -> list[str]:
        return []

    def read(self, name: str, *, limit: int = MAX_MEMBER_BYTES) -> bytes:
        path = self.path / name
        try:
            with _open_plain(path) as file:
                check_size(self.path, name, os.fstat(file.fileno()).st_size, limit)
                data = file.read(limit + 1)
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror}.") from error
        check_size(self.path, name, len(data), limit)  # again: it may grow, and the system's own have no size
        return data

    def close(self) -> None:
        pass


def _mode(path: str) -> int:
    """What a link leads to, or 0 where that is not there."""
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


class _Tar:
    """An index of (offset, size) into one open file: the tar itself, or a spool of its kept members."""

    def __init__(self, path: Path, keep: Keep, decompress: Callable[[IO[bytes]], IO[bytes]] | None):
        self.path = path
        self._spans: dict[str, tuple[int, int]] = {}
        self._folders: set[str] = set()
        self._repeated: set[str] = set()
        self._keep = keep
        self._tally = Tally(path)
        self._file: IO[bytes] = tempfile.TemporaryFile() if decompress else _open_plain(path)  # noqa: SIM115
        try:
            if decompress:
                self._spool(decompress)
            else:
                for name, offset, size in self._kept(FileBlocks(self._file)):
                    self._add(name, offset, size)
        except BaseException:
            self._file.close()
            raise

    def _spool(self, decompress: Callable[[IO[bytes]], IO[bytes]]) -> None:
        with _open_plain(self.path) as packed, decompress(packed) as stream:
            blocks = StreamBlocks(_Bounded(stream, self.path, os.fstat(packed.fileno()).st_size))
            for name, _, size in self._kept(blocks):
                start, end = self._file.tell(), blocks.position + size
                while piece := blocks.read(min(_PIECE_BYTES, end - blocks.position)):
                    self._file.write(piece)
                if blocks.position != end:
                    raise EOFError(f"{name[:80]!a} is cut short")
                self._add(name, start, size)
            while blocks.read(_PIECE_BYTES):  # to the end, where the checksum is
                pass
        self._file.flush()

    def _kept(self, blocks: FileBlocks | StreamBlocks) -> Iterator[tuple[str, int, int]]:
        """Name, offset and size of the plain files of interest; the folders between them are noted."""
        for member in members(blocks, self.path):
            if not _is_safe(member.name):
                continue
            name = _normal(member.name)
            if member.is_folder:
                check_name(self.path, name)
                self._folders.add(name)
            elif self._keep(name):
                self._tally.file(name, member.size)
                yield name, member.offset, member.size

    def _add(self, name: str, offset: int, size: int) -> None:
        if name in self._spans:
            self._repeated.add(name)
        self._spans[name] = (offset, size)

    def names(self) -> list[str]:
        return sorted(self._spans)

    def folders(self) -> list[str]:
        return _with_parents(self._spans, self._folders)

    def repeated(self) -> list[str]:
        return sorted(self._repeated)

    def read(self, name: str, *, limit: int = MAX_MEMBER_BYTES) -> bytes:
        offset, size = self._spans[name]
        check_size(self.path, name, size, limit)
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise _damaged(self.path, EOFError(f"{len(data)} of {size} bytes"), name)
        return data

    def close(self) -> None:
        self._file.close()


class _Bounded:
    """A decompressed stream that refuses to go on where it turns out to be a bomb."""

    def __init__(self, stream: IO[bytes], path: Path, packed: int):
        self._stream, self._path, self._packed, self._unpacked = stream, path, packed, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._unpacked += len(data)
        check_ratio(self._path, self._unpacked, self._packed)
        return data


class _Zip:
    def __init__(self, path: Path, keep: Keep):
        self.path = path
        self._lock = threading.Lock()
        self._file = _open_plain(path)
        try:
            guard = _ZipFile(self._file, path)
            self._zip = zipfile.ZipFile(guard)
            guard.is_listed = True
            self._index(keep)
        except BaseException:
            self._file.close()
            raise

    def _index(self, keep: Keep) -> None:
        infos = self._zip.infolist()
        self._check_apart(infos)
        tally, kept, folders = Tally(self.path), [], set()
        for info in infos:
            tally.header(info.filename)
            if not _is_safe(info.filename):
                continue
            name = _normal(info.filename)
            if info.is_dir():
                check_name(self.path, name)
                folders.add(name)
            elif stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG) and keep(name):
                tally.file(name, info.file_size)
                if info.compress_type not in _ZIP_METHODS:
                    raise DataError(
                        f"{self.path}: {name} is compressed by method {info.compress_type}, expected deflate or none. "
                        "Pack it again."
                    )
                kept.append((name, info))
        check_ratio(self.path, sum(info.file_size for _, info in kept), os.fstat(self._file.fileno()).st_size)
        self._infos = dict(kept)
        self._folders = folders
        counts = collections.Counter(name for name, _ in kept)
        self._repeated = sorted(name for name, count in counts.items() if count > 1)

    def _check_apart(self, infos: list[zipfile.ZipInfo]) -> None:
        """Refuse members that share bytes, by which a small zip can claim to hold any amount."""
        spans = sorted((info.header_offset, info.compress_size, info.orig_filename) for info in infos)
        end = 0
        for offset, size, name in spans:
            if offset < end:
                raise zipfile.BadZipFile(f"{name[:80]!a} overlaps another member")
            end = offset + _ZIP_LOCAL_BYTES + size
        if end > self._zip.start_dir:
            raise zipfile.BadZipFile("a member reaches into the directory")

    def names(self) -> list[str]:
        return sorted(self._infos)

    def folders(self) -> list[str]:
        return _with_parents(self._infos, self._folders)

    def repeated(self) -> list[str]:
        return self._repeated

    def read(self, name: str, *, limit: int = MAX_MEMBER_BYTES) -> bytes:
        info = self._infos[name]
        check_size(self.path, name, info.file_size, limit)
        try:
            with self._lock, self._zip.open(info) as member:
                data = member.read(info.file_size)
            if len(data) != info.file_size:
                raise EOFError(f"{len(data)} of {info.file_size} bytes")
            return data
        except _DAMAGE as error:
            raise _damaged(self.path, error, name) from error

    def close(self) -> None:
        self._zip.close()
        self._file.close()


class _ZipFile:
    """The file under a ``ZipFile``, which refuses a directory that would not fit into memory.

    ``ZipFile`` reads the directory at once, and makes an object of each of its lines.
    """

    def __init__(self, file: IO[bytes], path: Path):
        self._file, self._path = file, path
        self.is_listed = False
        self.seek, self.tell = file.seek, file.tell

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self.is_listed and size > MAX_ZIP_DIRECTORY_BYTES:
            raise DataError(
                f"{self._path}: the directory of the zip has {size:,} bytes, expected at most "
                f"{MAX_ZIP_DIRECTORY_BYTES:,}. Check where it comes from; pack a larger set as a tar."
            )
        data = self._file.read(size)
        if not self.is_listed and data.count(_ZIP_ENTRY) > MAX_MEMBERS:
            raise DataError(f"{self._path} lists more than {MAX_MEMBERS:,} members. Check where it comes from.")
        return data
