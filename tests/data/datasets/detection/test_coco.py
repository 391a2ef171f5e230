"""COCO's JSON: layouts, what is stored, what is refused or left out."""

import json
import sys
import tarfile

import numpy as np
import pytest

from flax_mnv2.data.datasets.detection import sources
from flax_mnv2.data.datasets.registry import load_detection
from flax_mnv2.errors import ConfigError, DataError

TRAIN = "annotations/instances_train2017.json"
IDS = {name: str(index) for index, name in enumerate("abcde", 10)}


@pytest.mark.parametrize("where", ["folder", "x.tar", "x.zip"])
def test_official_layout(boxes, load, assert_as_drawn, where):
    dataset = assert_as_drawn(load("coco_detection", boxes.coco_files(), where=where), boxes.SPLITS, ids=IDS)
    assert (dataset.category_ids, dataset.integer_ids, dataset.left_out) == ((3, 7), True, {})
    first = dataset.source("train")[0]["objects"]
    assert first["area"].tolist() == [30, 300]  # the file's, half the boxes'
    assert first["id"].tolist() == [1000, 1001]
    assert "tensorflow" not in sys.modules


def test_roboflow_layout_without_its_root_category(boxes, load, assert_as_drawn):
    files = boxes.coco_files("roboflow")
    for name in files:
        if name.endswith(".json"):
            content = json.loads(files[name])
            for category in content["categories"]:
                category["supercategory"] = "pets"
            content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
            files[name] = json.dumps(content).encode()
    dataset = assert_as_drawn(load("coco_detection", files), boxes.SPLITS, ids=IDS)
    assert dataset.category_ids == (3, 7)


def test_one_file_is_held_out_from(boxes, load, assert_as_drawn):
    files = boxes.coco_files("single")
    dataset = load("coco_detection", files, holdout=0.4)
    ids = [[dataset.source(split)[i]["image_id"] for i in range(n)] for split, n in dataset.num_examples.items()]
    assert dataset.num_examples == {"train": 3, "val": 2}
    assert sorted(ids[0] + ids[1]) == sorted(IDS.values())
    whole = load("coco_detection", files, holdout=0)
    assert_as_drawn(whole, {"train": tuple("abcde")}, ids=IDS)


def test_folders_in_file_names_need_not_be_there(boxes, load, assert_as_drawn):
    files = boxes.coco_files("single")
    files["result.json"] = json.dumps(boxes.coco("abcde", folder="C:\\photos\\images\\")).encode()
    files |= {"thumbnails/a.jpg": boxes.image("b")}
    assert_as_drawn(load("coco_detection", files, holdout=0), {"train": tuple("abcde")}, ids=IDS)


def test_a_name_in_both_splits_is_found_in_its_own(boxes, load):
    files = boxes.coco_files("roboflow")
    files["valid/a.jpg"] = boxes.image("e")
    files["train/d.jpg"] = boxes.image("e")
    dataset = load("coco_detection", files)
    assert dataset.source("train")[0]["file_name"] == "train/a.jpg"
    assert dataset.source("val")[0]["file_name"] == "valid/d.jpg"


def _edited(change, file=TRAIN):
    def edit(files):
        content = json.loads(files[file])
        change(content)
        return files | {file: json.dumps(content).encode()}

    return edit


def _bbox(*numbers):
    return _edited(lambda content: content["annotations"][1].update(bbox=list(numbers)))


BOX = r"instances_train2017\.json: annotation 1001 in a\.jpg, bbox \[.*\]: "
ONE_BOX = {  # mistakes in one box, which bad_examples=skip leaves out
    "outside": (_bbox(5, 5, 10, 40), BOX + r"it reaches outside its image, 30x20 pixels"),
    "beyond": (_bbox(30, 5, 1, 1), BOX + "it lies outside its image"),
    "no area": (_bbox(5, 5, 0, 4), BOX + "it has no area"),
    "swapped": (_bbox(15, 5, -4, 4), BOX + "its width or height is below 0"),
    "fractions": (_bbox(0.1, 0.2, 0.5, 0.5), BOX + "its coordinates are all below 1: expected pixels"),
    "not a number": (_bbox(float("nan"), 2, 3, 4), BOX + "its coordinates are not numbers"),
    "three numbers": (_bbox(1, 2, 3), BOX + r"expected 'bbox' as \[x, y, width, height\]"),
    "class": (
        _edited(lambda content: content["annotations"][1].update(category_id=99)),
        BOX + "its category_id 99 is not among the categories",
    ),
    "image": (
        _edited(lambda content: content["annotations"][1].update(image_id=99)),
        r"annotation 1001 its image_id 99 is no image's",
    ),
}


