"""Folders of images as tools export them: what is read as which split and class, and what is refused."""

import unicodedata

import pytest

from flax_mnv2.data.archives.archive import open_tree
from flax_mnv2.data.datasets.folder_layout import find_layout
from flax_mnv2.data.datasets.registry import load_classification
from flax_mnv2.errors import DataError

CAFE, DECOMPOSED = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")


@pytest.fixture
def layout(tmp_path):
    def call(folders, *, files=(), **options):
        """The layout of two images in each folder, and of single files."""
        for name in [*(f"{folder}/{index}.jpg" for folder in folders for index in range(2)), *files]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        with open_tree(tmp_path) as tree:
            return find_layout(tree, holdout=0.1, **options)

    return call


def counts(found):
    return {split: len(images) for split, images in found.splits.items()}


def exported(*splits, classes=("cat", "dog")):
    return [f"{split}/{label}" for split in splits for label in classes]


LAYOUTS = {
    "Roboflow, fastai": (exported("train", "valid", "test"), {"train": 4, "val": 4, "test": 4}),
    "capitals": (exported("Training", "Testing"), {"train": 4, "test": 4}),
    "more capitals": (exported("TRAIN", "VAL"), {"train": 4, "val": 4}),
    "Keras": (exported("train", "Validation"), {"train": 4, "validation": 4}),
    "sets": (exported("training_set", "test_set"), {"train": 4, "test": 4}),
    "twice": (exported("training_set/training_set", "test_set/test_set"), {"train": 4, "test": 4}),
    "below": (exported("photos v2/train", "photos v2/test images"), {"train": 4, "test": 4}),
    "dev": (exported("train", "dev"), {"train": 4, "val": 4}),
    "a class called train": (["bus", "car", "train"], {"train": 3, "val": 3}),
    "a class called test": (["control", "test"], {"train": 2, "val": 2}),
    "a class called valid": (["invalid", "valid"], {"train": 2, "val": 2}),
    "classes called train in splits": (exported("train", "val", classes=("bus", "train")), {"train": 4, "val": 4}),
    "held out": (exported("train"), {"train": 2, "val": 2}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(layout, name):
    folders, expected = LAYOUTS[name]
    found = layout(folders)
    assert counts(found) == expected
    assert set(found.labels) == {folder.rpartition("/")[2] for folder in folders}
    assert found.read.keys() == expected.keys()


REFUSED = {
    "splits in classes": (exported("cat", "dog", classes=("train", "test")), "test inside cat looks like a split"),
    "one split in classes": (["cat", "cat/test", "dog"], "test inside cat looks like a split.*move it to test/cat"),
    "splits deeper in classes": (["cat/a/train", "dog"], "train inside cat looks like a split"),
    "no classes": (["train", "test"], "holds the folders test, train, which look like splits"),
    "parts of names": (exported("seg_train", "seg_test"), "seg_test, seg_train, which look like splits"),
    "years": (exported("train2017", "val2017"), "which look like splits"),
    "one split twice": (exported("train", "val", "valid"), "holds val and valid, which both name the split val"),
    "only test": (exported("test"), r"the folder test, but no folder train.*--config\.data\.eval_split"),
    "test beside classes": (["cat", "dog", *exported("test")], "holds the folders cat, dog, test, but no folder train"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(layout, name):
    folders, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        layout(folders)


def test_what_nobody_asked_for_blocks_nothing(layout, tmp_path):
    """A test set without labels, as of Kaggle's competitions, and one with a class too many."""
    folders = [*exported("train", "val"), "test", *exported("validation", classes=("cat", "eel"))]
    found = layout(folders, asked=("train", "val"))
    assert counts(found) == {"train": 4, "val": 4}
    assert found.left_out.keys() == {"test", "validation"}
    assert "test/0.jpg, which is in no class folder" in found.left_out["test"]
    for split, message in (("test", "in no class folder"), ("validation", "the class eel in validation")):
        with pytest.raises(DataError, match=message):
            layout([], asked=("train", split))


def test_a_test_set_without_labels_does_not_stand_in_for_an_evaluation(layout):
    assert counts(layout([*exported("train"), "test"], asked=("train", "val"))) == {"train": 2, "val": 2}


def test_accents_of_one_class(layout):
    """As written on macOS in one split and elsewhere in the other; both in one split are one class too."""
    folders = [f"train/{CAFE}", "train/dog", f"val/{DECOMPOSED}", "val/dog"]
    found = layout(folders, files=[f"train/{DECOMPOSED}/other.jpg"])
    assert found.labels == (CAFE, "dog")
    assert counts(found) == {"train": 5, "val": 4}


def test_the_data_set_says_what_it_read(archives, tmp_path):
    files = {f"{split}/{label}/{i}.jpg": archives.jpeg(seed=i) for split, label, i in (
        ("train", "cat", 0), ("train", "cat", 1), ("train", "cat", 2), ("train", "dog", 3), ("Valid", "dog", 4),
    )}  # fmt: skip
    files["test/0.jpg"] = archives.jpeg()
    data = {"dataset": "image_folder", "data_dir": str(tmp_path / "data")}
    data["archive"] = str(archives.write(tmp_path / "x.zip", files))
    for _ in range(2):  # and again where it is prepared
        dataset = load_classification(data)
        *read, left_out = dataset.notes()
        assert read == ["train: 4 images, train", "val: 1 images, Valid"]
        assert left_out.startswith("test: left out. ")
        assert dataset.histogram() == [
            "class       train         val",
            "cat       75.000%           -",
            "dog       25.000%    100.000%",
        ]
        with pytest.raises(DataError, match="no split 'test' here; it has train, val"):
            dataset.source("test")
        with pytest.raises(DataError, match=r"test/0\.jpg, which is in no class folder"):
            load_classification({**data, "eval_split": "test"})


def test_only_a_test_split_names_the_setting(archives, tmp_path):
    files = {f"{split}/{label}/0.jpg": archives.jpeg() for split in ("train", "test") for label in ("cat", "dog")}
    data = {"dataset": "image_folder", "data_dir": str(tmp_path / "data")}
    dataset = load_classification({**data, "archive": str(archives.write(tmp_path / "x.zip", files))})
    with pytest.raises(DataError, match=r"no split 'val' here; it has train, test. .*--config\.data\.eval_split"):
        dataset.source("val")
