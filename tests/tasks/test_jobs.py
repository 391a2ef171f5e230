"""Which data set and task belong to a config."""

import types

import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config
from flax_mnv2.tasks.jobs import check_trains, load_dataset, make_eval_task
from flax_mnv2.tasks.segmentation import SegmentationTask
from flax_mnv2.training.run_config import default_config


@pytest.fixture
def config():
    return default_config()


def test_each_job_has_data_of_its_own(config):
    for task, wrong in (("segmentation", "imagenet2012"), ("classification", "shapes_segmentation")):
        with pytest.raises(ConfigError, match=f"config.data.dataset is '{wrong}', expected one of"):
            load_dataset(task, {"dataset": wrong})


def test_segmentation_weights_must_have_the_classes_of_the_data(config):
    dataset = types.SimpleNamespace(name="streets", labels=("road", "car"))
    assert isinstance(make_eval_task(config, MobileNetV2Config(num_labels=2), dataset), SegmentationTask)
    with pytest.raises(ConfigError, match="model has 3 classes and the data set streets has 2"):
        make_eval_task(config, MobileNetV2Config(num_labels=3), dataset)


def test_classifiers_are_not_trained_so_none_comes_from_a_run(config):
    check_trains(config)
    config.task = "classification"
    message = r"trains segmentation and only evaluates classification.*Use eval\.py with --pretrained"
    with pytest.raises(ConfigError, match=message):
        check_trains(config)
    with pytest.raises(ConfigError, match=message):
        make_eval_task(config, MobileNetV2Config(), types.SimpleNamespace(name="things", labels=("a", "b")))