@pytest.mark.parametrize("case", ONE_BOX)
def test_a_wrong_box_is_named_or_left_out(boxes, load, left_behind, case):
    edit, message = ONE_BOX[case]
    files = edit(boxes.coco_files())
    with pytest.raises(DataError, match=message + r".* or leave such boxes or images out: .*bad_examples=skip"):
        load("coco_detection", files)
    assert not left_behind()
    dataset = load("coco_detection", files, bad_examples="skip")
    assert dataset.source("train")[0]["objects"]["label"].tolist() == [1]
    assert len(dataset.left_out["boxes"]) == 1
    assert dataset.num_examples["train"] == 3


def test_a_box_that_sticks_out_by_rounding_is_clipped(boxes, load):
    dataset = load("coco_detection", _bbox(-0.6, 4, 31.5, 17)(boxes.coco_files()))
    np.testing.assert_allclose(dataset.source("train")[0]["objects"]["bbox"][1], [0.2, 0, 1, 1])


def _with(name, content):
    return lambda files: files | {name: content}


def _without(part):
    return lambda files: {name: data for name, data in files.items() if part not in name}


IMAGES = {
    "missing": (_without("train2017/b.jpg"), r"image 11: there is no image 'b\.jpg'"),
    "damaged": (_with("train2017/b.jpg", b"x"), r"train2017/b\.jpg is not a readable image"),
    "other size": (
        lambda files: files | {"train2017/b.jpg": files["train2017/a.jpg"]},
        r"train2017/b\.jpg is 30x20 \(width x height\), its annotation says 30x24",
    ),
}


@pytest.mark.parametrize("case", IMAGES)
def test_a_wrong_image_is_named_or_left_out(boxes, load, left_behind, case):
    edit, message = IMAGES[case]
    files = edit(boxes.coco_files())
    with pytest.raises(DataError, match=message):
        load("coco_detection", files)
    assert not left_behind()
    dataset = load("coco_detection", files, bad_examples="skip")
    assert [dataset.source("train")[index]["image_id"] for index in range(2)] == ["10", "12"]


def test_many_mistakes_are_one_message_and_a_budget(boxes, load):
    def change(content):
        for row in content["annotations"]:
            row["bbox"][2] = 0

    files = _edited(change)(boxes.coco_files())
    with pytest.raises(
        DataError, match=r"^3 boxes or images cannot be used:\n.* 1000 .*\n.* 1001 .*\n.* 1100 .*\nCorrect this, or"
    ):
        load("coco_detection", files)
    with pytest.raises(DataError, match=r"^3 boxes or images (.|\n)*allow more with --config\.data\.max_bad_examples"):
        load("coco_detection", files, bad_examples="skip", max_bad_examples=2)
    with pytest.raises(DataError, match="none of the 3 images of the split train has a box"):
        load("coco_detection", files, bad_examples="skip")


