import errno
import io
import unicodedata
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


def test_only_the_lists_asked_for_are_read(archives, tmp_path):
    """Neither those in folders below, which once took the place of the real ones, nor empty and odd ones beside."""
    files = archives.voc_files(root="", splits={"train": ["a", "b", "c"], "val": ["d"]})
    lists = "ImageSets/Segmentation/"
    files |= {f"{lists}train-old.txt": b"d\n", f"{lists}empty.txt": b"", f"{lists}test.txt": b"no_mask\n"}
    files |= {f"{lists}train_old/train.txt": b"d\n", f"{lists}.ipynb_checkpoints/train-checkpoint.txt": b"d\n"}
    with VocFiles(archives.write(tmp_path / "x.zip", files)) as voc:
        assert voc.splits(("train", "val")) == {"train": ["a", "b", "c"], "val": ["d"]}
        assert voc.splits(("train", "absent")) == {"train": ["a", "b", "c"]}
        assert voc.split_names == ["empty", "test", "train", "train-old", "val"]
        with pytest.raises(
            DataError, match=r"has no list .*/aug\.txt. It has empty, .*below are not read: .*train_old/"
        ):
            voc.splits(("aug",))


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "a.jpg",
        "a.png",
        "JPEGImages/a.jpg",
        "/data/VOC/JPEGImages/a.jpg",
        "/JPEGImages/a.jpg /SegmentationClass/a.png",
        "JPEGImages/a.jpg\tSegmentationClass/a.png",
        "JPEGImages\\a.jpg,SegmentationClass\\a.png",
        "/home/me/VOCdevkit/VOC2012/JPEGImages/a.jpg /home/me/VOCdevkit/VOC2012/SegmentationClass/a.png",
    ],
)
def test_lines_of_lists(archives, tmp_path, line):
    """As DeepLab, mmsegmentation and scripts of all sorts write them."""
    files = archives.voc_files(root="x")
    files["x/ImageSets/Segmentation/train.txt"] = f"{line}\nb\n".encode()
    with VocFiles(archives.write(tmp_path / "x.zip", files)) as voc:
        assert voc.splits(["train"]) == {"train": ["a", "b"]}
        assert voc.read_image("a") == files["x/JPEGImages/a.jpg"]
        assert voc.read_mask("a") == files["x/SegmentationClass/a.png"]


def test_lists_with_masks_of_another_folder(archives, tmp_path):
    files = archives.voc_files(root="")
    files["SegmentationClassAug/a.png"] = b"other"
    files["ImageSets/Segmentation/train.txt"] = b"/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"
    with VocFiles(archives.write(tmp_path / "x.zip", files)) as voc:
        assert voc.splits(["train"]) == {"train": ["a"]}
        assert voc.read_mask("a") == b"other"
    files["ImageSets/Segmentation/val.txt"] = b"JPEGImages/a.jpg SegmentationClass/a.png\n"
    with VocFiles(archives.write(tmp_path / "y.zip", files)) as voc, pytest.raises(DataError, match="two masks"):
        voc.splits(["train", "val"])


def test_ids_with_dots_spaces_and_accents(archives, tmp_path):
    ids = ["photo.v2", "a b", "a.jpg", "caf\u00e9"]
    files = archives.voc_files(root="", splits={"train": ids})
    files = {unicodedata.normalize("NFD", name): data for name, data in files.items()}  # as macOS packs them
    with VocFiles(archives.write(tmp_path / "x.zip", files)) as voc:
        assert voc.splits(["train"]) == {"train": ids}
        assert all(voc.read_mask(image_id) for image_id in ids)


def test_masks_where_labelme_puts_them(archives, tmp_path):
    files = archives.voc_files(root="")
    files = {name.replace("SegmentationClass/", "SegmentationClassPNG/"): data for name, data in files.items()} | {
        "SegmentationClass/a.npy": b"",
        "SegmentationClassVisualization/a.jpg": b"",
    }
    with VocFiles(archives.write(tmp_path / "x.zip", files)) as voc:
        assert voc.read_mask("a") == files["SegmentationClassPNG/a.png"]


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
    many = "".join(f"{index}\n" for index in range(40_000)) + "39999\n"  # without comparing all with all
    with _with_list(archives, tmp_path, many) as voc, pytest.raises(DataError, match="'39999' more than once"):
        voc.splits()
