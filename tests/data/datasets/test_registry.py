import io
import sys
import threading
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from flax_mnv2.data.datasets import registry
from flax_mnv2.data.datasets.examples import LocalBuilder
from flax_mnv2.data.datasets.imagenet import imagenet_labels
from flax_mnv2.data.datasets.prepared import alone_for, prepared
from flax_mnv2.data.datasets.records import (
    ClassificationDataset,
    DetectionDataset,
    MultiLabelDataset,
    RegressionDataset,
    SegmentationDataset,
    opened,
)
from flax_mnv2.data.datasets.registry import known_num_classes, load_segmentation
from flax_mnv2.data.decode import decode_image, decode_mask
from flax_mnv2.data.prepare import command
from flax_mnv2.errors import ConfigError, DataError

MASK = "VOCdevkit/VOC2012/SegmentationClass/b.png"
IMAGE = "VOCdevkit/VOC2012/JPEGImages/b.jpg"


def test_the_table():
    assert registry.names_of(ClassificationDataset) == ("imagenet2012", "image_folder")
    assert registry.names_of(SegmentationDataset) == (
        "voc_segmentation/2012",
        "voc_segmentation/2012_aug",
        "voc_segmentation/custom",
        "shapes_segmentation",
    )
    assert registry.names_of(MultiLabelDataset) == ("image_table/multi_label",)
    assert registry.names_of(RegressionDataset) == ("image_table/regression",)
    assert registry.names_of(DetectionDataset) == (
        "coco_detection",
        "voc_detection/2007",
        "voc_detection/2012",
        "voc_detection/2007+2012",
        "voc_detection/custom",
        "yolo",
    )
    numbers = {name: known_num_classes(name) for name in (*registry.DATASETS, "unknown")}
    assert numbers == {
        "imagenet2012": len(imagenet_labels()),
        "image_folder": 0,
        "image_table/multi_label": 0,
        "image_table/regression": 0,
        "voc_segmentation/2012": 21,
        "voc_segmentation/2012_aug": 21,
        "voc_segmentation/custom": 0,
        "shapes_segmentation": 4,
        "coco_detection": 0,
        "voc_detection/2007": 20,
        "voc_detection/2012": 20,
        "voc_detection/2007+2012": 20,
        "voc_detection/custom": 0,
        "yolo": 0,
        "unknown": 0,
    }


def test_a_data_set_is_a_module_and_a_row(tmp_path, monkeypatch, capsys):
    """What a module of one's own would hold, and its row: training and the prepare command know it by that."""

    class Dots(LocalBuilder, skip_registration=True):
        def _info(self):
            return self._classification_info(labels=("even", "odd"), description="Dots.")

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(self.builder_config.count)}

        def _generate_examples(self, count):
            for index in range(count):
                yield index, {"image": bytes([index]), "label": index % 2, "file_name": f"{index}"}

    def load(name, data, data_dir):
        config = tfds.core.BuilderConfig(name=f"of_{data['num_classes']}")
        config.count = data["num_classes"]
        builder = prepared(lambda: Dots(config=config, data_dir=data_dir), data_dir)
        return ClassificationDataset(name=name, labels=("even", "odd"), builders=opened(builder.info.splits, builder))

    entry = registry.Entry(
        kind=ClassificationDataset, load=load, summary="dots", fields={"num_classes": "of dots"}, fixed={"holdout": 0}
    )
    monkeypatch.setitem(registry.DATASETS, "dots", entry)
    data = {"dataset": "dots", "data_dir": str(tmp_path), "num_classes": 2}
    assert registry.load_classification(data).source("train")[1]["file_name"] == "1"
    with pytest.raises(ConfigError, match=r"config\.data\.holdout is 0\.5, but dots has 0"):
        registry.load(data | {"holdout": 0.5})
    with pytest.raises(ConfigError, match=r"'dots', expected one of voc_segmentation/2012, .* for segmentation"):
        load_segmentation(data)
    assert command.main(["dots", "--num_classes", "2", "--data_dir", str(tmp_path)]) == 0
    assert "train       2 examples" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.tgz", "x.zip"])
