"""Weights of classes: what may be given, what balanced makes of the data, and that the loss uses them."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from flax_mnv2 import ConfigError
from flax_mnv2.tasks import class_weights
from flax_mnv2.tasks.classification.task import ClassificationTask
from flax_mnv2.tasks.segmentation.task import SegmentationTask
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.config.defaults import default_config


def test_balanced_is_scikit_learns_and_what_does_not_occur_weighs_nothing():
    np.testing.assert_allclose(class_weights.balanced([10, 30, 0]), [40 / 20, 40 / 60, 0])


@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("wrong", ["1,x", "-1,2", "1,,2", "nan,1", "inf,1", "balance"])
def test_what_are_no_weights_is_refused(task, wrong):
    config = default_config(task)
    config.data.class_weights = wrong
    with pytest.raises(ConfigError, match=r"config\.data\.class_weights must be numbers"):
        check_config(config)


def test_one_weight_for_each_class():
    config = default_config()
    config.data.class_weights = "1,2"
    with pytest.raises(ConfigError, match=r"has 2 numbers and the data 3 classes \(a, b, c\)"):
        class_weights.parse(config, ("a", "b", "c"))
    config.data.class_weights = "0,0"
    with pytest.raises(ConfigError, match="all 0"):
        class_weights.parse(config, ("a", "b"))


def test_balanced_counts_the_labels_of_the_training_split(classifier_config, tiny_config):
    for job, config in ((ClassificationTask, classifier_config), (SegmentationTask, tiny_config)):
        config.data.class_weights = "balanced"
        dataset = job.load_dataset(config.data)
        counts = dataset.class_counts("train")
        if job is ClassificationTask:
            assert counts.tolist() == [12, 12, 12]
        else:
            masks = [np.asarray(Image.open(io.BytesIO(row["segmentation_mask"]))) for row in dataset.source("train")]
            assert counts.tolist() == [sum(int((mask == index).sum()) for mask in masks) for index in range(4)]
        assert dataset.class_fractions()["train"] == pytest.approx(counts / counts.sum())
        weights = class_weights.parse(job.filled_in(config, dataset), dataset.labels)
        np.testing.assert_allclose(weights * counts, (weights * counts)[0], rtol=1e-5)
        assert config.data.class_weights == "balanced"  # the run's own config stays


@pytest.mark.parametrize("job", [ClassificationTask, SegmentationTask])
def test_the_loss_of_a_task_has_the_weights(job, tiny_blocks, monkeypatch):
    config = default_config(job.name)
    config.data.class_weights, config.focal_gamma = "1,4", 2.0
    task = job.for_training(config, ("a", "b"))
    label = np.array([0, 1, 1, 1]) if job is ClassificationTask else np.full((4, 8, 8), 1, np.uint8)
    logits = np.zeros((4, 2) if job is ClassificationTask else (4, 2, 2, 2), np.float32)
    monkeypatch.setattr(task, "train_outputs", lambda *_, **__: (logits, None))
    batch = {"image": np.zeros((4, 32, 32, 3), np.uint8), "label": label}
    loss, (_, sums) = task.loss_sums({}, batch, jax.random.key(0), axis_name=None)
    weight = 1 + 3 * 4 if job is ClassificationTask else 4 * 64 * 4
    assert float(sums["weight"]) == weight
    np.testing.assert_allclose(loss, weight * 0.25 * np.log(2), rtol=1e-5)
    if job is ClassificationTask:
        assert float(sums["count"]) == 4
