"""Folders, tars and zips of every kind: what is read, and what is damaged, leads outside or is no file."""

import bz2
import gzip
import io
import lzma
import os
import socket
import struct
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import voc_archives

from flax_mnv2.data.archives.archive import identity, open_tree
from flax_mnv2.data.archives.tar import inner_files
from flax_mnv2.errors import DataError

PACKERS = {"tar": lambda data: data, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


END = bytes(1024)


def header(name="x", size=0, kind=tarfile.REGTYPE, **fields):
    """One header of a tar, with a right checksum."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for key, value in fields.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data):
    return data + bytes(-len(data) % 512)


def write(path, data):
    path.write_bytes(data)
    return path


def refused(path, match):
    """Opening ends in one line that names the archive, and leaves nothing open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DataError, match=match) as caught:
        open_tree(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_all_kinds_are_read(tmp_path, packing, form):
    """With names long and foreign, and contents of odd and of whole blocks, read in any order."""
    names = ["a", "b/" + "x" * 99, "d" * 120 + "/" + "y" * 90, "ü/é.jpg", "e/" * 30 + "f"]
    rng = np.random.default_rng(0)
    files = {name: rng.bytes(size) for name, size in zip(names, (0, 1, 511, 512, 70_000), strict=True)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers={"comment": "all"}) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with open_tree(write(tmp_path / "x", PACKERS[packing](buffer.getvalue()))) as tree:
        assert tree.names() == sorted(names)
        assert {name: tree.read(name) for name in reversed(names)} == files
        assert [folder for folder in tree.folders() if "e" not in folder] == ["b", "d" * 120, "ü"]
    with open_tree(tmp_path / "x", keep=lambda name: name.startswith("d")) as tree:
        assert {name: tree.read(name) for name in tree.names()} == {names[2]: files[names[2]]}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_all_kinds_are_read(tmp_path, method):
    files = {"a/x": b"x" * 1000, "a/é": b"", "b": b"y"}
    with open_tree(write(tmp_path / "x", zip_bytes(*files.items(), method=method))) as tree:
        assert {name: tree.read(name) for name in tree.names()} == files
        assert tree.folders() == ["a"]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (header(size=1 << 62), "damaged|at most"),
        (header(size=-512), "damaged"),
        (header(kind=tarfile.XHDTYPE, size=29) + padded(b"29 size=99999999999999999999\n") + header(), "damaged|most"),
        (header(kind=tarfile.GNUTYPE_SPARSE, size=0), "sparse"),
        (header("a\nb"), "control characters"),
        (header("a\x1b[2J"), "control characters"),
        (header() + b"?" * 512, "damaged"),
        (header() + b"?" * 512 + header(), "damaged"),
        (header(size=len(END) + 1), "damaged"),
    ],
)  # fmt: skip
def test_lying_tars_are_refused(tmp_path, packing, contents, match):
    refused(write(tmp_path / "x.tar", PACKERS[packing](contents + END)), match)


