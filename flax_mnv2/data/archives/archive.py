"""Opens a folder or archive of any kind, and tells one from another."""

import bz2
import gzip
import hashlib
import lzma
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from flax_mnv2.data.archives.foreign import refuse_foreign
from flax_mnv2.data.archives.links import follow, target_of
from flax_mnv2.data.archives.tar import TarTree
from flax_mnv2.data.archives.tree import FileTree, Keep, check_size, damage_named, usable_name
from flax_mnv2.errors import DataError

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # what a zip begins with, and an empty one
_UNICODE_PATH = 0x7075  # of a zip's extra fields, by Info-ZIP: the name in UTF-8
_MAGIC_BYTES = 512
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
            magic = file.read(_MAGIC_BYTES)
    except OSError as error:
        raise DataError(
            f"Cannot open the data archive {path}: {error.strerror}. "
            "Give the path of a folder, a .tar, .tar.gz, .tgz or .zip file."
        ) from error
    refuse_foreign(path, magic)
    with damage_named(path):
        if magic.startswith(_ZIP):
            return ZipTree(path, keep)
        decompress = next((opener for start, opener in _DECOMPRESSORS.items() if magic.startswith(start)), None)
        return TarTree(path, keep, decompress)


class FolderTree(FileTree):
    """The files below a folder; what may not be listed is passed over, and pipes and devices are absent.

    Links are followed, as people link their data sets together; one that leads nowhere is a DataError, as whoever
    cleans up elsewhere would take images away without a word. Editors' hidden ones are passed over.
    """

    def _list(self) -> None:
        above: dict[str, frozenset[str]] = {}  # by folder, what it and those it was reached through really are
        for folder, subfolders, files in os.walk(self.path, followlinks=True):
            real, reached = os.path.realpath(folder), above.get(os.path.dirname(folder), frozenset())
            if real in reached:  # a link that leads back up
                subfolders.clear()
                continue
            above[folder] = reached | {real}
            prefix = Path(folder).relative_to(self.path)
            own = usable_name(self.path, prefix.as_posix()) if prefix.parts else None
            if own:
                self._folders.add(own)
            for file in files:
                name = usable_name(self.path, (prefix / file).as_posix())
                if name and self._keep(name):
                    self._add_if_plain(name, self.path / prefix / file)

    def _add_if_plain(self, name: str, path: Path) -> None:
        if path.is_file():
            self._add_file(name, path)
        elif path.is_symlink() and not path.exists() and not path.name.startswith("."):
            raise DataError(
                f"{path} is a link to {os.readlink(path)[:80]!a}, which is not there. Restore the file (of DVC, "
                "git-annex and the like: pull it), or remove the link."
            )

    def states(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yields every file's name and status, in their order."""
        for name in self.names():
            yield name, _status(self._files[name])

    def read(self, name: str) -> bytes:
        """See ``FileTree``."""
        path = self._files[name]
        try:
            check_size(self.path, name, path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror}.") from error


class ZipTree(FileTree):
    """The files of a zip; what Windows programs write for a slash, a backslash, is one."""

    def _list(self) -> None:
        self._lock = threading.Lock()
        self._zip = self._open.enter_context(zipfile.ZipFile(self.path))
        members: dict[str, zipfile.ZipInfo] = {}
        links: dict[str, str] = {}
        for info in self._zip.infolist():
            written = _name_in_zip(self.path, info).replace("\\", "/")
            name, kind = usable_name(self.path, written), stat.S_IFMT(info.external_attr >> 16)
            if name and written.endswith("/"):
                self._folders.add(name)
            elif name and kind == stat.S_IFLNK:
                target = self._read(info, name).decode(errors="surrogateescape")
                links[name] = target_of(self.path, name, target, symbolic=True)
            elif name and kind in (0, stat.S_IFREG):
                members[name] = info
                if self._keep(name):
                    self._add_file(name, info)
        for name, source in follow(self.path, links, members, self._folders).items():
            if self._keep(name):
                self._add_file(name, members[source])

    def _add_file(self, name: str, where: zipfile.ZipInfo) -> None:
        check_size(self.path, name, where.file_size)
        super()._add_file(name, where)

    def read(self, name: str) -> bytes:
        """See ``FileTree``."""
        return self._read(self._files[name], name)

    def _read(self, info: zipfile.ZipInfo, name: str) -> bytes:
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


def _name_in_zip(path: Path, info: zipfile.ZipInfo) -> str:
    """Returns a member's name, which Python takes for code page 437 where no flag says that it is UTF-8.

    It is UTF-8 where the bytes are, as macOS writes it, or where Info-ZIP's field says so. A DataError where it must be
    of another code page, which a zip does not tell: signs where a name has letters.
    """
    if info.flag_bits & zipfile._MASK_UTF_FILENAME or info.filename.isascii():
        return info.filename
    raw, extra = info.orig_filename.encode("cp437"), info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH and struct.unpack_from("<I", extra, 5)[0] == zlib.crc32(raw):
            raw = extra[9 : 4 + size]
        extra = extra[4 + size :]
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        if all(character.isascii() or character.isalnum() for character in info.filename):
            return info.filename
    raise DataError(
        f"{path}: the member {info.filename[:80]!a} is named in a code page that the zip does not tell. Pack it again "
        "with names in UTF-8 (7-Zip: the parameter cu=on), or give the folder."
    )


def identity(path: str | os.PathLike[str]) -> str:
    """Returns a digest that changes when the archive, or any file of the folder, is replaced or touched.

    It covers the resolved path, sizes and modification times, not the contents.
    """
    path = Path(path).expanduser().resolve()
    digest = hashlib.sha256(os.fsencode(path))
    for name, status in FolderTree(path, lambda _: True).states() if path.is_dir() else [("", _status(path))]:
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"Cannot open the data archive {path}: {error.strerror}.") from error


def fingerprint(*parts: object) -> str:
    """Returns ten digits that follow from the parts, such as ``identity``: they tell a data set's configs apart."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:10]


def archive_stem(path: Path) -> str:
    """Returns the archive's name without its endings, of letters, digits and underscores: part of a data set's name."""
    stem = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(\.tar)?\.\w+$", "", path.name.lower())).strip("_")[:40]
    return stem or "archive"
