"""Images in folders by split and class: which layouts are understood, what is stored, and what is refused."""

import io
import os
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flax_mnv2.data.datasets import examples
from flax_mnv2.data.datasets.prepared import LOCK_FILE
from flax_mnv2.data.datasets.registry import load_classification
from flax_mnv2.data.decode import decode_image, decode_rgb
from flax_mnv2.errors import ConfigError, DataError


@pytest.fixture
def load(tmp_path):
    def call(archive="", **data):
        data = {"dataset": "image_folder", "data_dir": str(tmp_path / "prepared"), "archive": str(archive), **data}
        return load_classification(data)

    return call


def image(kind="JPEG", seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode=mode if mode == "CMYK" else None).save(buffer, kind)
    return buffer.getvalue()


def files(splits=("train", "test"), classes=("cat", "dog"), count=2, top=""):
    """Distinct images of every class, as a dict from path to bytes."""
    paths = [
        f"{top}{f'{split}/' if split else ''}{label}/{i}.jpg"
        for split in splits
        for label in classes
        for i in range(count)
    ]
    return {path: image(seed=seed) for seed, path in enumerate(paths)}


def names(dataset, split):
    source = dataset.source(split)
    return [source[index]["file_name"] for index in range(len(source))]


def left_behind(tmp_path):
    return [path for path in (tmp_path / "prepared").rglob("*") if path.is_file() and path.name != LOCK_FILE]


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.tgz", "x.zip"])
@pytest.mark.parametrize("top", ["", "photos/of 2024/"])
def test_folder_and_archives(archives, tmp_path, load, kind, top):
    content = files(top=top)
    clutter = {f"{top}train/cat/.hidden.jpg": b"x", f"{top}train/Thumbs.db": b"x", f"{top}.DS_Store": b"x"}
    readme = {f"{top}README.txt": b"Read me."}
    dataset = load(archives.write(tmp_path / kind, {**content, **clutter, **readme}))
    assert (dataset.name, dataset.labels, dataset.split_names) == ("image_folder", ("cat", "dog"), ("train", "test"))
    assert names(dataset, "train") == [
        f"{top}train/{name}" for name in ("cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg")
    ]
    for split in dataset.split_names:
        source = dataset.source(split)
        assert [source[index]["label"] for index in range(4)] == [0, 0, 1, 1]
        for index in range(4):
            assert source[index]["image"] == content[source[index]["file_name"]]
    assert "tensorflow" not in sys.modules


def test_split_names_are_kept_and_classes_may_be_nested(archives, tmp_path, load):
    content = {
        **files(("train", "val", "validation", "test")),
        "train/cat/more/deep.png": image("PNG"),
        "notes/about.txt": b"no image",
    }
    dataset = load(archives.write(tmp_path / "x", content))
    assert dataset.split_names == ("train", "val", "validation", "test")
    assert [name for name in names(dataset, "train") if "deep" in name] == ["train/cat/more/deep.png"]
    assert names(dataset, "validation")[0] == "validation/cat/0.jpg"


def test_a_class_may_be_absent_from_the_evaluation(archives, tmp_path, load):
    content = {**files(("train",), ("ant", "bee", "cat")), **files(("val",), ("cat",))}
    dataset = load(archives.write(tmp_path / "x", content))
    assert [dataset.source("val")[index]["label"] for index in range(2)] == [2, 2]