def test_custom_archive(archives, tmp_path, load, kind):
    files = archives.voc_files()
    dataset = load(archive=str(archives.write(tmp_path / kind, files)))
    assert dataset.labels == ("x", "y", "z")
    assert dataset.ignore_label == 255
    assert dataset.num_examples == {"train": 3, "val": 2}
    assert sorted(dataset.split_names) == ["train", "val"]
    assert dataset.max_size == {"train": (22, 30), "val": (24, 30)}
    assert dataset.notes() == [
        "train: 3 ids of VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt",
        "val: 2 ids of VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
        "not read: trainval",
    ]
    source = dataset.source("train")
    assert [source[index]["image_id"] for index in range(3)] == ["a", "b", "c"]
    assert source[1]["image"] == files[IMAGE]
    stored = cv2.imdecode(np.frombuffer(source[1]["segmentation_mask"], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, archives.mask_array(21, 30))
    assert "tensorflow" not in sys.modules
    with pytest.raises(DataError, match=r"no split 'test' here; it has train, val, and trainval, which was not asked"):
        dataset.source("test")


def test_config_dict_and_empty_data_dir(archives, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    archive = archives.write(tmp_path / "x.tar", archives.voc_files())
    data = ConfigDict(
        {
            "dataset": "voc_segmentation/custom",
            "data_dir": "",
            "archive": str(archive),
            "labels": "",
            "num_classes": 3,
        }
    )
    data.crop_size = 321
    dataset = load_segmentation(data)
    assert dataset.labels == ("class_0", "class_1", "class_2")
    assert dataset.builders["train"]().data_dir.startswith(str(tmp_path / "tfds" / "voc_segmentation" / "x_"))


def test_prepared_once_and_rebuilt_after_a_change(archives, tmp_path, load):
    path = archives.write(tmp_path / "x.tar", archives.voc_files())
    first = load(archive=str(path))
    written = (tmp_path / "prepared").joinpath(first.name, "1.0.0", "dataset_info.json").stat().st_mtime_ns
    again = load(archive=str(path))
    assert again == first
    assert (tmp_path / "prepared").joinpath(again.name, "1.0.0", "dataset_info.json").stat().st_mtime_ns == written
    assert load(archive=str(path), labels="x,y,other").name != first.name
    archives.write(path, archives.voc_files(splits={"train": ["a"]}))
    changed = load(archive=str(path))
    assert changed.name != first.name
    assert changed.num_examples == {"train": 1}


def test_a_change_inside_a_folder_is_seen(archives, tmp_path, load):
    path = archives.write(tmp_path / "folder", archives.voc_files())
    first = load(archive=str(path))
    (path / MASK).write_bytes(archives.palette_png(np.zeros((21, 30), np.uint8)))
    changed = load(archive=str(path))
    assert changed.name != first.name
    assert not decode_mask(changed.source("train")[1]["segmentation_mask"]).any()


def test_labels_from_a_file(archives, tmp_path, load):
    labels = tmp_path / "labels.txt"
    labels.write_text("sky\nroad\n\ncar\n")
    archive = str(archives.write(tmp_path / "x.tar", archives.voc_files()))
    assert load(archive=archive, labels=str(labels), num_classes=3).labels == ("sky", "road", "car")


def test_other_ignore_label(archives, tmp_path, load):
    files = archives.voc_files(num_classes=3)
    archive = str(archives.write(tmp_path / "x.tar", files))
    with pytest.raises(DataError, match=r"has the value 255, expected 0 … 2 \(x, y, z\) or the ignore label 7"):
        load(archive=archive, ignore_label=7)


def _bad_members(archives) -> dict[str, tuple[str, bytes, str]]:
    good = archives.voc_files()
    mask = archives.mask_array(21, 30)
    high = mask.copy()
    high[3, 3], high[4, 4] = 3, 19
    color = np.stack([mask, mask, mask // 2], axis=-1)
    return {
        "size": (MASK, archives.palette_png(mask[:-1]), "b.png: the mask is 30x20, its image 30x21"),
        "values": (MASK, archives.palette_png(high), "b.png: the mask has the values 3, 19, expected 0 … 2"),
        "rgb mask": (
            MASK,
            archives.encode(Image.fromarray(color), "PNG"),
            r"b.png: expected class indices .*colours \(0,0,0\), \(1,1,0\).*name:R,G,B",
        ),
        "16-bit mask": (
            MASK,
            archives.encode(Image.fromarray(mask.astype(np.uint16) * 256), "PNG"),
            "b.png: the mask has the values 256, 512, 65280, expected 0 … 2",
        ),
        "jpeg mask": (MASK, archives.jpeg(21, 30), "b.png: not a readable PNG mask"),
        "cut mask": (MASK, good[MASK][:-40], "b.png: not a readable PNG mask"),
        "no jpeg": (IMAGE, b"<html>404</html>", "b.jpg: not a readable image"),
        "empty jpeg": (IMAGE, b"", "b.jpg: not a readable image"),
        "cut jpeg": (IMAGE, good[IMAGE][: len(good[IMAGE]) // 2], "b.jpg: not a readable image.*[Tt]runcated"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "size",
        "values",
        "rgb mask",
        "16-bit mask",
        "jpeg mask",
        "cut mask",
        "no jpeg",
        "empty jpeg",
        "cut jpeg",
    ],
)
def test_bad_example_is_named_and_nothing_is_left(archives, tmp_path, load, case):
    name, data, message = _bad_members(archives)[case]
    path = archives.write(tmp_path / "x.tar", archives.voc_files() | {name: data})
    with pytest.raises(DataError, match=message):
        load(archive=str(path))
    assert not list((tmp_path / "prepared" / "voc_segmentation").iterdir())
    archives.write(path, archives.voc_files())
    assert load(archive=str(path)).num_examples["train"] == 3


def test_all_bad_examples_are_named_and_left_out_with_skip(archives, tmp_path, load):
    bad = _bad_members(archives)
    files = archives.voc_files() | {bad["cut jpeg"][0]: bad["cut jpeg"][1]}
    del files[MASK.replace("/b.", "/c.")]
    path = str(archives.write(tmp_path / "x.tar", files))
    with pytest.raises(DataError, match=r"2 files cannot be used:(.|\n)*b\.jpg: not a(.|\n)*the id 'c', but"):
        load(archive=path)
    assert not list((tmp_path / "prepared" / "voc_segmentation").iterdir())
    dataset = load(archive=path, bad_examples="skip")
    assert dataset.num_examples == {"train": 1, "val": 2}
    assert len(dataset.left_out["train"]) == 2


def test_photos_of_any_format_and_turned_ones(archives, tmp_path, load):
    files = archives.voc_files()
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (21, 30), "red").save(buffer, "TIFF", exif=exif)  # upright it is 30 wide and 21 high
    del files[IMAGE]
    files[IMAGE.replace(".jpg", ".TIF")] = buffer.getvalue()
    source = load(archive=str(archives.write(tmp_path / "x.tar", files))).source("train")
    assert decode_image(source[1]["image"]).shape[:2] == decode_mask(source[1]["segmentation_mask"]).shape == (21, 30)


@pytest.mark.parametrize("member", [MASK, IMAGE])
def test_listed_id_without_file(archives, tmp_path, load, member):
    files = archives.voc_files()
    del files[member]
    with pytest.raises(DataError, match=rf"lists the id 'b', but there is no file '{member}'"):
        load(archive=str(archives.write(tmp_path / "x.tar", files)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dataset": "voc"}, "config.data.dataset is 'voc', expected one of"),
        ({"archive": ""}, "config.data.archive is empty"),
        ({"labels": "", "num_classes": 0}, "both empty"),
        ({"labels": "x,y,z", "num_classes": 4}, "num_classes is 4, but .* names 3"),
        ({"labels": "nofile.txt"}, "neither a file nor"),
        ({"ignore_label": 256}, "from 0 to 255"),
        ({"labels": "", "num_classes": 300}, "1 to 256"),
        ({"dataset": "shapes_segmentation"}, "labels of shapes_segmentation are fixed"),
        (
            {"dataset": "shapes_segmentation", "labels": "", "num_classes": 5},
            "num_classes is 5, but .* has 4",
        ),
        (
            {"dataset": "voc_segmentation/2012", "labels": "", "ignore_label": 0},
            "ignore_label is 0, but .* has 255",
        ),
    ],
)
def test_contradictory_config(load, data, message):
    with pytest.raises(ConfigError, match=message):
        load(**{"archive": "x.tar", **data})


def test_data_dir_that_cannot_be_written(archives, tmp_path, load):
    (tmp_path / "file").write_text("")
    archive = str(archives.write(tmp_path / "x.tar", archives.voc_files()))
    with pytest.raises(DataError, match=r"Cannot prepare .*--config\.data\.data_dir"):
        load(archive=archive, data_dir=str(tmp_path / "file" / "below"))


def test_leftovers(archives, tmp_path, load):
    """A killed build is cleaned up; a prepared folder without its description is not guessed at."""
    archive = str(archives.write(tmp_path / "x.tar", archives.voc_files()))
    dataset = load(archive=archive)
    folder = tmp_path / "prepared" / dataset.name
    (folder / "1.0.0" / "dataset_info.json").unlink()
    with pytest.raises(DataError, match=r"not a complete data set\. Delete that folder"):
        load(archive=archive)
    (folder / "1.0.0").rename(folder / "incomplete.ABCDEF_1.0.0")
    load(archive=archive)
    assert [entry.name for entry in folder.iterdir()] == ["1.0.0"]


def test_damaged_prepared_files(archives, tmp_path, load):
    archive = str(archives.write(tmp_path / "x.tar", archives.voc_files()))
    dataset = load(archive=archive)
    next((tmp_path / "prepared" / dataset.name / "1.0.0").glob("*-train.array_record*")).unlink()
    with pytest.raises(DataError, match=r"damaged: .* is missing\. Delete"):
        load(archive=archive).source("train")


def test_the_second_waits_for_the_first(archives, tmp_path, load, capsys):
    """As two processes would: each holds a lock of its own on the file."""
    archive = str(archives.write(tmp_path / "x.tar", archives.voc_files()))
    found, printed = [], ""
    thread = threading.Thread(target=lambda: found.append(load(archive=archive)))
    with alone_for(tmp_path / "prepared" / "other", tmp_path / "prepared", what="other"):
        thread.start()
        deadline = time.monotonic() + 60
        while "waiting for it to end" not in printed:
            assert time.monotonic() < deadline
            printed += capsys.readouterr().out
            time.sleep(0.01)
        assert not found
    thread.join(60)
    assert found[0].num_examples["train"] == 3
    assert f"Another process prepares a data set in {tmp_path / 'prepared'}" in printed


def test_shapes(tmp_path, load, monkeypatch):
    """An example depends on its split and index alone, not on how many there are."""
    dataset = load(dataset="shapes_segmentation", labels="")
    assert dataset.labels == ("background", "disc", "square", "triangle")
    assert dataset.num_examples == {"train": 400, "val": 80}
    monkeypatch.setattr("flax_mnv2.data.datasets.shapes.SHAPES_NUM_EXAMPLES", {"train": 20, "val": 20})
    again = load(dataset="shapes_segmentation", labels="", data_dir=str(tmp_path / "other"))
    found = np.zeros(256, int)
    for split in dataset.split_names:
        for index in range(20):
            example = dataset.source(split)[index]
            assert example == again.source(split)[index]
            image, mask = decode_image(example["image"]), decode_mask(example["segmentation_mask"])
            assert image.shape[:2] == mask.shape
            assert all(80 <= side <= 128 for side in mask.shape)
            found += np.bincount(mask.ravel(), minlength=256)
    assert set(np.flatnonzero(found)) == {0, 1, 2, 3, 255}
    assert dataset.source("train")[0]["image"] != dataset.source("val")[0]["image"]


def test_camvid(shared, tmp_path, load):
    labels = shared / "data" / "camvid_labels.txt"
    dataset = load(archive=str(shared / "data" / "camvid_voc.tar"), labels=str(labels), eval_split="test")
    assert len(dataset.labels) == 11
    assert dataset.num_examples == {"train": 367, "test": 233}
    assert dataset.max_size["test"] == (360, 480)
