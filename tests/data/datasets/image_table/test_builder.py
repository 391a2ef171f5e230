"""Images with a table, stored: which image a row means, splits, what is left out, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.data.datasets.registry import load as load_dataset
from flax_mnv2.data.prepare import command
from flax_mnv2.errors import ConfigError, DataError


@pytest.fixture
def load(tmp_path):
    def call(archive="", kind="multi_label", **data):
        data = {"data_dir": str(tmp_path / "prepared"), "archive": str(archive), **data}
        return load_dataset({"dataset": f"image_table/{kind}", **data})

    return call


def image(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def folder(table, *names, name="labels.csv"):
    return {name: table.encode(), **{each: image(seed) for seed, each in enumerate(names)}}


def stored(dataset, split):
    source = dataset.source(split)
    return {source[at]["file_name"]: source[at]["label"].tolist() for at in range(len(source))}


TABLE = "image,cat,dog,split\na,1,0,train\nb,0,0,train\nc,1,1,val\n"
PATHS = ("img/a.jpg", "img/b.jpg", "img/c.jpg")


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.tgz", "x.zip"])
def test_folder_and_archives(archives, tmp_path, load, kind):
    content = folder(TABLE, *PATHS)
    path = archives.write(tmp_path / kind, content)
    dataset = load(path)
    assert (dataset.name, dataset.labels) == ("image_table/multi_label", ("cat", "dog"))
    assert dataset.split_names == ("train", "val")
    assert stored(dataset, "train") == {"img/a.jpg": [1, 0], "img/b.jpg": [0, 0]}
    assert stored(dataset, "val") == {"img/c.jpg": [1, 1]}
    example = dataset.source("train")[0]
    assert example["image"] == content["img/a.jpg"]
    assert example["label"].dtype == np.float32
    assert dataset.mean == {"train": (0.5, 0.0), "val": (1.0, 1.0)}


def test_a_table_beside_the_archive_and_a_change_in_it(archives, tmp_path, load):
    path, table = archives.write(tmp_path / "x.zip", folder("", *PATHS)), tmp_path / "numbers.csv"
    table.write_text("image,age\na,31\nc,20\nb,7.5\n")
    dataset = load(path, "regression", table=str(table), holdout=0)
    assert stored(dataset, "train") == {"img/a.jpg": [31], "img/c.jpg": [20], "img/b.jpg": [7.5]}
    assert dataset.mean["train"] == pytest.approx((19.5,))
    assert dataset.std["train"] == pytest.approx((np.std([31, 20, 7.5]),))
    table.write_text("image,age\na,31\nc,20\nb,8.5\n")
    changed = load(path, "regression", table=str(table), holdout=0)
    assert stored(changed, "train")["img/b.jpg"] == [8.5]
    before, after = dataset.fingerprint("train"), changed.fingerprint("train")
    assert before["sizes"] == after["sizes"]
    assert before["digest"] != after["digest"]  # else a run would go on with other numbers


def test_a_part_is_held_out_always_the_same(archives, tmp_path, load):
    names = [f"{at}.jpg" for at in range(20)]
    path = archives.write(tmp_path / "x", folder("image,cat\n" + "".join(f"{name},1\n" for name in names), *names))
    dataset = load(path, holdout=0.2)
    held_out = set(stored(dataset, "val"))
    assert len(held_out) == 4
    assert held_out | set(stored(dataset, "train")) == set(names)
    assert held_out & set(stored(dataset, "train")) == set()
    assert set(stored(load(path, holdout=0.2, data_dir=str(tmp_path / "again")), "val")) == held_out
    assert load(path, holdout=0).split_names == ("train",)


def test_one_name_in_two_splits_means_two_images(archives, tmp_path, load):
    names = ("train/1.jpg", "test/1.jpg")
    table = "image,cat,split\n1.jpg,1,train\n1.jpg,0,test\n"
    dataset = load(archives.write(tmp_path / "by_word", folder(table, *names)))
    assert [stored(dataset, split) for split in ("train", "test")] == [{"train/1.jpg": [1]}, {"test/1.jpg": [0]}]
    files = folder("filename,cat\n1.jpg,1\n", *names, name="train/_classes.csv")
    files["test/_classes.csv"] = b"filename,cat\n1.jpg,0\n"
    dataset = load(archives.write(tmp_path / "roboflow", files))
    assert [stored(dataset, split) for split in ("train", "test")] == [{"train/1.jpg": [1]}, {"test/1.jpg": [0]}]


def test_names_as_other_systems_write_them(archives, tmp_path, load):
    table = "image,cat\n.\\img\\a.jpg,1\nimg/b.jpg,0\ncafe\u0301,1\n"
    dataset = load(archives.write(tmp_path / "x", folder(table, *PATHS, "img/caf\u00e9.jpg")), holdout=0)
    assert list(stored(dataset, "train").values()) == [[1], [0], [1]]


MISTAKES = {
    "missing": (
        "image,cat\na,1\nx,1\ny.jpg,0\n",
        r"lacks images of the table: labels\.csv, line 3: 'x'; .*line 4: 'y\.jpg'",
    ),
    "another folder's": ("image,cat\ntrain/a.jpg,1\n", r"lacks images.*'train/a\.jpg'"),
    "unclear": ("image,cat\na,1\nd,1\n", r"fit several images: labels\.csv, line 3: 'd' is img/d\.jpg or other/d\.jpg"),
    "leak": (
        "image,cat,split\na,1,train\na.jpg,1,val\n",
        r"several splits: img/a\.jpg \(labels\.csv, line 2, and .* 3\)",
    ),
    "conflict": ("image,labels\na,cat\na,dog\n", r"several rows with different targets.*Keep one row for each image"),
    "no train": ("image,cat,split\na,1,val\n", r"no row of the table is for train; its splits are val"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_and_nothing_is_left(archives, tmp_path, load, mistake):
    table, message = MISTAKES[mistake]
    path = archives.write(tmp_path / "x", folder(table, *PATHS, "img/d.jpg", "other/d.jpg"))
    with pytest.raises(DataError, match=message):
        load(path)
    assert not list((tmp_path / "prepared").rglob("*.json"))


def test_all_unreadable_images_are_named_at_once_or_left_out(archives, tmp_path, load, caplog):
    files = folder(TABLE.replace("train", "Train"), *PATHS) | {"img/a.jpg": b"no", "img/d.jpg": b"cut"}
    files["labels.csv"] += b"d,1,0,val\nx,1,0,val\n"
    path = archives.write(tmp_path / "x", files)
    with pytest.raises(DataError, match=r"lacks images of the table: labels\.csv, line 6: 'x'.*bad_examples=skip"):
        load(path)
    files["labels.csv"] = files["labels.csv"].replace(b"x,1,0,val\n", b"")
    path = archives.write(tmp_path / "y", files)
    with pytest.raises(DataError, match=r"no readable image: img/a\.jpg.*; img/d\.jpg"):
        load(path)
    with pytest.raises(DataError, match=r"no readable image: img/a\.jpg.*; img/d\.jpg"):
        load(tmp_path / "x", bad_examples="skip", max_bad_examples=1)
    dataset = load(tmp_path / "x", bad_examples="skip")
    assert stored(dataset, "train") == {"img/b.jpg": [0, 0]}
    assert stored(dataset, "val") == {"img/c.jpg": [1, 1]}
    assert "Left out" in caplog.text


def test_equal_rows_count_once(archives, tmp_path, load):
    dataset = load(archives.write(tmp_path / "x", folder("image,cat\na,1\nb,0\na.jpg,1\n", *PATHS)), holdout=0)
    assert list(stored(dataset, "train")) == ["img/a.jpg", "img/b.jpg"]


def test_wrong_fields(archives, tmp_path, load):
    with pytest.raises(ConfigError, match=r"config\.data\.archive is empty, but image_table/multi_label needs"):
        load()
    path = archives.write(tmp_path / "x", folder("image,cat\na,1\n", *PATHS))
    with pytest.raises(ConfigError, match=r"config\.data\.holdout is 1, expected a fraction"):
        load(path, holdout=1)
    with pytest.raises(DataError, match=r"no split for evaluation and 1 image"):
        load(path)
    with pytest.raises(DataError, match=r"lies in the folder of images"):
        load(path, data_dir=str(path / "data"))


def test_prepare_says_what_was_read_and_how_labels_are_distributed(archives, tmp_path, capsys):
    path = archives.write(tmp_path / "x.zip", folder(TABLE, *PATHS, "img/d.jpg"))
    arguments = ["--archive", str(path), "--data_dir", str(tmp_path / "data")]
    assert command.main(["image_table/multi_label", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "labels.csv: 3 rows, 1 images in no row" in printed
    assert "classes     2: cat, dog" in printed
    assert "read        no image in train: dog" in printed
    table = [line.split() for line in printed.splitlines()]
    assert ["target", "train", "val"] in table
    assert ["cat", "50.0%", "100.0%"] in table
    assert command.main(["image_table/regression", *arguments, "--labels", "dog"]) == 0
    assert ["dog", "0", "±", "0", "1", "±", "0"] in [line.split() for line in capsys.readouterr().out.splitlines()]