@pytest.mark.parametrize("layout", ["train/", ""])
def test_held_out(archives, tmp_path, load, layout):
    content = files((layout.rstrip("/"),), ("cat", "dog", "eel"), 30)
    content |= {f"{layout}fox/only.jpg": image(seed=999)}
    dataset = load(archives.write(tmp_path / "x", content))
    assert dataset.split_names == ("train", "val")
    train, held_out = names(dataset, "train"), names(dataset, "val")
    assert set(train) | set(held_out) == set(content)
    assert not set(train) & set(held_out)
    counts = [sum(f"{label}/" in name for name in held_out) for label in dataset.labels]
    assert (dataset.labels, counts) == (("cat", "dog", "eel", "fox"), [3, 3, 3, 0])
    assert {name.rpartition("/")[2] for name in held_out if "cat" in name} != {"0.jpg", "1.jpg", "2.jpg"}
    # By names alone: neither the kind of archive, nor its place, nor the order inside, nor what lies above.
    reordered = {f"top/{name}": content[name] for name in reversed(content)}
    again = load(archives.write(tmp_path / "elsewhere.tar", reordered))
    assert names(again, "val") == [f"top/{name}" for name in held_out]
    more = load(tmp_path / "x", holdout=0.5)
    assert set(held_out) < set(names(more, "val"))
    assert len(names(more, "val")) == 45
    assert load(tmp_path / "x", holdout=0.0).split_names == ("train",)


def test_every_class_gives_one_at_least(archives, tmp_path, load):
    dataset = load(archives.write(tmp_path / "x", files(("",), ("cat", "dog"), 3)), holdout=0.01)
    assert [name.partition("/")[0] for name in names(dataset, "val")] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "L"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("GIF", "L"),
        ("TIFF", "RGB"),
        ("AVIF", "RGB"),
    ],
)
def test_kinds_of_images_that_both_pipelines_read(archives, tmp_path, load, kind, mode):
    data = image(kind, mode=mode)
    dataset = load(archives.write(tmp_path / "x", {**files(), "train/cat/other": data}))
    source = dataset.source("train")
    stored = next(source[i]["image"] for i in range(len(source)) if source[i]["file_name"] == "train/cat/other")
    assert stored == data
    assert decode_image(stored).shape == np.asarray(decode_rgb(stored)).shape == (12, 16, 3)


def test_prepared_once_and_anew_after_a_change(archives, tmp_path, load):
    path = archives.write(tmp_path / "x", files())
    assert len(load(path).source("train")) == 4
    described = list((tmp_path / "prepared").rglob("dataset_info.json"))
    written = described[0].stat().st_mtime_ns
    assert len(load(path).source("train")) == 4
    assert [file.stat().st_mtime_ns for file in described] == [written]
    assert described == list((tmp_path / "prepared").rglob("dataset_info.json"))
    (path / "train" / "cat" / "new.jpg").write_bytes(image(seed=50))
    assert len(load(path).source("train")) == 5


def test_it_is_a_tfds_data_set(archives, tmp_path, load):
    load(archives.write(tmp_path / "x", files()))
    [description] = (tmp_path / "prepared").rglob("dataset_info.json")
    builder = tfds.builder_from_directory(description.parent)
    assert builder.info.features["label"].names == ["cat", "dog"]
    assert builder.as_data_source("test")[0]["image"].shape == (12, 16, 3)


def test_nothing_stays_in_the_temporary_folder(archives, tmp_path, load, monkeypatch):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    load(archives.write(tmp_path / "x.tgz", files()))
    assert not list(place.iterdir())


