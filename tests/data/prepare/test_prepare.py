"""``python -m flax_mnv2.data.prepare``: what it builds is what training finds by the data_dir alone."""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import types

import pytest

from flax_mnv2.data.datasets.registry import load_classification, load_segmentation
from flax_mnv2.data.prepare import command as prepare

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path, capsys):
    def call(*arguments):
        """Exit status and what it printed on either stream, with a data_dir of its own."""
        status = prepare.main([*map(str, arguments), "--data_dir", str(tmp_path / "data")])
        streams = capsys.readouterr()
        return status, streams.err if status else streams.out

    return call


@pytest.fixture
def load(tmp_path):
    def call(**data):
        return load_classification({"dataset": "imagenet2012", "data_dir": str(tmp_path / "data"), **data})

    return call


def examples(dataset):
    """(image, label) by split and file name."""
    sources = {split: dataset.source(split) for split in dataset.split_names}
    return {
        split: {source[i]["file_name"]: (source[i]["image"], source[i]["label"]) for i in range(len(source))}
        for split, source in sources.items()
    }


def test_imagenet_without_tensorflow(imagenet, tmp_path, run, load):
    official = imagenet.write(
        tmp_path / "official", train=imagenet.train_files(), validation=imagenet.validation_files()
    )
    expected = examples(load(archive=str(official), data_dir=str(tmp_path / "elsewhere")))
    status, output = run("imagenet2012", "--manual_dir", official, "--without_tensorflow")
    assert status == 0
    assert "train       6 examples" in output
    assert "validation  5 examples" in output
    shutil.rmtree(official)  # it is not needed any more
    assert examples(load()) == expected
    assert load().split_names == ("train", "validation")
    assert "tensorflow" not in sys.modules


def test_one_split_of_imagenet_and_the_archive_of_the_other(imagenet, tmp_path, run, load):
    official = imagenet.write(tmp_path / "official", validation=imagenet.validation_files())
    assert run("imagenet2012", "--manual_dir", official, "--without_tensorflow")[0] == 0
    assert load().split_names == ("validation",)
    imagenet.write(tmp_path / "data" / "downloads" / "manual", train=imagenet.train_files())
    assert {split: len(found) for split, found in examples(load()).items()} == {"train": 6, "validation": 5}


def test_imagenet_where_tensorflow_is_absent(imagenet, tmp_path, run, monkeypatch):
    official = imagenet.write(tmp_path / "of ficial", validation=imagenet.validation_files())
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    status, message = run("imagenet2012", "--manual_dir", official)
    assert status == 2
    assert "pip install tensorflow-cpu" in message
    command = message.strip().splitlines()[-1].strip()
    assert command == (
        f"python -m flax_mnv2.data.prepare imagenet2012 --manual_dir '{official}' --data_dir {tmp_path / 'data'} "
        "--without_tensorflow"
    )
    assert not (tmp_path / "data").exists()


def test_tfds_wants_both_archives(imagenet, tmp_path, run, monkeypatch):
    official = imagenet.write(tmp_path / "official", validation=imagenet.validation_files())
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: True)
    status, message = run("imagenet2012", "--manual_dir", official)
    assert status == 2
    assert f"{official / 'ILSVRC2012_img_train.tar'} is missing" in message


@pytest.fixture
def golden(tmp_path):
    """What golden/make_tfds_imagenet.py had TFDS and TensorFlow build, which are not needed here."""
    with tarfile.open(pathlib.Path(__file__).with_name("golden") / "tfds_imagenet.tar.gz") as packed:
        packed.extractall(tmp_path / "golden", filter="data")
    return tmp_path / "golden"


def test_imagenet_by_tfds(golden, load):
    """Built by TFDS, and that as TFRecord and converted: the same examples as ours."""
    ours = examples(load(archive=str(golden / "official")))
    assert {split: len(found) for split, found in ours.items()} == {"train": 6, "validation": 5}
    assert examples(load(data_dir=str(golden / "array_record"))) == ours
    assert prepare.main(["convert", str(golden / "tfrecord" / "imagenet2012" / "5.1.0")]) == 0
    assert examples(load(data_dir=str(golden / "tfrecord"))) == ours


