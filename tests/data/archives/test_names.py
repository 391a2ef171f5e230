"""Names as other systems write them, and files that are no archive of a kind that is read."""

import io
import lzma
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import pytest

from flax_mnv2.data.archives.archive import identity, open_tree
from flax_mnv2.errors import DataError

COMPOSED = "caf\u00e9/\u72ac.jpg"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def _zip(path, names):
    """A zip whose names are these bytes, without a flag that says what they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index, name in enumerate(names):
            archive.writestr("x" * (len(name) - 1) + chr(ord("a") + index), b"data")
    data = buffer.getvalue()
    for index, name in enumerate(names):
        data = data.replace(b"x" * (len(name) - 1) + bytes([ord("a") + index]), name)
    path.write_bytes(data)
    return path


def _names(path):
    with open_tree(path) as tree:
        assert all(tree.read(name) == b"data" for name in tree.names())
        return tree.names()


def test_names_of_a_zip_without_the_flag(tmp_path):
    """UTF-8, as macOS and many a library write it; and code page 437, as the format says."""
    assert _names(_zip(tmp_path / "x.zip", [COMPOSED.encode()])) == [COMPOSED]
    assert _names(_zip(tmp_path / "y.zip", [DECOMPOSED.encode()])) == [COMPOSED]
    assert _names(_zip(tmp_path / "z.zip", ["caf\u00e9/\u00fc.jpg".encode("cp437")])) == ["caf\u00e9/\u00fc.jpg"]


def test_names_in_an_unknown_code_page_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"code page that the zip does not tell. Pack it again"):
        open_tree(_zip(tmp_path / "x.zip", ["\u52a8\u7269/\u72ac.jpg".encode("gbk")]))


def test_info_zips_field_with_the_name_in_unicode(tmp_path):
    raw = "\u52a8\u7269.jpg".encode("gbk")
    info = zipfile.ZipInfo("y" * len(raw))
    name = "\u52a8\u7269.jpg".encode()
    info.extra = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, zlib.crc32(raw)) + name
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, b"data")
    path.write_bytes(path.read_bytes().replace(b"y" * len(raw), raw))
    assert _names(path) == ["\u52a8\u7269.jpg"]


def test_backslashes_in_a_zip_are_slashes(tmp_path):
    """As Windows PowerShell 5 and .NET before 4.6.1 write them, folders too."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("train\\cat\\0.jpg", "train\\dog\\", "..\\up", "__MACOSX\\x"):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 0
            archive.writestr(info, b"" if name.endswith("\\") else b"data")
    assert _names(path) == ["train/cat/0.jpg"]
    with open_tree(path) as tree:
        assert tree.folders() == ["train", "train/cat", "train/dog"]


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.zip"])
def test_accents_are_composed(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        (path / DECOMPOSED).parent.mkdir(parents=True)
        (path / DECOMPOSED).write_bytes(b"data")
        assert identity(path) == identity(path)
    elif kind == "x.tar":
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo(DECOMPOSED)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"data"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(DECOMPOSED, b"data")
    assert _names(path) == [COMPOSED]


def test_what_systems_leave_behind_is_absent(tmp_path):
    kept = "cat/0.jpg"
    for name in (kept, "__MACOSX/cat/._0.jpg", "cat/._0.jpg", "cat/@eaDir/0.jpg/THUMB.jpg", "$RECYCLE.BIN/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"data")
    assert _names(tmp_path) == [kept]


def test_lists_as_powershell_writes_them(tmp_path):
    (tmp_path / "train.txt").write_bytes("a\r\n\u00e9\r\n".encode("utf-16"))
    with open_tree(tmp_path) as tree:
        assert tree.read_lines("train.txt") == ["a", "\u00e9"]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"7z\xbc\xaf\x27\x1c", r"is a 7z archive.*7z x"),
        (b"Rar!\x1a\x07\x01\0", r"is a RAR archive.*unrar"),
        (b"\x28\xb5\x2f\xfd", r"compressed with Zstandard.*tar --zstd -xf"),
        (lzma.compress(bytes(1000), lzma.FORMAT_ALONE), r"LZMA alone"),
        (b"PAR1", r"is a Parquet table"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", r"pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", r"is a web page"),
        (b"\xff\xd8\xff\xe0", r"is a JPEG image.*Give the folder"),
    ],
)
def test_what_is_no_archive_of_ours_is_named(tmp_path, start, message):
    (tmp_path / "x").write_bytes(start + bytes(2000))
    with pytest.raises(DataError, match=message) as caught:
        open_tree(tmp_path / "x")
    assert "damaged" not in str(caught.value)
