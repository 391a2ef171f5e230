"""A run goes on wherever its data and first weights lie, and with no others."""

import json
import os
import shutil

import numpy as np
import pytest
from flax import traverse_util
from pictures import make_photos
from PIL import Image
from safetensors.numpy import load_file, save_file

from flax_mnv2 import ConfigError, MobileNetV2Config, to_state_dict
from flax_mnv2.data.datasets.registry import load_classification
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.inputs import INPUTS_NAME, record_inputs
from flax_mnv2.training.workdir import open_workdir
from flax_mnv2.weights.formats import timm
from flax_mnv2.weights.pretrained import make_model, variable_shapes


@pytest.fixture
def weights(tmp_path, tiny_blocks, monkeypatch):
    monkeypatch.setattr(timm, "VARIANTS", {"mobilenetv2_100": timm.VARIANTS["mobilenetv2_100"]})
    config = MobileNetV2Config(num_labels=3, tf_padding=False, layer_norm_eps=1e-5)
    model = make_model(config, "classification")
    flat = {path: np.ones(shape, np.float32) for path, shape in variable_shapes(model).items()}
    path = tmp_path / "weights" / "w.safetensors"
    path.parent.mkdir()
    save_file(to_state_dict(model, traverse_util.unflatten_dict(flat), "timm"), path)
    return path


@pytest.fixture
def start(tmp_path, weights, monkeypatch):
    """Begins a run, or goes on with it: a function of the fields of ``config.data``, and of ``init_from``."""
    make_photos(tmp_path / "photos", train=2, test=1)
    monkeypatch.chdir(tmp_path)

    def run(init_from="weights/w.safetensors", **data):
        config = default_config("classification")
        config.init_from = init_from
        config.data.update({"dataset": "image_folder", "data_dir": "prepared", "eval_split": "test"})
        config.data.update({"archive": "photos", **data})
        workdir = open_workdir(tmp_path / "run", config)
        record_inputs(workdir, config, load_classification(config.data))
        (workdir / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
        return json.loads((workdir / "config.json").read_text())

    run()
    return run


def _recorded(tmp_path):
    return json.loads((tmp_path / "run" / "config.json").read_text())["data"]["archive"]


def test_other_names_of_the_same_data_and_weights(tmp_path, start):
    start(archive="./photos", init_from="./weights/w.safetensors")
    shutil.copytree(tmp_path / "photos", tmp_path / "moved")  # with other times, and another prepared data set
    shutil.copy(tmp_path / "weights" / "w.safetensors", tmp_path / "copy.safetensors")
    shutil.rmtree(tmp_path / "photos")
    shutil.rmtree(tmp_path / "prepared")
    recorded = start(archive=str(tmp_path / "moved"), init_from="copy.safetensors", data_dir="elsewhere")
    assert recorded["data"]["archive"] == str(tmp_path / "moved")  # where evaluations look from now on
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "moved")
    start(archive="packed.zip", init_from="copy.safetensors")


def test_another_archive_is_refused_by_name_under_any_path(tmp_path, start):
    make_photos(tmp_path / "others", train=3, test=1)
    with pytest.raises(
        ConfigError, match=r"data\.archive: other examples in train, test; 'photos' there, 'others' now"
    ):
        start(archive="others")
    assert _recorded(tmp_path) == "photos"
    start()
    Image.new("RGB", (40, 48)).save(tmp_path / "photos" / "test" / "red" / "red_0.jpg")
    with pytest.raises(ConfigError, match=r"data\.archive: other examples in test; 'photos' there, 'photos' now"):
        start()


def test_other_weights_are_refused_by_name_and_absent_ones_only_under_another(tmp_path, start, weights):
    changed = {name: np.asarray(value + 1) for name, value in load_file(weights).items()}
    save_file(changed, tmp_path / "other.safetensors")
    for init_from in ("other.safetensors", ""):
        with pytest.raises(ConfigError, match=r"init_from: other weights; 'weights/w\.safetensors' there"):
            start(init_from=init_from)
    weights.unlink()
    start()  # they are in the checkpoints
    save_file(changed, weights)
    with pytest.raises(ConfigError, match="init_from: other weights"):
        start()


def test_a_run_of_an_earlier_version_is_known_by_its_paths(tmp_path, start):
    os.unlink(tmp_path / "run" / INPUTS_NAME)
    make_photos(tmp_path / "others", train=3, test=1)
    with pytest.raises(ConfigError, match=r"data\.archive: another; 'photos' there, 'others' now"):
        start(archive="others")
    start(archive="./photos")
    assert json.loads((tmp_path / "run" / INPUTS_NAME).read_text())["labels"] == ["blue", "green", "red"]


def test_the_rule_of_decoding_is_recorded_and_compared(tmp_path, start):
    path = tmp_path / "run" / INPUTS_NAME
    inputs = json.loads(path.read_text())
    assert inputs["decoding"] == "upright, transparency on white"
    path.write_text(json.dumps({**inputs, "decoding": "as stored"}))
    with pytest.raises(ConfigError, match="images were decoded as stored, and are upright, transparency on white"):
        start()
