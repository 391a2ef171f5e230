import errno
import io
import zipfile

import pytest

from flax_mnv2.data.datasets.voc_files import VocFiles
from flax_mnv2.errors import DataError

KINDS = ("folder", "x.tar", "x.tgz", "x.tar.gz", "x.zip")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("root", ["VOCdevkit/VOC2012", "", "my/data"])
def test_reads_every_kind(archives, tmp_path, kind, root):
    files = archives.voc_files(root=root)
    with VocFiles(archives.write(tmp_path / kind, files)) as voc:
        assert voc.splits() == archives.DEFAULT_SPLITS
        prefix = f"{root}/" if root else ""
        assert voc.read_image("b") == files[f"{prefix}JPEGImages/b.jpg"]
        assert voc.read_mask("e") == files[f"{prefix}SegmentationClass/e.png"]
        with pytest.raises(DataError, match=r"lists the id 'zz'.*JPEGImages/zz\.jpg.*remove the id"):
            voc.read_image("zz")
        with pytest.raises(DataError, match=r"SegmentationClass/zz\.png"):
            voc.read_mask("zz")


def test_image_suffixes_and_untidy_lists(archives, tmp_path):
    files = archives.voc_files(root="", splits={"train": ["a", "b", "sub/c"]})
    files["JPEGImages/a.PNG"] = files.pop("JPEGImages/a.jpg")
    files["JPEGImages/b.jpeg"] = files.pop("JPEGImages/b.jpg")
    files["ImageSets/Segmentation/train.txt"] = "\ufeffa\r\n\r\n b \r\nsub/c".encode()
    with VocFiles(archives.write(tmp_path / "x.zip", files)) as voc:
        assert voc.splits() == {"train": ["a", "b", "sub/c"]}
        assert all(voc.read_image(image_id) for image_id in ("a", "b", "sub/c"))


def test_prefers_voc2012_and_refuses_a_guess(archives, tmp_path):
    years = {
        year: archives.voc_files(root=f"VOCdevkit/{year}", splits={year: ["a"]}) for year in ("VOC2007", "VOC2012")
    }
    with VocFiles(archives.write(tmp_path / "x.tar", years["VOC2007"] | years["VOC2012"])) as voc:
        assert list(voc.splits()) == ["VOC2012"]
    other = archives.voc_files(root="VOCdevkit/VOC2010")
    with pytest.raises(DataError, match="several data sets"):
        VocFiles(archives.write(tmp_path / "y.tar", years["VOC2007"] | other))


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.zip"])
def test_not_in_voc_layout(archives, tmp_path, kind):
    files = {name: data for name, data in archives.voc_files().items() if "ImageSets" not in name}
    with pytest.raises(DataError, match=r"not in VOC layout.*found no ImageSets/Segmentation/"):
        VocFiles(archives.write(tmp_path / kind, files))


@pytest.mark.parametrize(
    ("contents", "message"),
    [(b"", "lists no image ids"), (b"a\na\n", "lists 'a' more than once"), (b"\xff\xfe\xfa", "UTF-8")],
)
def test_bad_split_file(archives, tmp_path, contents, message):
    files = archives.voc_files()
    files[f"{archives.ROOT}/ImageSets/Segmentation/val.txt"] = contents
    with VocFiles(archives.write(tmp_path / "x.tar", files)) as voc, pytest.raises(DataError, match=message):
        voc.splits()


def test_split_name_that_tfds_cannot_use(archives, tmp_path):
    path = archives.write(tmp_path / "x.tar", archives.voc_files(splits={"train-aug": ["a"]}))
    with VocFiles(path) as voc, pytest.raises(DataError, match="cannot name a split"):
        voc.splits()


def test_missing_archive(tmp_path):
    with pytest.raises(DataError, match=r"Cannot open the data archive .*none\.tar: No such file"):
        VocFiles(tmp_path / "none.tar")


@pytest.mark.parametrize("kind", ["x.tar", "x.tgz", "x.zip"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 0.99])
def test_truncated_archive(archives, tmp_path, kind, keep):
    path = archives.write(tmp_path / kind, archives.voc_files())
    data = path.read_bytes()
    if kind == "x.tar":
        data = data.rstrip(b"\0")  # the end of a tar is padding
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=rf"x\.{kind[2:]}.*(damaged or incomplete|not in VOC layout)"):
        VocFiles(path)


def test_damaged_zip_member(archives, tmp_path):
    path = archives.write(tmp_path / "x.zip", archives.voc_files())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{archives.ROOT}/JPEGImages/a.jpg")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 200 : info.header_offset + 260] = bytes(60)
    path.write_bytes(data)
    with VocFiles(path) as voc, pytest.raises(DataError, match=r"JPEGImages/a\.jpg: the archive is damaged"):
        voc.read_image("a")


def test_folder_with_a_link_to_its_parent(archives, tmp_path):
    path = archives.write(tmp_path / "folder", archives.voc_files())
    (path / "loop").symlink_to(path)
    with VocFiles(path) as voc:
        assert voc.root == f"{archives.ROOT}/"


class _FullDisk(io.RawIOBase):
    def write(self, _):
        raise OSError(errno.ENOSPC, "No space left on device")

    def tell(self):
        return 0


def test_no_room_to_decompress(archives, tmp_path, monkeypatch):
    path = archives.write(tmp_path / "x.tgz", archives.voc_files())
    monkeypatch.setattr("tempfile.TemporaryFile", _FullDisk)
    with pytest.raises(DataError, match=r"No room in .*Set TMPDIR"):
        VocFiles(path)


def _with_list(archives, tmp_path, text):
    files = archives.voc_files()
    files[f"{archives.ROOT}/ImageSets/Segmentation/val.txt"] = text.encode()
    return VocFiles(archives.write(tmp_path / "x.tar", files))


@pytest.mark.parametrize(
    "image_id", ["../../../etc/passwd", "/etc/passwd", "a/../b", "a\x00", "\ud7ff", "a\x1b[2J", "."]
)
def test_ids_are_only_looked_up(archives, tmp_path, image_id):
    with _with_list(archives, tmp_path, image_id) as voc:
        assert voc.splits()["val"] == [image_id]
        for read in (voc.read_image, voc.read_mask):
            with pytest.raises(DataError, match="lists the id") as caught:
                read(image_id)
            assert str(caught.value).isprintable()


def test_a_repeated_id_is_found_in_a_long_list(archives, tmp_path):
    many = "".join(f"{index}\n" for index in range(200_000)) + "199999\n"  # without comparing all with all
    with _with_list(archives, tmp_path, many) as voc, pytest.raises(DataError, match="'199999' more than once"):
        voc.splits()