def test_the_command_has_tfds_build_imagenet(golden, tmp_path, run, load, monkeypatch):
    """Stands in for TFDS's builder, which needs TensorFlow, and leaves what it did."""
    built, target = golden / "array_record" / "imagenet2012", tmp_path / "data" / "imagenet2012"
    asked = []

    def builder(name, *, data_dir, file_format):
        if (target / "5.1.0").exists():
            return prepare.tfds.builder_from_directory(target / "5.1.0")
        asked.append((name, data_dir, file_format))
        info = types.SimpleNamespace(full_name=f"{name}/5.1.0")
        return types.SimpleNamespace(
            name=name, info=info, data_dir=target / "5.1.0", download_and_prepare=download_and_prepare
        )

    def download_and_prepare(*, download_config, **_):
        asked.append(download_config.manual_dir)
        shutil.copytree(built, target)

    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(prepare.tfds, "builder", builder)
    status, output = run("imagenet2012", "--manual_dir", golden / "official")
    assert status == 0
    assert asked == [("imagenet2012", tmp_path / "data", "array_record"), golden / "official"]
    assert "validation  5 examples" in output
    assert examples(load()) == examples(load(archive=str(golden / "official")))


def test_a_tfrecord_copy_is_not_built_again(tmp_path, run):
    folder = tmp_path / "data" / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "imagenet2012", "version": "5.1.0"}))
    status, message = run("imagenet2012", "--without_tensorflow")
    assert status == 2
    assert f"flax_mnv2.data.prepare convert {folder}" in message


def test_image_folder(archives, tmp_path, run, load):
    files = {f"{label}/{i}.jpg": archives.jpeg(seed=i) for label in ("cat", "dog") for i in range(4)}
    path = archives.write(tmp_path / "photos.zip", files)
    status, output = run("image_folder", "--archive", path, "--holdout", "0.5")
    assert status == 0
    assert "train       4 examples" in output
    assert "val         4 examples" in output
    assert "classes     2: cat, dog" in output
    before = sorted((tmp_path / "data").rglob("*"))
    assert len(load(dataset="image_folder", archive=str(path), holdout=0.5).source("val")) == 4
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_segmentation(archives, tmp_path, run):
    assert run("shapes_segmentation")[0] == 0
    path = archives.write(tmp_path / "x.tar", archives.voc_files())
    status, output = run("voc_segmentation/custom", "--archive", path, "--labels", "x,y,z")
    assert status == 0
    assert "train       3 examples\nval         2 examples\nread" in output  # no other list was asked for
    assert "read        val: 2 ids of VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt\n" in output
    assert "read        not read: trainval\n" in output
    assert "z             31.746%     31.915%\n(ignored)      4.762%      4.255%\n" in output
    data = {"dataset": "voc_segmentation/custom", "archive": str(path), "labels": "x,y,z"}
    before = sorted((tmp_path / "data").rglob("*"))
    assert load_segmentation({**data, "data_dir": str(tmp_path / "data")}).num_examples["val"] == 2
    assert sorted((tmp_path / "data").rglob("*")) == before
    split = ("--train_split", "trainval", "--eval_split", "trainval", "--label_map", "0:0,1:1,2:2,255:ignore")
    status, output = run("voc_segmentation/custom", "--archive", path, "--labels", "x,y,z", *split)
    assert "trainval    5 examples\nread" in output
    status, message = run("voc_segmentation/custom", "--archive", path, "--labels", "a,b", "--reduce_labels")
    assert (status, "x.tar" in message) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenet2012", "--manual_dir", "absent"), "No ImageNet in absent"),
        (("image_folder", "--archive", "absent"), "Cannot open the data archive"),
        (("convert", "absent"), "Cannot read absent/dataset_info.json"),
        (("voc_segmentation/custom", "--archive", "x.tar"), "config.data.labels and config.data.num_classes are both"),
    ],
)
def test_a_mistake_is_one_message(run, arguments, message):
    status, found = run(*arguments)
    assert status == 2
    assert found.startswith("error: ")
    assert message in found


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("cifar10",),
        ("image_folder",),
        ("voc_segmentation/custom", "--labels", "a,b"),
        ("imagenet2012", "--labels", "a"),
        ("image_folder", "--arch", "x"),
    ],
)
def test_arguments_that_do_not_parse(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m flax_mnv2.data.prepare" in capsys.readouterr().err


def test_as_a_command(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "flax_mnv2.data.prepare", "convert", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: Cannot read ")
    assert "Traceback" not in result.stderr