BROKEN = {
    "class folder without images": ({"train/eel/.keep": b""}, "the class folder train/eel holds no images"),
    "text among the images": ({"train/cat/a.txt": b"text"}, r"train/cat/a\.txt is not a readable image .*JPEG, PNG"),
    "empty file": ({"train/cat/a.jpg": b""}, r"train/cat/a\.jpg is not a readable image \(it is empty\)"),
    "cut JPEG": ({"test/dog/a.jpg": image()[:-60]}, r"test/dog/a\.jpg is not a readable image .*truncated"),
    "cut PNG": ({"test/dog/a.png": image("PNG")[:-60]}, r"test/dog/a\.png is not a readable image"),
    "cut GIF": ({"train/cat/a.gif": image("GIF", mode="L")[:-60]}, r"train/cat/a\.gif is not a readable image"),
    "class unknown to train": ({"test/eel/a.jpg": image()}, "the class eel in test, which train has not.*cat, dog"),
    "in no class": ({"train/a.jpg": image()}, r"holds train/a\.jpg, which is in no class folder"),
    "in no split": ({"extra/a.jpg": image()}, r"holds extra/a\.jpg, which is in none of the splits train, val"),
    "spaces": ({"train/eel /a.jpg": image()}, "the class folder 'eel ' has spaces"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_named_and_nothing_is_left(archives, tmp_path, load, case):
    added, message = BROKEN[case]
    path = archives.write(tmp_path / "x.tar", {**files(), **added})
    with pytest.raises(DataError, match=message):
        load(path, eval_split="test")
    assert not left_behind(tmp_path)
    archives.write(path, files())
    assert len(load(path).source("train")) == 4


BAD_FILES = {
    "train/cat/cut.jpg": image()[:-60],
    "train/dog/page.jpg": b"<html>404</html>",
    "test/dog/empty.png": b"",
}


def test_all_bad_files_are_named_at_once(archives, tmp_path, load):
    path = archives.write(tmp_path / "x", {**files(), **BAD_FILES})
    with pytest.raises(DataError) as caught:
        load(path)
    assert all(name in str(caught.value) for name in BAD_FILES)
    assert str(caught.value).startswith("3 files cannot be used:")
    assert "--config.data.bad_examples=skip" in str(caught.value)
    assert not left_behind(tmp_path)


def test_with_skip_bad_files_are_left_out_and_recorded(archives, tmp_path, load):
    path = archives.write(tmp_path / "x", {**files(), **BAD_FILES})
    with pytest.raises(DataError, match=r"3 files cannot be used, more than config\.data\.max_bad_examples = 2:"):
        load(path, bad_examples="skip", max_bad_examples=2)
    assert not left_behind(tmp_path)
    for _ in range(2):  # when it is prepared, and when it is only opened
        dataset = load(path, bad_examples="skip", max_bad_examples=3)
        assert {split: len(messages) for split, messages in dataset.left_out.items()} == {"train": 2, "test": 1}
        assert names(dataset, "train") == [name for name in sorted(files()) if name.startswith("train/")]
    with pytest.raises(DataError, match=r"3 files cannot be used:(.|\n)*was prepared without them: delete it"):
        load(path)  # by default nothing is left out
    assert load(archives.write(tmp_path / "whole", files()), bad_examples="skip").left_out == {}


@pytest.mark.parametrize(
    ("prefix", "message"), [("train/cat/", "no image of the class cat in train"), ("test/", "of the split test")]
)
def test_with_skip_no_class_and_no_split_vanishes(archives, tmp_path, load, prefix, message):
    content = {name: b"rubbish" if name.startswith(prefix) else data for name, data in files().items()}
    with pytest.raises(DataError, match=message):
        load(archives.write(tmp_path / "x", content), bad_examples="skip")


def test_a_fingerprint_is_that_of_the_examples_not_of_their_place(archives, tmp_path, load):
    first = load(archives.write(tmp_path / "x", files()))
    moved = load(archives.write(tmp_path / "elsewhere.zip", {f"top/{name}": data for name, data in files().items()}))
    changed = load(archives.write(tmp_path / "y", {**files(), "train/cat/0.jpg": image(seed=77)}))
    relabelled = load(
        archives.write(tmp_path / "z", {name.replace("cat", "ant"): data for name, data in files().items()})
    )
    assert first.fingerprint("train")["digest"] == moved.fingerprint("train")["digest"]
    assert len({each.fingerprint("train")["digest"] for each in (first, changed, relabelled)}) == 3
    assert first.fingerprint("test") == changed.fingerprint("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"README": b"hello"}, "has 0 class folders|holds no images"),
        ({"train/cat/.keep": b""}, "holds no images in train"),
        (files(("test",)), "holds the folder test, but no folder train"),
        (files(("train",), ("cat",)), r"has 1 class folder \(cat\), expected two or more"),
        (files(("",), ("cat", "dog"), 1), "none can be held out of train"),
    ],
)
def test_other_layouts(archives, tmp_path, load, content, message):
    with pytest.raises(DataError, match=message):
        load(archives.write(tmp_path / "x", content))
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "tar", "tgz", "zip"])
def test_an_empty_class_folder(archives, tmp_path, load, kind):
    path = archives.write(tmp_path / "x", files())
    (path / "train" / "eel").mkdir()
    if kind != "folder":
        path = _packed(path, tmp_path / f"x.{kind}")
    with pytest.raises(DataError, match="the class folder train/eel holds no images"):
        load(path)


