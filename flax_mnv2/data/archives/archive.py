"""Opens a folder or archive of any kind, and tells one from another."""

import bz2
import gzip
import hashlib
import lzma
import os
import re
from pathlib import Path

from flax_mnv2.data.archives.folder import FolderTree
from flax_mnv2.data.archives.tar import TarTree
from flax_mnv2.data.archives.tree import FileTree, Keep, damage_named, open_regular
from flax_mnv2.data.archives.zip import MAGIC as ZIP_MAGIC
from flax_mnv2.data.archives.zip import ZipTree
from flax_mnv2.errors import DataError

_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


def open_tree(path: str | os.PathLike[str], *, keep: Keep = lambda _: True) -> FileTree:
    """Opens a folder or an archive; the kind of archive is told from its first bytes, not from its name.

    Args:
      path: folder, ``.tar``, compressed tar (gzip, bzip2, xz) or ``.zip``.
      keep: tells which names are of interest; others are treated as absent. It saves room and time
        with compressed archives, whose kept members are copied into an anonymous temporary file.

    Raises:
      DataError: there is nothing at ``path``, or the archive is damaged.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return FolderTree(path, keep)
    try:
        with open_regular(path) as file:
            magic = file.read(6)
    except OSError as error:
        raise DataError(
            f"Cannot open the data archive {path}: {error.strerror}. "
            "Give the path of a folder, a .tar, .tar.gz, .tgz or .zip file."
        ) from error
    with damage_named(path):
        if magic.startswith(ZIP_MAGIC):
            return ZipTree(path, keep)
        decompress = next((opener for start, opener in _DECOMPRESSORS.items() if magic.startswith(start)), None)
        return TarTree(path, keep, decompress)


def identity(path: str | os.PathLike[str]) -> str:
    """Returns a digest that changes when the archive, or any file of the folder, is replaced or touched.

    It covers the resolved path, sizes and modification times, not the contents.

    Raises:
      DataError: there is nothing at ``path``.
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