WHOLE = {
    "cut": (lambda files: files | {TRAIN: files[TRAIN][:-9]}, r"instances_train2017\.json is not whole JSON"),
    "no categories": (
        _with(TRAIN, b'{"images": [], "annotations": []}'),
        r"instances_train2017\.json has no list 'categories'",
    ),
    "a list": (_with(TRAIN, b"[]"), "has no list 'images' and no 'annotations'"),
    "image ids": (_edited(lambda c: c["images"][1].update(id=10)), "has the id 10 more than once among its images"),
    "box ids": (
        _edited(lambda c: c["annotations"][1].update(id=1000)),
        "has the id 1000 more than once among its annotations",
    ),
    "no id": (_edited(lambda c: c["images"][1].pop("id")), "something without an integer 'id' among its images"),
    "one name": (_edited(lambda c: c["categories"][1].update(name="cat")), "has the name 'cat' for several"),
    "no class": (_edited(lambda c: c["categories"].clear()), "has no categories"),
    "others": (
        _edited(lambda c: c["categories"][1].update(name="eel"), "annotations/instances_val2017.json"),
        r"instances_val2017\.json has the category 7 'eel', .*train2017\.json has 'dog'",
    ),
    "no split": (
        lambda files: files | {"annotations/instances_default.json": files[TRAIN]},
        r"which split annotations/instances_default\.json is of is not clear",
    ),
    "twice": (
        lambda files: files | {"old/instances_train.json": files[TRAIN]},
        r"has annotations/instances_train2017\.json and old/instances_train\.json for the split train",
    ),
    "none": (_without("json"), "holds no COCO JSON"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_wrong_file_is_named(boxes, load, left_behind, case):
    edit, message = WHOLE[case]
    files = edit(boxes.coco_files())
    with pytest.raises(DataError, match=message):
        load("coco_detection", files, bad_examples="skip")
    assert not left_behind()


def test_without_the_archives_one_message_says_which(tmp_path):
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "downloads" / "manual" / "val2017.zip").write_bytes(b"")
    with pytest.raises(DataError) as error:
        load_detection({"dataset": "coco_detection", "data_dir": str(tmp_path)})
    message = str(error.value)
    assert f"not complete in {tmp_path}/downloads/manual" in message
    assert "http://images.cocodataset.org/zips/train2017.zip (18 GB)" in message
    assert "http://images.cocodataset.org/annotations/annotations_trainval2017.zip" in message
    assert "val2017.zip (1 GB)" not in message


def test_the_official_zips_are_one_data_set(boxes, archives, tmp_path, assert_as_drawn):
    place, files = tmp_path / "downloads" / "manual", boxes.coco_files()
    place.mkdir(parents=True)
    for zip_name, prefix in zip(sources._COCO_FILES, ("annotations/", "train2017/", "val2017/"), strict=True):
        archives.write(place / zip_name, {name: files[name] for name in files if name.startswith(prefix)})
    data = {"dataset": "coco_detection", "data_dir": str(tmp_path)}
    assert_as_drawn(load_detection(data), boxes.SPLITS, ids=IDS)
    for path in place.iterdir():
        path.unlink()
    assert load_detection(data).num_examples == {"train": 3, "val": 2}  # prepared, so no longer needed


def test_a_split_is_known_by_its_images_and_boxes(boxes, load):
    first = load("coco_detection", boxes.coco_files()).fingerprint("train")
    assert load("coco_detection", boxes.coco_files(), where="moved").fingerprint("train") == first
    for where, edit in (
        ("box", _bbox(5, 5, 4, 4)),
        ("image", _with("train2017/b.jpg", boxes.voc_archives.jpeg(*boxes.SIZES["b"], seed=0))),
    ):
        assert (
            load("coco_detection", edit(boxes.coco_files()), where=where).fingerprint("train")["digest"]
            != first["digest"]
        )


def test_wrong_fields(boxes, load):
    with pytest.raises(ConfigError, match=r"holdout is 1\.0, expected a fraction"):
        load("coco_detection", boxes.coco_files(), holdout=1.0)
    with pytest.raises(ConfigError, match=r"bad_examples must be one of 'fail', 'skip'"):
        load("coco_detection", boxes.coco_files(), bad_examples="no")
    with pytest.raises(ConfigError, match=r"num_classes is 5, but coco_detection has 2"):
        load("coco_detection", boxes.coco_files(), num_classes=5)
    with pytest.raises(ConfigError, match=r"labels of coco_detection are fixed"):
        load("coco_detection", boxes.coco_files(), labels="a,b")


def test_coco128(shared, load):
    path = shared / "data" / "coco128.tar"
    dataset = load("coco_detection", path)
    assert (len(dataset.labels), dataset.category_ids[-1], dataset.labels[-1]) == (80, 90, "toothbrush")
    with tarfile.open(path) as tar:
        for split, count in (("train", 96), ("val", 32)):
            content = json.load(tar.extractfile(f"annotations/instances_{split}2017.json"))
            source = dataset.source(split)
            examples = [source[index] for index in range(len(source))]
            assert len(examples) == len(content["images"]) == count
            stored = sum(len(example["objects"]["label"]) for example in examples)
            crowds = sum(example["objects"]["ignored"].sum() for example in examples)
            assert (stored, crowds) == (len(content["annotations"]), sum(a["iscrowd"] for a in content["annotations"]))
            rows = {row["id"]: row for row in content["annotations"]}
            for example in examples:
                height, width = example["height"], example["width"]
                for bbox, label, box_id in zip(*(example["objects"][k] for k in ("bbox", "label", "id")), strict=True):
                    y0, x0, y1, x1 = bbox * (height, width, height, width)
                    row = rows[int(box_id)]
                    np.testing.assert_allclose([x0, y0, x1 - x0, y1 - y0], row["bbox"], rtol=0, atol=0.02)
                    assert dataset.category_ids[label] == row["category_id"]
                    assert int(example["image_id"]) == row["image_id"]
