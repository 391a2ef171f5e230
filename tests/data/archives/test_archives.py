"""Archives that lie: refused by one message before anything is unpacked, or the lying member is absent."""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import resource
import socket
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
import zlib

import numpy as np
import pytest
import voc_archives

from flax_mnv2.data.archives import archive_limits, tar_members
from flax_mnv2.data.archives.archive import identity, inner_files, open_tree
from flax_mnv2.data.archives.matlab import read_field
from flax_mnv2.data.datasets.sbd import SbdMasks
from flax_mnv2.data.datasets.voc_files import VocFiles
from flax_mnv2.data.prepare.conversion import convert
from flax_mnv2.data.prepare.crc32c import crc32c
from flax_mnv2.data.prepare.tfrecord import read_records
from flax_mnv2.errors import DataError

PACKERS = {"tar": lambda data: data, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


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


@pytest.fixture
def memory():
    """At most 2 GiB more than now may be allocated: what believes a lie dies of it."""
    now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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
@pytest.mark.parametrize(
    ("contents", "match"),
    [
        (header(size=1 << 62), "damaged|at most"),
        (header(size=-512), "damaged"),
        (header(kind=tarfile.GNUTYPE_LONGNAME, size=1 << 40), "damaged"),
        (header(kind=tarfile.XHDTYPE, size=1 << 40), "damaged"),
        (header(kind=tarfile.XGLTYPE, size=(1 << 20) + 1) + bytes(1 << 21), "a header of 1,048,577 bytes"),
        (header(kind=tarfile.XHDTYPE, size=12) + padded(b"999999 path=") + header(), "extended header"),
        (header(kind=tarfile.XHDTYPE, size=10) + padded(b"10 size=x\n") + header(), "damaged"),
        (header(kind=tarfile.XHDTYPE, size=29) + padded(b"29 size=99999999999999999999\n") + header(), "damaged|most"),
        (header(kind=tarfile.XHDTYPE, size=22) + padded(b"22 GNU.sparse.major=1\n") + header(), "sparse"),
        (header(kind=tarfile.GNUTYPE_SPARSE, size=0), "sparse"),
        (header("a\nb"), "control characters"),
        (header("a\x1b[2J"), "control characters"),
        (header("a/" * 70 + "b", kind=tarfile.REGTYPE), "folders deep"),
        (header() + b"?" * 512, "damaged"),
    ],
)  # fmt: skip
def test_lying_tars_are_refused(tmp_path, memory, packing, contents, match):
    refused(write(tmp_path / "x.tar", PACKERS[packing](contents + bytes(1024))), match)


def test_a_cut_header_is_refused(tmp_path):
    refused(write(tmp_path / "x.tar", header() + header()[:300]), "truncated header")


def test_a_name_without_end_is_refused(tmp_path):
    name = b"n" * 2000
    data = header(kind=tarfile.GNUTYPE_LONGNAME, size=len(name)) + padded(name) + header() + bytes(1024)
    refused(write(tmp_path / "x.tar", data), "name of 2,000 characters")


@pytest.mark.parametrize("packing", ["tar", "gz"])
def test_too_many_members_are_refused(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(archive_limits, "MAX_MEMBERS", 20)
    links = b"".join(header(f"l{index}", kind=tarfile.SYMTYPE) for index in range(21))
    refused(write(tmp_path / "x.tar", PACKERS[packing](links + bytes(1024))), "more than 20 members")


def test_sums_are_bounded(tmp_path, monkeypatch):
    data = b"".join(header(f"{index:040}", size=512) + bytes(512) for index in range(3)) + bytes(1024)
    path = write(tmp_path / "x.tar", data)
    open_tree(path).close()
    with monkeypatch.context() as patch:
        patch.setattr(archive_limits, "MAX_NAMES_BYTES", 100)
        refused(path, "100 bytes of names")
    monkeypatch.setattr(archive_limits, "MAX_TOTAL_BYTES", 1500)
    refused(path, "1,500 bytes of files")


def test_the_limits_let_the_largest_archives_through():
    """ImageNet: 1000 members, 138 GB; the largest inner tar under half a GB; flat, 1.5 million names of 50 bytes."""
    tally = archive_limits.Tally("train.tar")
    for index in range(1000):
        tally.header(f"n{index:08}.tar")
        tally.file(f"n{index:08}.tar", 147_897_477_120 // 1000)
    assert archive_limits.MAX_MEMBERS > 1_500_000
    assert archive_limits.MAX_NAMES_BYTES > 1_500_000 * 50
    assert archive_limits.MAX_ZIP_DIRECTORY_BYTES > 1_500_000 * (46 + 50 + 36)
    assert archive_limits.MAX_MEMBER_BYTES > 500_000_000


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("where", ["a member", "after the end", "a link's name"])
def test_decompression_bombs_are_stopped(tmp_path, monkeypatch, packing, where):
    """4 MiB of zeros, which take 4 kB or less, wherever they are."""
    monkeypatch.setattr(archive_limits, "ANY_RATIO_BYTES", 1 << 20)
    size = 4 << 20
    contents = {
        "a member": header(size=size) + bytes(size),
        "after the end": header() + bytes(1024) + bytes(size),
        "a link's name": header(kind=tarfile.GNUTYPE_LONGLINK, size=size) + bytes(size) + header(),
    }[where]
    refused(write(tmp_path / "x.tar", PACKERS[packing](contents)), "bomb")


def test_a_bomb_of_100_mb_is_stopped(tmp_path):
    path = write(tmp_path / "x.tgz", gzip.compress(header(size=100 << 20) + bytes(100 << 20), 1))
    refused(path, "unpacks to more than 200 times its")


def test_nested_bombs_are_not_opened(tmp_path):
    """An archive in an archive is a file like any other."""
    inner = gzip.compress(bytes(50 << 20))
    path = write(tmp_path / "x.tar", header("bomb.tar.gz", size=len(inner)) + padded(inner) + bytes(1024))
    tree = open_tree(path)
    assert tree.read("bomb.tar.gz") == inner
    with pytest.raises(DataError, match=r"bomb\.tar\.gz: the archive is damaged"):
        list(inner_files(tree, "bomb.tar.gz"))
    tree.close()


@pytest.mark.parametrize("packing", PACKERS)
def test_names_outside_links_and_devices_are_absent(tmp_path, packing):
    """And a pipe or device in a tar is not waited for; nothing appears beside the archive."""
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    data = b"".join(header(f"s{kind.decode()}", kind=kind, linkname="/etc/passwd") for kind in kinds)
    data += b"".join(header(name) for name in ("../up", "/abs", "a/../../b", "./../c", "..", "/"))
    data += header("kept", size=2) + padded(b"ok") + bytes(1024)
    tree = open_tree(write(tmp_path / "x.tar", PACKERS[packing](data)))
    assert tree.names() == ["kept"]
    assert tree.folders() == []
    assert tree.read("kept") == b"ok"
    tree.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.tar"]


def test_link_then_file_through_it(tmp_path):
    """The classic way out of a target: a link to a folder outside, then a member below the link's name."""
    outside = tmp_path / "outside"
    outside.mkdir()
    data = header("way", kind=tarfile.SYMTYPE, linkname=str(outside)) + header("way/out", size=2) + padded(b"no")
    tree = open_tree(write(tmp_path / "x.tar", data + bytes(1024)))
    assert tree.read("way/out") == b"no"  # a name, of bytes in this tar: there is no target to leave
    tree.close()
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("kind", ["x.tar", "x.zip"])
def test_names_that_differ_in_case_stay_apart(tmp_path, kind):
    tree = open_tree(voc_archives.write(tmp_path / kind, {"A/x": b"1", "a/x": b"2", "a/X": b"3"}))
    assert [tree.read(name) for name in ("A/x", "a/x", "a/X")] == [b"1", b"2", b"3"]
    tree.close()


def test_repeated_names_are_told(tmp_path):
    data = b"".join(header(name, size=1) + padded(value) for name, value in (("a", b"1"), ("./a", b"2"), ("b", b"3")))
    tree = open_tree(write(tmp_path / "x.tar", data + bytes(1024)))
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
def test_zip_members_that_lie_about_their_size(tmp_path, memory, declared):
    """Reading stops at the declared size, and the checksum tells; a size beyond all images is refused at once."""
    data = zip_bytes(("a", bytes(50 << 20)))
    for place in (lines(data)[0] + 24, 22):
        data[place : place + 4] = struct.pack("<I", declared)
    path = write(tmp_path / "x.zip", bytes(data))
    if declared > 1 << 30:
        refused(path, "expected at most|damaged")
        return
    tree = open_tree(path)
    with pytest.raises(DataError, match="damaged or incomplete"):
        tree.read("a")
    tree.close()


def test_zip_bombs_are_stopped(tmp_path):
    refused(write(tmp_path / "x.zip", bytes(zip_bytes(("a", bytes(100 << 20))))), "bomb")


def test_overlapping_zip_members_are_refused(tmp_path):
    """Two lines of the directory for the same bytes, and one whose bytes reach into the next member's."""
    data = zip_bytes(("a", b"x" * 100), ("b", b"y" * 100), method=zipfile.ZIP_STORED)
    first, second = lines(data)
    same, wide = data.copy(), data.copy()
    same[second + 42 : second + 46] = data[first + 42 : first + 46]
    wide[first + 20 : first + 24] = struct.pack("<I", 150)
    refused(write(tmp_path / "same.zip", bytes(same)), "overlaps")
    refused(write(tmp_path / "wide.zip", bytes(wide)), "overlaps")
    last = data.copy()
    last[second + 20 : second + 24] = struct.pack("<I", 400)
    refused(write(tmp_path / "last.zip", bytes(last)), "reaches into the directory")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_without_a_bound_are_refused(tmp_path, method):
    refused(write(tmp_path / "x.zip", bytes(zip_bytes(("a", b"x"), method=method))), "expected deflate or none")


def test_zip_directory_is_bounded(tmp_path, monkeypatch):
    path = write(tmp_path / "x.zip", bytes(zip_bytes(*((f"{index:030}", b"") for index in range(50)))))
    with monkeypatch.context() as patch:
        patch.setattr("flax_mnv2.data.archives.archive.MAX_ZIP_DIRECTORY_BYTES", 2000)
        refused(path, "directory of the zip has 3,800 bytes")
    monkeypatch.setattr("flax_mnv2.data.archives.archive.MAX_MEMBERS", 40)
    refused(path, "more than 40 members")


def test_zip_links_encrypted_and_outside(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    data = zip_bytes((link, "/etc/passwd"), ("../up", b""), ("/abs", b""), ("a/../../b", b""), ("secret", b"x" * 50))
    for place in [*(line + 8 for line in lines(data)[-1:]), data.rfind(b"PK\x03\x04") + 6]:
        data[place] |= 1
    tree = open_tree(write(tmp_path / "x.zip", bytes(data)))
    assert tree.names() == ["secret"]
    with pytest.raises(DataError, match="encrypted"):
        tree.read("secret")
    tree.close()


def test_pipes_and_devices_are_never_waited_for(tmp_path):
    """As the archive itself and within a folder; in another process, as a mistake here would wait for ever."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "image.jpg").write_bytes(b"x")
    (tmp_path / "elsewhere.jpg").write_bytes(b"y")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "linked.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.jpg"))
    code = f"""
        import os
        from flax_mnv2.data.archives.archive import identity, open_tree
        from flax_mnv2.data.prepare.tfrecord import read_records
        from flax_mnv2.errors import DataError
        folder = {str(folder)!r}
        tree = open_tree(folder)
        assert tree.names() == ["image.jpg", "linked.jpg"], tree.names()
        assert tree.read("linked.jpg") == b"y"
        identity(folder)
        os.unlink(folder + "/image.jpg")
        os.mkfifo(folder + "/image.jpg")  # since it was listed
        for act in (
            lambda: tree.read("image.jpg"),
            lambda: open_tree(folder + "/pipe.jpg"),
            lambda: open_tree("/dev/zero"),
            lambda: list(read_records(folder + "/pipe.jpg")),
        ):
            try:
                act()
            except DataError as error:
                assert "regular file" in str(error), error
            else:
                raise AssertionError
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, check=True)


def test_large_files_of_a_folder_are_not_read(tmp_path, memory):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(1 << 41)
    tree = open_tree(tmp_path)
    with pytest.raises(DataError, match=r"huge\.jpg has 2,199,023,255,552 bytes"):
        tree.read("huge.jpg")
    identity(tmp_path)


def voc_with(tmp_path, text):
    files = voc_archives.voc_files()
    files[f"{voc_archives.ROOT}/ImageSets/Segmentation/val.txt"] = text
    return VocFiles(voc_archives.write(tmp_path / "x.tar", files))


@pytest.mark.parametrize(
    "image_id", ["../../../etc/passwd", "/etc/passwd", "a/../b", "a\x00", "\ud7ff", "a\x1b[2J", "."]
)
def test_ids_are_only_looked_up(tmp_path, image_id):
    with voc_with(tmp_path, image_id.encode()) as voc:
        assert voc.splits()["val"] == [image_id]
        for read in (voc.read_image, voc.read_mask):
            with pytest.raises(DataError, match="lists the id") as caught:
                read(image_id)
            assert str(caught.value).isprintable()


def test_lists_are_bounded(tmp_path, monkeypatch):
    with voc_with(tmp_path, b"x" * 100_000) as voc, pytest.raises(DataError, match="a line of 100,000 characters"):
        voc.splits()
    many = "".join(f"{index}\n" for index in range(200_000)) + "199999\n"  # found without comparing all with all
    with voc_with(tmp_path, many.encode()) as voc:
        with pytest.raises(DataError, match="'199999' more than once"):
            voc.splits()
        monkeypatch.setattr("flax_mnv2.data.datasets.voc_files.MAX_LIST_BYTES", 1000)
        with pytest.raises(DataError, match=r"val\.txt has .* bytes, expected at most 1,000"):
            voc.splits()


def mat(compressed=False, **fields):
    from scipy.io import savemat

    contents = {"Boundaries": np.zeros((20, 1)).astype(object), "Segmentation": np.eye(3, 4, dtype=np.uint8)} | fields
    buffer = io.BytesIO()
    savemat(buffer, {"other": 1, "GTcls": contents}, do_compression=compressed)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
def test_matlab_files_as_scipy_writes_them(compressed, dtype):
    pixels = np.arange(35 * 50).reshape(35, 50) % 21
    found = read_field(mat(compressed, Segmentation=pixels.astype(dtype)), "GTcls", "Segmentation")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


def test_hostile_matlab_files(memory):
    """Dimensions of 2^31 elements, a struct of a billion elements, an object, a bomb, and other things than numbers."""
    good = mat()
    head = good[:128]
    place = good.index(struct.pack("<IIIIII", 6, 8, 9, 0, 5, 8)) + 24
    hostile = {
        "dimensions": good[:place] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + good[place + 8 :],
        "negative": good[:place] + struct.pack("<ii", -1, -12) + good[place + 8 :],
        "billion": good.replace(struct.pack("<IIIiiI", 0, 5, 8, 1, 1, 1), struct.pack("<IIIiiI", 0, 5, 8, 10**9, 1, 1)),
        "bomb": head + struct.pack("<II", 15, len(data := zlib.compress(bytes(200 << 20)))) + data,
        "text": mat(Segmentation="hello"),
        "cells": mat(Segmentation=np.zeros((2, 2)).astype(object)),
        "cut": good[:-40],
        "header": good[:128],
        "empty": b"",
        "4 GiB": head + struct.pack("<II", 14, 0xFFFFFFFF),
    }  # fmt: skip
    for name, data in hostile.items():
        assert data != good, name
        with pytest.raises(ValueError, match=r"\w"):
            read_field(data, "GTcls", "Segmentation")
        assert read_field(good, "GTcls", "Segmentation").shape == (3, 4)


def test_sbd_masks_hold_classes(tmp_path):
    files = voc_archives.sbd_files(["a"], ["b"], {"a": (2, 3), "b": (2, 3)})
    files["benchmark_RELEASE/dataset/cls/a.mat"] = mat(Segmentation=np.full((2, 3), 300.0))
    files["benchmark_RELEASE/dataset/val.txt"] = b"\xff\xfe"
    with SbdMasks(voc_archives.write(tmp_path / "x.tgz", files)) as masks:
        assert (masks.mask("b") == 7).all()
        with pytest.raises(DataError, match=r"a\.mat: no readable .*no classes"):
            masks.mask("a")
        with pytest.raises(DataError, match=r"val\.txt is not UTF-8"):
            masks.ids()


def masked(data):
    checksum = crc32c(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@pytest.mark.parametrize("length", [5, 1 << 31, 1 << 60, (1 << 64) - 1])
def test_tfrecord_lengths_are_not_believed(tmp_path, memory, length):
    """Even where the checksum of the length is right; nor where a sparse file is as long as that."""
    start = struct.pack("<Q", length)
    path = write(tmp_path / "x", start + masked(start) + b"abc")
    with pytest.raises(DataError, match=rf"should have {length:,} bytes, but the file ends"):
        list(read_records(path))
    if length == 1 << 31:
        with open(path, "r+b") as file:
            file.truncate(1 << 33)
        with pytest.raises(DataError, match="expected at most 1,073,741,824"):
            list(read_records(path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "../../evil"}, "cannot name a folder"),
        ({"name": "/tmp/evil"}, "cannot name a folder"),
        ({"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "../x"}]}, "not in it|Cannot"),
        ({"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "{NONE}"}]}, "Cannot open"),
        ({"splits": [{"name": "../train", "shardLengths": ["1"]}]}, "not in it|Cannot"),
        ({"splits": 7}, "Cannot open"),
        ({"version": "x"}, "Cannot open"),
    ],
)  # fmt: skip
def test_descriptions_do_not_lead_outside(tmp_path, change, match):
    """``dataset_info.json`` of a data set to convert may say anything; nothing appears but in the target."""
    import json

    source = tmp_path / "deep" / "mine" / "1.0.0"
    source.mkdir(parents=True)
    description = {"name": "mine", "version": "1.0.0", "fileFormat": "tfrecord", "splits": []} | change
    (source / "dataset_info.json").write_text(json.dumps(description))
    (source / "features.json").write_text(
        json.dumps(
            {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {}}
        )
    )
    with pytest.raises(DataError, match=match):
        convert(source, data_dir=str(tmp_path / "deep" / "out"))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"deep/mine/1.0.0/dataset_info.json", "deep/mine/1.0.0/features.json"}


def test_tars_of_all_kinds_are_read_as_tarfile_reads_them(tmp_path):
    """GNU, pax and ustar, with names long and foreign: the same members with the same bytes."""
    names = ["a", "b/" + "x" * 99, "d" * 120 + "/" + "y" * 90, "ü/é.jpg", "e/" * 30 + "f"]
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=kind, pax_headers={"comment": "all"}) as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(name)
                tar.addfile(member, io.BytesIO(name.encode()[: len(name)]))
        with tarfile.open(path) as tar:
            expected = [(member.name, member.offset_data, member.size) for member in tar]
        with open(path, "rb") as file:
            found = [
                (member.name, member.offset, member.size)
                for member in tar_members.members(tar_members.FileBlocks(file), path)
            ]
        assert found == expected
        assert len(found) == len(names)
