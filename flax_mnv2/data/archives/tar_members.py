"""What a tar lists, one member at a time, with every length checked before anything of that length is read.

Python's ``tarfile`` parses single headers here but does not walk the archive: it reads long names and sparse maps of
any declared size into memory, keeps all members, and stops in silence where a header is overwritten.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from flax_mnv2.data.archives.archive_limits import MAX_HEADER_BYTES, Tally

_PIECE_BYTES = 1 << 20
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_NO_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_PATH, _SIZE, _SPARSE = b"path", b"size", b"GNU.sparse"
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]+)=")


class Member(NamedTuple):
    """A plain file, with where its bytes lie, or a folder."""

    name: str
    is_folder: bool
    offset: int
    size: int


class Blocks(Protocol):
    """What a tar is read from, front to back.

    Attributes:
      position: of the next byte.
      size: of the whole, or None where only reading to the end would tell.
    """

    position: int
    size: int | None

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end."""

    def skip_to(self, position: int) -> None:
        """Go forward; EOFError where the end comes first."""


class FileBlocks:
    """A tar in a file of which any place can be read."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.size = file.seek(0, 2)
        self.position = file.seek(0)

    def read(self, size: int) -> bytes:
        """See ``Blocks``."""
        data = self._file.read(size)
        self.position += len(data)
        return data

    def skip_to(self, position: int) -> None:
        """See ``Blocks``."""
        self.position = self._file.seek(position)


class StreamBlocks:
    """A tar that is being decompressed.

    Args:
      stream: the decompressed bytes; its ``read`` may give fewer than asked for only at the end.
    """

    size = None

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self.position = 0

    def read(self, size: int) -> bytes:
        """See ``Blocks``."""
        data = self._stream.read(size)
        self.position += len(data)
        return data

    def skip_to(self, position: int) -> None:
        """See ``Blocks``."""
        while self.position < position:
            if not self.read(min(_PIECE_BYTES, position - self.position)):
                raise EOFError("it ends within a member")


def members(blocks: Blocks, path: Path | str) -> Iterator[Member]:
    """The plain files and folders of a tar in their order; links, devices and the like are passed over.

    Between two members the caller may read the data of the one it has got from ``blocks``.

    Args:
      blocks: the tar.
      path: what messages call it.

    Raises:
      DataError: it lists too much.
      tarfile.TarError, EOFError, ValueError: it is damaged, cut short, or holds sparse files.
    """
    tally = Tally(path)
    long_name: str | None = None
    pax: dict[bytes, bytes] = {}
    pax_of_all: dict[bytes, bytes] = {}
    while (block := blocks.read(tarfile.BLOCKSIZE)) and any(block):
        header = tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
        records = pax_of_all | pax
        size = int(records[_SIZE]) if _SIZE in records and header.type not in _EXTENSIONS else header.size
        end = _end(blocks, header, size)
        if header.type in _EXTENSIONS:
            tally.header()
            if header.type == _LONG_NAME:
                long_name = _extension(blocks, size).partition(b"\0")[0].decode(tarfile.ENCODING, "surrogateescape")
            elif header.type == tarfile.XGLTYPE:
                pax_of_all |= _pax_records(_extension(blocks, size))
            elif header.type != _LONG_LINK:
                pax = _pax_records(_extension(blocks, size))
        else:
            name = records[_PATH].decode("utf-8", "surrogateescape") if _PATH in records else long_name or header.name
            tally.header(name)
            if header.type == tarfile.GNUTYPE_SPARSE or _SPARSE in records:
                raise tarfile.ReadError(f"{name[:80]!a} is stored as a sparse file, which is not supported")
            if header.isdir() or header.isreg():
                yield Member(name, header.isdir(), blocks.position, size)
            long_name, pax = None, {}
        blocks.skip_to(end)


def _end(blocks: Blocks, header: tarfile.TarInfo, size: int) -> int:
    """Where the next header is."""
    if size < 0:
        raise tarfile.ReadError("a member has a negative size")
    end = blocks.position
    if header.type not in _NO_DATA:
        end += -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if blocks.size is not None and end > blocks.size:
        raise EOFError(f"{header.name[:80]!a} ends beyond the end of the file")
    return end


def _extension(blocks: Blocks, size: int) -> bytes:
    if size > MAX_HEADER_BYTES:
        raise tarfile.ReadError(f"a header of {size:,} bytes, expected at most {MAX_HEADER_BYTES:,}")
    data = blocks.read(size)
    if len(data) < size:
        raise EOFError("it ends within a header")
    return data


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """What matters here of an extended header: lines of a length in decimals, a space, ``key=value``."""
    records, position = {}, 0
    while position < len(data) and data[position]:
        match = _PAX_RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise tarfile.ReadError("an extended header is damaged")
        key = _SPARSE if match[2].startswith(_SPARSE) else match[2]
        if key in (_PATH, _SIZE, _SPARSE):
            records[key] = data[match.end() : end - 1]
        position = end
    return records
