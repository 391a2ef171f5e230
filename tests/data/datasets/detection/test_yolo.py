"""YOLO's text files: spellings of data.yaml, what is stored, what is refused or left out."""

import numpy as np
import pytest

from flax_mnv2.errors import ConfigError, DataError

ULTRALYTICS = {"place": "{kind}/{folder}", "folders": (("train", "train2017"), ("val", "val2017"))}
SPELLINGS = {
    "Roboflow's": {},
    "Ultralytics'": {
        "yaml": "path: ../datasets/pets\ntrain: images/train2017\nval: images/val2017\nnames:\n  0: cat\n  1: dog\n",
        **ULTRALYTICS,
    },
    "of another machine": {
        "yaml": "train: /content/datasets/pets/train/images\nval: C:\\pets\\valid\\images\nnames: {1: dog, 0: cat}\n"
    },
    "parents": {"yaml": "train: ./train\nvalid: [valid]\ntest: ''\nnames: [cat, dog]\n"},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("top", ["", "pets-3/"])
def test_spellings(boxes, load, assert_as_drawn, spelling, top):
    files = {f"{top}{name}": data for name, data in boxes.yolo_files(**SPELLINGS[spelling]).items()}
    dataset = assert_as_drawn(load("yolo", files, where="x.zip"), boxes.SPLITS, with_ignored=False)
    np.testing.assert_allclose(dataset.source("train")[0]["objects"]["area"], [60, 600], rtol=1e-4)


def test_lists_of_images_and_a_hold_out(boxes, load, assert_as_drawn):
    yaml = "train: [train.txt, images/val2017]\nnames: [cat, dog]\n"
    files = boxes.yolo_files(yaml, **ULTRALYTICS)
    files["train.txt"] = b"./images/train2017/a.jpg\n./images/train2017/b.jpg\n"
    assert_as_drawn(load("yolo", files, holdout=0), {"train": tuple("abde")}, with_ignored=False)
    assert load("yolo", files).num_examples == {"train": 3, "val": 1}


def test_text_beside_the_images_and_outlines(boxes, load):
    files = boxes.yolo_files("train: .\nnames: [cat, dog]\n", place="pets")
    files["pets/a.txt"] = b"1 0.1 0.2 0.5 0.2 0.5 0.9\n\n"
    dataset = load("yolo", files, holdout=0)
    source = dataset.source("train")
    np.testing.assert_allclose(source[0]["objects"]["bbox"], [[0.2, 0.1, 0.9, 0.5]], atol=1e-6)
    assert [len(source[index]["objects"]["bbox"]) for index in range(5)] == [1, 1, 0, 3, 1]


ONE_BOX = {
    "class": ("2 .5 .5 .1 .1", "its class 2 is not among the 2 names of data.yaml"),
    "fraction of a class": ("0.5 .5 .5 .1 .1", r"its class 0\.5 is not"),
    "pixels": ("1 15 10 4 4", "its coordinates are above 1: expected fractions of the image, found pixels"),
    "with probability": ("1 .5 .5 .1 .1 .9", "expected 'class x y width height', or the points"),
    "no area": ("1 .5 .5 0 .1", "it has no area"),
    "swapped": ("1 .5 .5 -.1 .1", "its corners are swapped"),
    "outside": ("1 .1 .5 .4 .1", "it reaches outside its image"),
    "not a number": ("1 nan .5 .4 .1", "its coordinates are not numbers"),
}


@pytest.mark.parametrize("case", ONE_BOX)
def test_a_wrong_box_is_named_or_left_out(boxes, load, left_behind, case):
    line, message = ONE_BOX[case]
    files = boxes.yolo_files() | {"train/labels/a.txt": f"{boxes.text('a').decode()}\n{line}\n".encode()}
    with pytest.raises(DataError, match=rf"x: train/labels/a\.txt: box 3, '{line}': {message}.*=skip"):
        load("yolo", files)
    assert not left_behind()
    dataset = load("yolo", files, bad_examples="skip")
    assert len(dataset.source("train")[0]["objects"]["label"]) == 2
    assert len(dataset.left_out["boxes"]) == 1


@pytest.mark.parametrize("content", [b"<annotation></annotation>", b'{"shapes": []}', b"\xff\xfe\x00"])
def test_a_label_file_of_another_kind_is_named_or_left_out(boxes, load, content):
    files = boxes.yolo_files() | {"train/labels/a.txt": content}
    with pytest.raises(DataError, match=r"train/labels/a\.txt(: line 1 is .*expected 'class x y| is not UTF-8 text)"):
        load("yolo", files)
    assert load("yolo", files, bad_examples="skip").num_examples == {"train": 2, "val": 2}


YAML = {
    "names: [cat, dog]\n": r"data\.yaml has neither train nor val",
    "train: train\nnames: [cat, dog]\nnc: 3\n": "'nc' is 3, but 'names' has 2 classes",
    "train: train\n": "has no 'names' of classes",
    "train: train\nnames: {1: cat, 2: dog}\n": r"'names' has the numbers \[1, 2\], expected 0, 1, 2",
    "train: train\nnames: [cat, cat]\n": "'names' has 'cat' more than once",
    "train: training\nnames: [cat, dog]\n": "names 'training', but there is no such folder or list",
    "train: train/labels\nnames: [cat, dog]\n": "says train: train/labels, where there are no images",
    "train: [train\n": r"data\.yaml is not whole YAML",
    "!!python/object/apply:os.getcwd []\n": r"data\.yaml is not whole YAML",
    "train: {a: b}\nnames: [cat, dog]\n": "should be text or lists of it",
    "train: train\nnames: [[cat], dog]\n": "should be text or lists of it",
    "train\n": r"data\.yaml is a str, expected fields",
}


@pytest.mark.parametrize("yaml", YAML)
def test_a_wrong_description_is_named(boxes, load, yaml):
    with pytest.raises(DataError, match=YAML[yaml]):
        load("yolo", boxes.yolo_files(yaml))


def test_no_description_or_several(boxes, load):
    files = boxes.yolo_files()
    del files["data.yaml"]
    with pytest.raises(DataError, match=r"should hold one data\.yaml; found none"):
        load("yolo", files)
    with pytest.raises(DataError, match=r"found several: a\.yaml, b\.yaml"):
        load("yolo", files | {"a.yaml": b"", "b.yaml": b""}, where="y")
    with pytest.raises(ConfigError, match=r"archive is empty, but yolo needs"):
        load("yolo", "")


def test_a_split_without_a_box(boxes, load):
    files = {name: data for name, data in boxes.yolo_files().items() if "valid/labels" not in name}
    with pytest.raises(DataError, match="none of the 2 images of the split val has a box"):
        load("yolo", files)
