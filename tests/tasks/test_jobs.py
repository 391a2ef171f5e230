"""Which data set and task belong to a config."""

import types

import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config
from flax_mnv2.tasks.classification.task import ClassificationTask
from flax_mnv2.tasks.registry import load_dataset, make_eval_task, make_train_task
from flax_mnv2.tasks.segmentation.task import SegmentationTask
from flax_mnv2.training.config.defaults import default_config


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


def test_each_job_trains_a_model_of_its_own(config):
    labels = ("road", "car", "tree")
    for task, cls in (("segmentation", SegmentationTask), ("classification", ClassificationTask)):
        config.task = task
        made = make_train_task(config, labels)
        assert isinstance(made, cls)
        assert made.labels == labels


def test_a_classifier_of_a_run_is_evaluated_as_its_config_says(config):
    config.task, config.data.eval_resize, config.data.eval_crop = "classification", 40, 32
    dataset = types.SimpleNamespace(name="things", labels=("a", "b"))
    task = make_eval_task(config, MobileNetV2Config(num_labels=2), dataset)
    assert (task.processor.size, task.processor.crop_size) == ({"shortest_edge": 40}, {"height": 32, "width": 32})
