"""ImageNet from archives of the official form, and from what TFDS has prepared."""

import json
import sys

import pytest
import tensorflow_datasets as tfds

from flax_mnv2.data.datasets.examples import LocalInfo
from flax_mnv2.data.datasets.imagenet import imagenet_labels
from flax_mnv2.data.datasets.registry import load_classification
from flax_mnv2.errors import ConfigError, DataError


@pytest.fixture
def load(tmp_path):
    def call(**data):
        return load_classification({"dataset": "imagenet2012", "data_dir": str(tmp_path / "prepared"), **data})

    return call


def test_both_splits(imagenet, tmp_path, load):
    train, validation = imagenet.train_files(), imagenet.validation_files()
    dataset = load(archive=str(imagenet.write(tmp_path / "official", train=train, validation=validation)))
    assert dataset.split_names == ("train", "validation")
    assert (len(dataset.labels), dataset.labels[0], dataset.labels[999]) == (1000, "n01440764", "n15075141")
    source = dataset.source("train")
    found = [(source[index]["file_name"], source[index]["label"]) for index in range(len(source))]
    assert found == [
        ("n01440764_1.JPEG", 0),
        ("n01440764_2.JPEG", 0),
        ("n01443537_1.JPEG", 1),
        ("n01443537_2.JPEG", 1),
        ("n15075141_1.JPEG", 999),
        ("n15075141_2.JPEG", 999),
    ]
    assert source[3]["image"] == imagenet.jpeg(seed=102)
    source = dataset.source("validation")
    assert [source[index]["file_name"] for index in range(len(source))] == list(validation)
    # The first five of the official list: n01751748, n09193705, n02105855, n04263257, n03125729.
    assert [dataset.labels[source[index]["label"]] for index in range(3)] == ["n01751748", "n09193705", "n02105855"]
    assert [source[index]["image"] for index in range(5)] == list(validation.values())
    assert "tensorflow" not in sys.modules


def test_validation_labels_go_by_the_number_not_the_place(imagenet, tmp_path, load):
    files = {name: data for name, data in imagenet.validation_files().items() if name.endswith("3.JPEG")}
    source = load(archive=str(imagenet.write(tmp_path / "official", validation=files))).source("validation")
    assert [imagenet_labels()[source[0]["label"]], len(source)] == ["n02105855", 1]


def test_one_archive_gives_one_split(imagenet, tmp_path, load):
    dataset = load(archive=str(imagenet.write(tmp_path / "official", train=imagenet.train_files())))
    assert len(dataset.source("train")) == 6
    with pytest.raises(DataError, match=r"imagenet2012 has no split 'validation' here; it has train\."):
        dataset.source("validation")


def test_an_evaluation_does_not_prepare_the_training_images(imagenet, tmp_path, load):
    folder = imagenet.write(tmp_path / "official", train={"rubbish": b""}, validation=imagenet.validation_files())
    assert len(load(archive=str(folder)).source("validation")) == 5


def test_a_changed_archive_is_prepared_anew(imagenet, tmp_path, load):
    folder = imagenet.write(tmp_path / "official", validation=imagenet.validation_files())
    assert len(load(archive=str(folder)).source("validation")) == 5
    imagenet.write(folder, validation=imagenet.validation_files(count=2))
    assert len(load(archive=str(folder)).source("validation")) == 2
    other = imagenet.write(tmp_path / "other", validation=imagenet.validation_files(count=3))
    assert len(load(archive=str(other)).source("validation")) == 3


def test_archives_in_the_usual_place_are_found(imagenet, tmp_path, load):
    imagenet.write(tmp_path / "prepared" / "downloads" / "manual", validation=imagenet.validation_files())
    assert len(load().source("validation")) == 5


