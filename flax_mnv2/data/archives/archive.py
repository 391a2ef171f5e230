"""Opens a folder or archive of any kind, and tells one from another."""

import bz2
import gzip
import hashlib
import lzma
import os
import re
import stat
import threading
import zipfile
from pathlib import Path

from flax_mnv2.data.archives.tar import TarTree
from flax_mnv2.data.archives.tree import FileTree, Keep, check_size, damage_named, usable_name
from flax_mnv2.errors import DataError

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # what a zip begins with, and an empty one
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


def open_tree(path: str | os.PathLike[str], *, keep: Keep = lambda _: True) -> FileTree:
    """Opens a folder, a ``.tar``, compressed tar (gzip, bzip2, xz) or ``.zip``, told apart by first bytes, not by name.

    ``keep`` tells which names are of interest; others are treated as absent. It saves room and time with compressed
    archives, whose kept members are copied into an anonymous temporary file. A DataError where there is nothing, or the
    archive is damaged.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return FolderTree(path, keep)
    if path.exists() and not path.is_file():  # whose opening or reading might never end
        raise DataError(f"{path} is a pipe or a device, expected a regular file or a folder.")
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise DataError(
            f"Cannot open the data archive {path}: {error.strerror}. "
            "Give the path of a folder, a .tar, .tar.gz, .tgz or .zip file."
        ) from error
    with damage_named(path):
        if magic.startswith(_ZIP):
            return ZipTree(path, keep)
        decompress = next((opener for start, opener in _DECOMPRESSORS.items() if magic.startswith(start)), None)
        return TarTree(path, keep, decompress)


class FolderTree(FileTree):
    """The files below a folder; what may not be listed is passed over, and pipes and devices are absent.

    Links are followed, as people link their data sets together.
    """

    def _list(self) -> None:
        visited = set()
        for folder, subfolders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # a link that leads back up
                subfolders.clear()
                continue
            visited.add(real)
            prefix = Path(folder).relative_to(self.path)
            if prefix.parts:
                self._folders.add(prefix.as_posix())
            for file in files:
                name = usable_name(self.path, (prefix / file).as_posix())
                if name and self._keep(name) and os.path.isfile(os.path.join(folder, file)):
                    self._add_file(name, self.path / name)

    def read(self, name: str) -> bytes:
        """See ``FileTree``."""
        path = self._files[name]
        try:
            check_size(self.path, name, path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror}.") from error


class ZipTree(FileTree):
    """The files of a zip."""

    def _list(self) -> None:
        self._lock = threading.Lock()
        self._zip = self._open.enter_context(zipfile.ZipFile(self.path))
        for info in self._zip.infolist():
            name = usable_name(self.path, info.filename)
            if name and info.is_dir():
                self._folders.add(name)
            elif name and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG) and self._keep(name):
                check_size(self.path, name, info.file_size)
                self._add_file(name, info)

    def read(self, name: str) -> bytes:
        """See ``FileTree``."""
        info = self._files[name]
        with damage_named(self.path, name):
            try:
                with self._lock:
                    data = self._zip.read(info)
            except RuntimeError as error:  # a password, or a method that Python does not know
                raise DataError(
                    f"{self.path}: {name} cannot be read ({error}). Pack it again without a password, by the method "
                    "deflate."
                ) from error
            if len(data) != info.file_size:
                raise EOFError(f"{len(data)} of {info.file_size} bytes")
            return data


def identity(path: str | os.PathLike[str]) -> str:
    """Returns a digest that changes when the archive, or any file of the folder, is replaced or touched.

    It covers the resolved path, sizes and modification times, not the contents.
    """
    path = Path(path).expanduser().resolve()
    digest = hashlib.sha256(os.fsencode(path))
    names = FolderTree(path, lambda _: True).names() if path.is_dir() else [""]
    for name in names:
        try:
            status = (path / name).stat()
        except OSError as error:
            raise DataError(f"Cannot open the data archive {path / name}: {error.strerror}.") from error
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def fingerprint(*parts: object) -> str:
    """Returns ten digits that follow from the parts, such as ``identity``: they tell a data set's configs apart."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:10]


def archive_stem(path: Path) -> str:
    """Returns the archive's name without its endings, of letters, digits and underscores: part of a data set's name."""
    stem = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(\.tar)?\.\w+$", "", path.name.lower())).strip("_")[:40]
    return stem or "archive"
