"""VOC's XML: layouts, what is stored, what is refused or left out."""

import hashlib
import tarfile
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from flax_mnv2.data.datasets.detection import sources
from flax_mnv2.data.datasets.registry import known_num_classes, load_detection
from flax_mnv2.errors import ConfigError, DataError

ROOT = "VOCdevkit/VOC2007/"
CUSTOM = "voc_detection/custom"


@pytest.mark.parametrize("root", [ROOT, "BCCD/", ""])
@pytest.mark.parametrize("where", ["folder", "x.tgz"])
def test_lists_of_ids(boxes, load, assert_as_drawn, root, where):
    dataset = assert_as_drawn(load(CUSTOM, boxes.voc_files(root=root), where=where), boxes.SPLITS)
    assert (dataset.category_ids, dataset.integer_ids) == ((1, 2), False)
    first = dataset.source("train")[0]["objects"]
    assert first["id"].tolist() == [-1, -1]
    np.testing.assert_allclose(first["area"], [60, 600], rtol=1e-6)


def test_xml_beside_the_images_by_split(boxes, load, assert_as_drawn):
    assert_as_drawn(load(CUSTOM, boxes.voc_files("roboflow")), boxes.SPLITS)


def test_xml_without_lists_is_held_out_from(boxes, load, assert_as_drawn):
    files = boxes.voc_files("single", root="my-test-photos/")
    assert load(CUSTOM, files).num_examples == {"train": 4, "val": 1}
    assert_as_drawn(load(CUSTOM, files, holdout=0), {"train": tuple("abcde")})


def test_labels_are_given_or_found(boxes, load, tmp_path):
    files = boxes.voc_files()
    assert load(CUSTOM, files, labels="dog,cat").labels == ("dog", "cat")
    names = tmp_path / "names.txt"
    names.write_text("dog\ncat\neel\n")
    dataset = load(CUSTOM, files, labels=str(names), num_classes=3)
    assert dataset.labels == ("dog", "cat", "eel")
    assert dataset.source("train")[0]["objects"]["label"].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"object 1, 'dog' .*: its class is not among cat\b"):
        load(CUSTOM, files, labels="cat")
    only_cats = load(CUSTOM, files, labels="cat", bad_examples="skip")
    assert (len(only_cats.left_out["boxes"]), only_cats.max_boxes) == (3, {"train": 1, "val": 1})
    with pytest.raises(ConfigError, match="there is no such file"):
        load(CUSTOM, files, labels="absent.txt")
    with pytest.raises(ConfigError, match="'cat' more than once"):
        load(CUSTOM, files, labels="cat,cat")


def test_an_image_by_the_name_in_the_file_and_a_size_of_0(boxes, load):
    files = boxes.voc_files("single", root="")
    files["Annotations/other.xml"] = boxes.xml("a", size=(0, 0))
    files.pop("Annotations/a.xml")
    dataset = load(CUSTOM, files, holdout=0)
    source = dataset.source("train")
    [example] = [source[index] for index in range(5) if source[index]["image_id"] == "other"]
    np.testing.assert_allclose(example["objects"]["bbox"], boxes.fractions("a"))


def _object(name="cat", xmin=3, ymin=4, xmax=9, ymax=9):
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


ONE_BOX = {
    "outside": (_object(xmax=33), "it reaches outside its image, 30x20 pixels"),
    "no area": (_object(xmin=10, xmax=9), "it has no area"),
    "swapped": (_object(xmin=20), "its corners are swapped"),
    "fractions": (_object(xmin=0.1, xmax=0.5, ymin=0.1, ymax=0.4), "its coordinates are all below 1: expected pixels"),
    "text": (_object(xmin="x"), "expected a <bndbox> with the numbers"),
    "none": ("<object><name>cat</name></object>", "expected a <bndbox> with the numbers"),
    "infinite": (_object(xmax="inf"), "its coordinates are not numbers"),
}


@pytest.mark.parametrize("case", ONE_BOX)
def test_a_wrong_box_is_named_or_left_out(boxes, load, left_behind, case):
    added, message = ONE_BOX[case]
    files = boxes.voc_files() | {f"{ROOT}Annotations/a.xml": boxes.xml("a", objects=added)}
    with pytest.raises(DataError, match=rf"x: {ROOT}Annotations/a\.xml: object 1, 'cat' .*: {message}.*=skip"):
        load(CUSTOM, files)
    assert not left_behind()
    dataset = load(CUSTOM, files, bad_examples="skip")
    assert len(dataset.source("train")[0]["objects"]["label"]) == 2
    assert len(dataset.left_out["boxes"]) == 1


def test_a_box_of_one_pixel_and_one_from_0(boxes, load):
    """The last pixel counts; tools that count from 0 are off by one, which is clipped."""
    added = _object(xmin=5, xmax=5, ymin=6, ymax=6) + _object(xmin=0, ymin=0, xmax=30, ymax=21)
    files = boxes.voc_files() | {f"{ROOT}Annotations/a.xml": boxes.xml("a", objects=added)}
    found = load(CUSTOM, files).source("train")[0]["objects"]
    np.testing.assert_allclose(found["bbox"][:2], [[5 / 20, 4 / 30, 6 / 20, 5 / 30], [0, 0, 1, 1]], rtol=1e-6)
    assert found["area"][0] == pytest.approx(1)