def test_no_archives(tmp_path, load):
    with pytest.raises(
        DataError, match=r"ILSVRC2012_img_val\.tar .*https://image-net\.org.*--config\.data\.archive=FOLDER"
    ):
        load()
    with pytest.raises(DataError, match=f"No ImageNet in {tmp_path / 'absent'}"):
        load(archive=str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("synset", r"holds n99999999\.tar, expected nXXXXXXXX\.tar"),
        ("not a tar", r"holds README, expected nXXXXXXXX\.tar"),
        ("other class inside", r"holds n01443537\.tar: n01440764_7\.JPEG, expected n01443537_NUMBER"),
        ("rubbish inside", r"img_train\.tar: n01443537\.tar: the archive is damaged"),
        ("cut inside", r"img_train\.tar: n01443537\.tar: the archive is damaged"),
        ("empty", "holds no files"),
    ],
)
def test_bad_training_archive(imagenet, tmp_path, load, case, message):
    files = imagenet.train_files()
    inner = files["n01443537.tar"]
    files = {
        "synset": {**files, "n99999999.tar": inner},
        "not a tar": {"README": b"", **files},
        "other class inside": {**files, "n01443537.tar": imagenet.tar({"n01440764_7.JPEG": b"x"})},
        "rubbish inside": {**files, "n01443537.tar": b"<html>404</html>" * 100},
        "cut inside": {**files, "n01443537.tar": inner[: len(inner) // 4]},
        "empty": {},
    }[case]
    dataset = load(archive=str(imagenet.write(tmp_path / "official", train=files)))
    with pytest.raises(DataError, match=message):
        dataset.source("train")
    assert not list((tmp_path / "prepared").rglob("*array_record*"))


@pytest.mark.parametrize("name", ["ILSVRC2012_val_1.JPEG", "ILSVRC2012_val_00050001.JPEG", "cat.jpg"])
def test_bad_validation_name(imagenet, tmp_path, load, name):
    folder = imagenet.write(tmp_path / "official", validation={**imagenet.validation_files(), name: b"x"})
    with pytest.raises(DataError, match=f"holds {name}, expected ILSVRC2012_val_00000001.JPEG to .*00050000.JPEG"):
        load(archive=str(folder)).source("validation")


def test_archive_cut_anywhere(imagenet, tmp_path, load):
    """In a member's data, in a header, and where a header was overwritten: no image is lost in silence."""
    folder = imagenet.write(tmp_path / "official", validation=imagenet.validation_files())
    path = folder / imagenet.VALIDATION_NAME
    whole = path.read_bytes()
    header = whole.index(b"ILSVRC2012_val_00000003")
    overwritten = whole[:header] + b"\xff" * 512 + whole[header + 512 :]
    for damaged in (whole[: header - 600], whole[: header + 100], overwritten):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"img_val\.tar: the archive is damaged or incomplete"):
            load(archive=str(folder)).source("validation")
    path.write_bytes(whole)
    assert len(load(archive=str(folder)).source("validation")) == 5


class _PreparedByTfds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes what TFDS's own imagenet2012, which needs TensorFlow, leaves behind."""

    name = "imagenet2012"
    VERSION = tfds.core.Version("5.1.0")

    def __init__(self, names, example, **kwargs):
        self._names, self._example = names, example
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=self._names),
                    "file_name": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        yield "key", self._example


@pytest.fixture
def prepared_by_tfds(imagenet, tmp_path):
    def store(names):
        example = {"image": imagenet.jpeg(seed=7), "label": 2, "file_name": "n01484850_1.JPEG"}
        _PreparedByTfds(names, example, data_dir=str(tmp_path / "prepared")).download_and_prepare()
        return tmp_path / "prepared" / "imagenet2012" / "5.1.0"

    return store


def test_prepared_by_tfds(imagenet, tmp_path, load, prepared_by_tfds):
    folder = prepared_by_tfds(imagenet_labels())
    dataset = load()
    assert dataset.split_names == ("validation",)  # the test split has no labels
    assert dataset.source("validation")[0] == {
        "image": imagenet.jpeg(seed=7),
        "label": 2,
        "file_name": "n01484850_1.JPEG",
    }
    official = imagenet.write(tmp_path / "official", validation=imagenet.validation_files())
    assert len(load(archive=str(official)).source("validation")) == 5  # what is asked for goes first
    info = folder / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=f"stored as tfrecord, .*flax_mnv2.data.prepare convert {folder}"):
        load()
    info.write_text(json.dumps({**json.loads(info.read_text()), "alternativeFileFormats": ["array_record"]}))
    assert load().source("validation")[0]["label"] == 2  # as TFDS's own converter leaves it


def test_another_data_set_of_that_name(load, prepared_by_tfds):
    prepared_by_tfds(["cat", "dog", "fish"])
    with pytest.raises(DataError, match="has other labels than ImageNet's 1000 synset ids"):
        load()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dataset": "imagenet"}, "config.data.dataset is 'imagenet', expected one of imagenet2012, image_folder for"),
        ({"labels": "a,b"}, "the labels of imagenet2012 are fixed"),
        ({"num_classes": 1001}, "num_classes is 1001, but imagenet2012 has 1000"),
    ],
)
def test_contradictory_config(load, data, message):
    with pytest.raises(ConfigError, match=message):
        load(**data)


def test_the_shared_archives(shared, load):
    dataset = load(archive=str(shared / "data" / "imagenet_mini"))
    assert {split: len(dataset.source(split)) for split in dataset.split_names} == {"train": 200, "validation": 100}
