"""Files that are given for an archive and are none that is read: what each is, and what to do."""

from pathlib import Path

from flax_mnv2.errors import DataError

_UNPACK = "Unpack it ({0}), and give the folder, or pack that as .tar or .zip."
_PICK = "Give the folder, .tar or .zip that the {0} lies in."
# First bytes; what begins so; what to do.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK.format("7z x")),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK.format("unrar x, or 7z x")),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK.format("tar --zstd -xf")),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", _UNPACK.format("lz4 -dc | tar -x")),
    (b"LZIP", "compressed with lzip", _UNPACK.format("tar --lzip -xf")),
    (b"\x5d\x00\x00", "compressed with LZMA alone", _UNPACK.format("tar --lzma -xf")),
    (b"\x1f\x9d", "compressed with compress (.Z)", _UNPACK.format("tar -xZf")),
    (b"PK\x07\x08", "a part of a zip in several parts", "Join the parts (zip -s 0), and give the whole."),
    (b"PAR1", "a Parquet table", "Write its images into folders first."),
    (b"ARROW1", "an Arrow table", "Write its images into folders first."),
    (b"\x89HDF", "an HDF5 file", "Write its images into folders first."),
    (b"\x93NUMPY", "a NumPy array", "Write its images into folders first."),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "Fetch the file with git lfs pull."),
    (b"<!doctype", "a web page: the download did not bring the file", "Download it again, signed in where it asks."),
    (b"<html", "a web page: the download did not bring the file", "Download it again, signed in where it asks."),
    (b"\xff\xd8\xff", "a JPEG image", _PICK.format("image")),
    (b"\x89PNG", "a PNG image", _PICK.format("image")),
    (b"%PDF", "a PDF document", "Give the path of a folder, a .tar, .tar.gz, .tgz or .zip file."),
)


def refuse_foreign(path: Path, start: bytes) -> None:
    """Raises a DataError where the first bytes of the file at ``path`` are of a kind that is known, but not read."""
    start = start.lstrip().lower() if start.lstrip().startswith(b"<") else start
    for magic, what, do in _KINDS:
        if start.startswith(magic):
            raise DataError(f"{path} is {what}; what is read are folders, zips and tars (plain, gzip, bzip2, xz). {do}")