# Entities that say a billion times as much as they hold.
BOMB = b"<!DOCTYPE a [<!ENTITY e0 'ha'>" + b"".join(
    b"<!ENTITY e%d '%s'>" % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 10)
)
BOMB += b"]><annotation>&e9;</annotation>"
FILES = {
    "cut": (b"<annotation><object>", "it is not whole XML"),
    "another kind": (b"<kml></kml>", "its element is <kml>, expected VOC's <annotation>"),
    "bomb": (BOMB, "it is not whole XML"),
    "no image": (b"<annotation><filename>zz.jpg</filename></annotation>", r"there is no image 'zz\.jpg'"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_is_named_or_left_out(boxes, load, case):
    content, message = FILES[case]
    files = boxes.voc_files() | {f"{ROOT}Annotations/c.xml": content}
    if case == "no image":
        files.pop(f"{ROOT}JPEGImages/c.jpg")
    with pytest.raises(DataError, match=rf"{ROOT}Annotations/c\.xml: {message}"):
        load(CUSTOM, files)
    assert load(CUSTOM, files, bad_examples="skip").num_examples == {"train": 2, "val": 2}


def test_wrong_lists(boxes, load):
    listed = f"{ROOT}ImageSets/Main/train.txt"
    with pytest.raises(DataError, match=r"Annotations/zz\.xml: the split train lists it, but there is no such file"):
        load(CUSTOM, boxes.voc_files() | {listed: b"a\nzz"})
    with pytest.raises(DataError, match=r"Main/train\.txt lists 'a' more than once"):
        load(CUSTOM, boxes.voc_files() | {listed: b"a\nb\na"})
    with pytest.raises(DataError, match=r"has the lists .*VOC2007.*VOC2012"):
        load(CUSTOM, boxes.voc_files() | boxes.voc_files(root="VOCdevkit/VOC2012/"), where="y")
    with pytest.raises(DataError, match="none of the 1 images of the split train has a box"):
        load(CUSTOM, boxes.voc_files() | {listed: b"c"})
    with pytest.raises(DataError, match="holds no XML files"):
        load(CUSTOM, {"a.jpg": boxes.image("a")}, where="z")


@pytest.fixture
def official(boxes, archives, tmp_path, monkeypatch):
    """Stand-ins for the three tars in a folder, known by their digests; classes are VOC's."""
    folder = tmp_path / "official"
    folder.mkdir()

    def renamed(names, year, lists):
        root = f"VOCdevkit/VOC{year}/"
        files = boxes.voc_files("single", root=root)
        files = {
            name: data.replace(b">dog<", b">person<") for name, data in files.items() if name.split("/")[-1][0] in names
        }
        return files | {f"{root}ImageSets/Main/{split}.txt": "\n".join(ids).encode() for split, ids in lists.items()}

    contents = (
        renamed("abc", 2007, {"train": "a", "val": "bc", "trainval": "abc"}),
        renamed("de", 2007, {"test": "de"}),
        renamed("de", 2012, {"train": "d", "val": "e", "trainval": "de"}),
    )
    stand_ins = []
    for file, content in zip(sources._EDITIONS["2007+2012"].files, contents, strict=True):
        path = archives.write(folder / file.name, content)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        stand_ins.append(file.__class__(**{**vars(file), "size": None, "algorithm": "sha256", "digest": digest}))
    for year, files in (("2007", stand_ins[:2]), ("2012", stand_ins[2:]), ("2007+2012", stand_ins)):
        edition = sources._EDITIONS[year]
        monkeypatch.setitem(sources._EDITIONS, year, sources._Edition(files=tuple(files), splits=edition.splits))
    return folder


def test_official_editions(load, official):
    both = load("voc_detection/2007+2012", official)
    assert len(both.labels) == known_num_classes("voc_detection/2007+2012") == 20
    ids = [[both.source(split)[i]["image_id"] for i in range(n)] for split, n in both.num_examples.items()]
    assert (list(both.num_examples), ids) == (["train", "val"], [["a", "b", "c", "d", "e"], ["d", "e"]])
    assert [both.labels[label] for label in both.source("val")[0]["objects"]["label"]] == ["person", "person", "cat"]
    assert load("voc_detection/2012", official).num_examples == {"train": 1, "trainval": 2, "val": 1}
    (official / "VOCtest_06-Nov-2007.tar").unlink()
    with pytest.raises(DataError, match=r"no file .*/VOCtest_06-Nov-2007\.tar.*to have them downloaded"):
        load("voc_detection/2007", official)


def test_without_the_archives_one_message_says_which(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files = [
        file.__class__(**{**vars(file), "urls": ("http://127.0.0.1:9/x",)}) for file in sources._EDITIONS["2007"].files
    ]
    monkeypatch.setitem(sources._EDITIONS, "2007", sources._Edition(files=files, splits={}))
    with pytest.raises(DataError, match=r"Download VOCtrainval_06-Nov-2007\.tar \(about 460 MB, md5 c52e.*put it at"):
        load_detection({"dataset": "voc_detection/2007", "data_dir": str(tmp_path)})


def test_bccd(shared, load):
    path = shared / "data" / "bccd_voc.tar"
    dataset = load(CUSTOM, path)
    assert dataset.labels == ("Platelets", "RBC", "WBC")
    assert dataset.num_examples == {"train": 205, "val": 87, "test": 72, "trainval": 292}
    with tarfile.open(path) as tar:
        for split, total in dataset.num_examples.items():
            ids = tar.extractfile(f"BCCD/ImageSets/Main/{split}.txt").read().decode().split()
            source, count = dataset.source(split), 0
            assert len(ids) == total
            for index, image_id in enumerate(ids):
                root = ElementTree.fromstring(tar.extractfile(f"BCCD/Annotations/{image_id}.xml").read())
                example = source[index]
                names = [each.findtext("name") for each in root.iter("object")]
                assert example["image_id"] == image_id
                assert [dataset.labels[label] for label in example["objects"]["label"]] == names
                count += len(names)
            assert count > 900