def test_a_cut_header_is_refused(tmp_path):
    refused(write(tmp_path / "x.tar", header() + header()[:300]), "damaged or cut short")


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_damaged_compression_is_refused(tmp_path, packing):
    """Its checksum stands at the very end, behind the last member."""
    packed = bytearray(PACKERS[packing](header(size=512) + os.urandom(512) + END))
    refused(write(tmp_path / "cut.tar", packed[:-5]), "damaged or incomplete")
    packed[len(packed) // 2] ^= 1
    refused(write(tmp_path / "flipped.tar", packed), "damaged or incomplete")


def test_a_tar_in_a_tar(tmp_path):
    """An archive in an archive is a file like any other, and opened only where it is asked for."""
    inner = header("a/b", size=3) + padded(b"abc") + header("../up") + header("l", kind=tarfile.SYMTYPE) + END
    packed = gzip.compress(inner)
    data = b"".join(
        header(name, size=len(part)) + padded(part) for name, part in (("x.tar", inner), ("x.tar.gz", packed))
    )
    with open_tree(write(tmp_path / "outer.tar", data + END)) as tree:
        assert tree.read("x.tar.gz") == packed
        assert list(inner_files(tree, "x.tar")) == [("a/b", b"abc")]
        with pytest.raises(DataError, match=r"outer\.tar: x\.tar\.gz: the archive is damaged"):
            list(inner_files(tree, "x.tar.gz"))


@pytest.mark.parametrize("packing", PACKERS)
def test_names_outside_and_devices_are_absent(tmp_path, packing):
    """And a pipe or device in a tar is not waited for; nothing appears beside the archive."""
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    data = b"".join(header(f"s{kind.decode()}", kind=kind) for kind in kinds)
    data += b"".join(header(name) for name in ("../up", "/abs", "a/../../b", "./../c", "..", "/"))
    data += header("kept", size=2) + padded(b"ok") + END
    tree = open_tree(write(tmp_path / "x.tar", PACKERS[packing](data)))
    assert tree.names() == ["kept"]
    assert tree.folders() == []
    assert tree.read("kept") == b"ok"
    tree.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("kind", ["x.tar", "x.zip"])
def test_names_that_differ_in_case_stay_apart(tmp_path, kind):
    tree = open_tree(voc_archives.write(tmp_path / kind, {"A/x": b"1", "a/x": b"2", "a/X": b"3"}))
    assert [tree.read(name) for name in ("A/x", "a/x", "a/X")] == [b"1", b"2", b"3"]
    tree.close()


def test_repeated_names_are_told(tmp_path):
    data = b"".join(header(name, size=1) + padded(value) for name, value in (("a", b"1"), ("./a", b"2"), ("b", b"3")))
    tree = open_tree(write(tmp_path / "x.tar", data + END))
    assert (tree.repeated(), tree.read("a")) == (["a"], b"2")
    tree.close()


def zip_bytes(*members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return bytearray(buffer.getvalue())


def lines(data):
    """Offsets of the lines of a zip's directory."""
    found, start = [], 0
    while (start := data.find(b"PK\x01\x02", start)) >= 0:
        found.append(start)
        start += 4
    return found


@pytest.mark.parametrize("declared", [1, 1000, 2_000_000_000, 0xFFFFFFFF])
def test_zip_members_that_lie_about_their_size(tmp_path, declared):
    """Reading stops at the declared size, and the checksum tells; a size beyond all images is refused at once."""
    data = zip_bytes(("a", bytes(5000)))
    for place in (lines(data)[0] + 24, 22):
        data[place : place + 4] = struct.pack("<I", declared)
    path = write(tmp_path / "x.zip", bytes(data))
    if declared > 1 << 30:
        refused(path, "expected at most|damaged")
        return
    with open_tree(path) as tree, pytest.raises(DataError, match="damaged or incomplete"):
        tree.read("a")


def test_zip_members_encrypted_and_outside(tmp_path):
    data = zip_bytes(("../up", b""), ("/abs", b""), ("a/../../b", b""), ("secret", b"x" * 50))
    for place in [*(line + 8 for line in lines(data)[-1:]), data.rfind(b"PK\x03\x04") + 6]:
        data[place] |= 1
    tree = open_tree(write(tmp_path / "x.zip", bytes(data)))
    assert tree.names() == ["secret"]
    with pytest.raises(DataError, match="encrypted"):
        tree.read("secret")
    tree.close()


def test_pipes_and_devices_are_never_waited_for(tmp_path):
    """As the archive itself and within a folder; in a thread, as a mistake here would wait for ever."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "image.jpg").write_bytes(b"x")
    (tmp_path / "elsewhere.jpg").write_bytes(b"y")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / ".#gone.jpg").symlink_to("an editor's lock")
    (folder / "linked.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.jpg"))
    ended = []

    def act():
        tree = open_tree(folder)
        assert tree.names() == ["image.jpg", "linked.jpg"]
        assert tree.read("linked.jpg") == b"y"
        identity(folder)
        for name in (folder / "pipe.jpg", "/dev/zero"):
            with pytest.raises(DataError, match="regular file"):
                open_tree(name)
        ended.append(True)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(60)
    assert ended


def test_large_files_of_a_folder_are_not_read(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(1 << 41)
    tree = open_tree(tmp_path)
    with pytest.raises(DataError, match=r"huge\.jpg has 2,199,023,255,552 bytes"):
        tree.read("huge.jpg")
    identity(tmp_path)
