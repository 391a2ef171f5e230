"""Which data set and model belong to a config."""

import types

import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config
from flax_mnv2.tasks.registry import TASKS, get_task, task_for
from flax_mnv2.training.config.defaults import default_config


def test_each_job_has_data_of_its_own():
    for task, wrong in (("segmentation", "imagenet2012"), ("classification", "shapes_segmentation")):
        with pytest.raises(ConfigError, match=f"config.data.dataset is '{wrong}', expected one of"):
            get_task(task).load_dataset({"dataset": wrong})


def test_a_job_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"config.task must be one of 'segmentation', .*; found 'sorting'"):
        get_task("sorting")


def test_problem_type_tells_the_jobs_of_a_classifier_apart():
    assert task_for("classification", MobileNetV2Config(num_labels=3)) == "classification"
    assert task_for("classification", MobileNetV2Config(num_labels=1)) == "regression"
    assert task_for("segmentation", MobileNetV2Config(num_labels=1)) == "segmentation"
    for problem in ("regression", "multi_label_classification"):
        assert task_for("classification", MobileNetV2Config(num_labels=3, problem_type=problem)) == problem


def test_segmentation_weights_must_have_the_classes_of_the_data():
    config, dataset = default_config("segmentation"), types.SimpleNamespace(name="streets", labels=("road", "car"))
    task = TASKS["segmentation"].for_evaluation(config, MobileNetV2Config(num_labels=2), dataset)
    assert len(task.labels) == 2
    with pytest.raises(ConfigError, match="model has 3 classes and the data set streets has 2"):
        TASKS["segmentation"].for_evaluation(config, MobileNetV2Config(num_labels=3), dataset)


@pytest.mark.parametrize("name", TASKS)
def test_each_job_trains_a_model_of_its_own(name):
    labels = ("road", "car", "tree")
    task = TASKS[name].for_training(default_config(name), labels)
    assert (task.name, task.labels) == (name, labels)
    assert (
        type(task.model).__name__
        == {
            "segmentation": "MobileNetV2ForSemanticSegmentation",
            "classification": "MobileNetV2ForImageClassification",
            "multi_label_classification": "MobileNetV2ForImageClassification",
            "regression": "MobileNetV2ForImageClassification",
            "detection": "MobileNetV2ForObjectDetection",
        }[name]
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_field_of_the_architecture_can_be_set(name):
    """So that a network of any source can be trained on: timm's deeper ones have fields of their own."""
    config = default_config(name)
    config.model.layer_depth_multiplier, config.model.fixed_stem_and_head = 1.2, True
    config.model.round_widths, config.model.stem_residual = False, True
    model_config = TASKS[name].for_training(config, ("a", "b")).model.config
    assert model_config.layer_depth_multiplier == 1.2
    assert (model_config.fixed_stem_and_head, model_config.round_widths, model_config.stem_residual) == (
        True,
        False,
        True,
    )


def test_a_classifier_of_a_run_is_evaluated_as_its_config_says():
    config = default_config("classification")
    config.data.eval_resize, config.data.eval_crop = 40, 32
    dataset = types.SimpleNamespace(name="things", labels=("a", "b"))
    task = get_task(config.task).for_evaluation(config, MobileNetV2Config(num_labels=2), dataset)
    assert (task.processor.size, task.processor.crop_size) == ({"shortest_edge": 40}, {"height": 32, "width": 32})
