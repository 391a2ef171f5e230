"""A zip as a tree of files."""

import stat
import threading
import zipfile

from flax_mnv2.data.archives.tree import FileTree, check_size, damage_named, usable_name
from flax_mnv2.errors import DataError

MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # what a zip begins with, and an empty one


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
