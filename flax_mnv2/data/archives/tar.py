"""A tar as a tree of files, and the tars inside it.

``tarfile`` reads the headers; the bytes of a member are read from its place in the file, by any number of threads.
"""

import contextlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from flax_mnv2.data.archives.links import follow, target_of
from flax_mnv2.data.archives.tree import FileTree, Keep, check_size, damage_named, usable_name

_PIECE_BYTES = 1 << 20


class TarTree(FileTree):
    """The files of a tar.

    ``decompress`` opens a compressed file, as ``gzip.open`` does. The kept members of a compressed tar are copied into
    an anonymous temporary file, so that they can be read in any order; where a kept name is a link to a file that was
    not kept, the tar is read a second time.
    """

    def __init__(self, path: Path, keep: Keep, decompress: Callable[[Path], IO[bytes]] | None):
        self._decompress = decompress
        super().__init__(path, keep)

    def _list(self) -> None:
        if self._decompress:
            self._file = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (entered)
        else:
            self._file = self._open.enter_context(open(self.path, "rb"))  # noqa: SIM115 (entered)
        links: dict[str, str] = {}
        others: set[str] = set()  # files of no interest by their own names
        for name, place in self._places(self._keep, links, others):
            self._add_file(name, place)
        if not links:
            return
        linked = follow(self.path, links, others | set(self._files), self._folders)
        sources = {name: source for name, source in linked.items() if self._keep(name)}
        wanted = set(sources.values()) - set(self._files)
        places = self._files | dict(self._places(wanted.__contains__, {}, set()) if wanted else ())
        for name, source in sources.items():
            self._add_file(name, places[source])

    def _places(self, keep: Keep, links: dict[str, str], others: set[str]) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yields the files that ``keep`` takes, each with offset and size in ``self._file``.

        The folders are noted, and in ``links`` and ``others`` the links, with their targets, and the files left out.
        """
        with self._decompress(self.path) if self._decompress else contextlib.nullcontext(self._file) as stream:
            stream.seek(0)
            for member in _members(stream):
                name = usable_name(self.path, member.name)
                if name is None:
                    continue
                if member.isdir():
                    self._folders.add(name)
                elif not member.isreg():
                    links[name] = target_of(self.path, name, member.linkname, symbolic=member.issym())
                elif keep(name):
                    check_size(self.path, name, member.size)
                    yield name, self._copied(stream, name, member) if self._decompress else _place(member)
                else:
                    others.add(name)
            while self._decompress and stream.read(_PIECE_BYTES):  # to the end, where the checksum is
                pass
        if self._decompress:
            self._file.flush()

    def _copied(self, stream: IO[bytes], name: str, member: tarfile.TarInfo) -> tuple[int, int]:
        data = stream.read(member.size)
        if len(data) < member.size:
            raise EOFError(f"{name[:80]!a} is cut short")
        offset = self._file.tell()
        self._file.write(data)
        return offset, member.size

    def read(self, name: str) -> bytes:
        """See ``FileTree``."""
        offset, size = self._files[name]
        with damage_named(self.path, name):
            data = os.pread(self._file.fileno(), size, offset)
            if len(data) != size:
                raise EOFError(f"{len(data)} of {size} bytes")
            return data


def inner_files(tree: FileTree, name: str) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of the plain files of a tar inside ``tree``, in their order; it is held in memory."""
    data = tree.read(name)
    with damage_named(tree.path, name):
        for member in _members(io.BytesIO(data)):
            inner = usable_name(tree.path, member.name)
            if inner and member.isreg():
                yield inner, data[member.offset_data : member.offset_data + member.size]


def _place(member: tarfile.TarInfo) -> tuple[int, int]:
    return member.offset_data, member.size


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Returns the plain files, folders and links of a tar in their order; devices and the like are passed over.

    Before the next one is asked for, the caller may read the member's bytes, which begin at the file's position.
    """
    reader = _Remembering(file)
    with tarfile.open(fileobj=reader, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # tarfile keeps them all: a gigabyte for the images of ImageNet
            if member.size < 0:
                raise tarfile.ReadError("a member has a negative size")
            if member.issparse():
                raise tarfile.ReadError(f"{member.name[:80]!a} is stored as a sparse file, which is not supported")
            if member.isreg() or member.isdir() or member.issym() or member.islnk():
                yield member
    if any(reader.last):  # tarfile takes a damaged header, or half of one, for the end
        raise tarfile.ReadError("a header is damaged or cut short")


class _Remembering:
    """A file for ``tarfile``, which tells what was read last: zeros or nothing where the tar ends as it should."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        self.last = self._file.read(size)
        return self.last