def _packed(folder, path):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for entry in sorted(folder.rglob("*")):
                archive.write(entry, entry.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            archive.add(folder, ".")
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")  # of zipfile, which writes it all the same
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_that_stands_twice(tmp_path, load, kind):
    path = tmp_path / f"x.{kind}"
    content = [*files().items(), ("./train/cat/0.jpg", image(seed=77))]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content:
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in content:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match=r"holds train/cat/0\.jpg more than once"):
        load(path)


def test_a_name_that_is_not_text(archives, tmp_path, load):
    path = archives.write(tmp_path / "x", files())
    with open(os.fsencode(path / "train" / "cat") + b"/\xff.jpg", "wb") as file:
        file.write(image())
    with pytest.raises(DataError, match=r"whose name is not UTF-8"):
        load(path)


def test_data_dir_inside_the_images(archives, tmp_path, load):
    path = archives.write(tmp_path / "x", files())
    with pytest.raises(DataError, match="lies in the folder of images"):
        load(path, data_dir=str(path / "prepared"))
    assert not (path / "prepared").exists()


def test_images_that_change_while_they_are_read(archives, tmp_path, load, monkeypatch):
    path = archives.write(tmp_path / "x", files())
    check = examples.check_image

    def check_and_add(data, name):
        check(data, name)
        (path / "train" / "cat" / "late.jpg").write_bytes(image(seed=60))

    monkeypatch.setattr(examples, "check_image", check_and_add)
    with pytest.raises(DataError, match="changed while they were read"):
        load(path)
    monkeypatch.undo()
    assert len(load(path).source("train")) == 5


def test_damaged_archive(archives, tmp_path, load):
    path = archives.write(tmp_path / "x.tgz", files())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged or incomplete"):
        load(path)
    with pytest.raises(DataError, match="Cannot open the data archive"):
        load(tmp_path / "absent.zip")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"archive": ""}, "config.data.archive is empty, but image_folder needs"),
        ({"labels": "a,b"}, "the labels of image_folder are fixed"),
        ({"num_classes": 3}, "num_classes is 3, but image_folder has 2"),
        ({"holdout": 1.0}, "config.data.holdout is 1.0, expected a fraction"),
        ({"holdout": -0.1}, "config.data.holdout is -0.1"),
    ],
)
def test_contradictory_config(archives, tmp_path, load, data, message):
    with pytest.raises(ConfigError, match=message):
        load(**{"archive": archives.write(tmp_path / "x", files()), **data})


def test_cifar10(shared, tmp_path, load, archives):
    """A part of the real archive, packed again: all of it takes half a minute."""
    from flax_mnv2.data.archives.archive import open_tree

    tree = open_tree(shared / "data" / "cifar10_images.tgz", keep=lambda name: name.rpartition("/")[2] < "0020.jpg")
    content = {name: tree.read(name) for name in tree.names()}
    tree.close()
    dataset = load(archives.write(tmp_path / "x.tgz", content))
    assert dataset.labels[:3] == ("airplane", "automobile", "bird")
    assert {split: len(dataset.source(split)) for split in dataset.split_names} == {"train": 200, "test": 200}
