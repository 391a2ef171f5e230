"""Runs small enough to train in a second: drawn shapes or coloured photos, a few narrow blocks."""

import pathlib
from types import ModuleType

import imagenet_archives
import jax
import numpy as np
import pytest
from pictures import make_photos, make_table, prepare_shapes

import flax_mnv2.layer_plan
from flax_mnv2.tasks.base import Task
from flax_mnv2.training.config.defaults import default_config


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> pathlib.Path:
    """Where a few drawn shapes are prepared, once for all tests."""
    return prepare_shapes(tmp_path_factory.mktemp("tfds"))


_DRAWN = {}


@pytest.fixture
def drawn_once(monkeypatch):
    """Random weights of a model are drawn once for each seed: both decide them, and their program costs a second."""
    draw = Task.init_variables

    def init_variables(self, seed):
        key = (repr(self.model), flax_mnv2.layer_plan.BLOCK_TABLE, seed, jax.config.jax_enable_x64)
        if key not in _DRAWN:
            drawn = draw(self, seed)
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(drawn)):
                return drawn  # only shapes are asked for
            _DRAWN[key] = jax.tree.map(np.array, drawn)
        return jax.tree.map(jax.numpy.array, _DRAWN[key])

    monkeypatch.setattr(Task, "init_variables", init_variables)


@pytest.fixture
def no_curve(monkeypatch):
    """Runs draw no picture of their curve; test_loop.py and test_scripts.py have one."""
    monkeypatch.setattr("flax_mnv2.training.loop.save_curve", lambda *_: None)


@pytest.fixture
def tiny_config(shapes_dir, tiny_blocks, drawn_once, no_curve):
    config = default_config()
    config.num_steps = 6
    config.batch_size = config.eval.batch_size = 8
    config.data.dataset = "shapes_segmentation"
    config.data.data_dir = str(shapes_dir)
    config.data.crop_size = (48, 48)
    config.data.num_threads = 1
    config.model.depth_multiplier = 0.35
    config.model.output_stride = 8
    config.model.initializer_range = 0.1
    config.model.batch_norm_momentum = config.model.head_batch_norm_momentum = 0.8
    config.optimizer.learning_rate = 0.05
    config.log_every_steps = 2
    config.eval_every_steps = 6
    config.checkpoint.every_steps = 3
    return config


@pytest.fixture(scope="session")
def imagenet() -> ModuleType:
    """The helpers in tests/helpers/archives/imagenet_archives.py."""
    return imagenet_archives


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of single-coloured noisy photos, 12 to train and 5 to test in each class."""
    return make_photos(tmp_path_factory.mktemp("photos"), train=12, test=5)


@pytest.fixture
def classifier_config(photos, tiny_blocks, drawn_once, no_curve):
    """A classifier of those photos, small enough to train in a second."""
    config = default_config("classification")
    config.data.dataset, config.data.archive, config.data.eval_split = "image_folder", str(photos), "test"
    config.data.data_dir = str(photos.parent / "prepared")
    config.data.train_size = config.data.eval_resize = config.data.eval_crop = 32
    config.data.crop_area = (0.5, 1.0)
    config.data.num_threads = 1
    config.batch_size = config.eval.batch_size = 8
    config.num_steps = config.eval_every_steps = 6
    config.checkpoint.every_steps, config.log_every_steps = 3, 2
    config.model.depth_multiplier, config.model.output_stride = 0.35, 32
    config.model.initializer_range, config.model.classifier_initializer_range = 0.1, 0.1
    config.model.batch_norm_momentum = 0.7
    config.model.classifier_dropout_prob = 0.0
    config.optimizer.schedule, config.optimizer.learning_rate = "cosine", 0.05
    return config


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A folder of two-coloured photos with tables of their colours and areas, 48 to train and 16 to evaluate."""
    return make_table(tmp_path_factory.mktemp("table"), train=48, val=16)


@pytest.fixture
def vector_config(table, tiny_blocks, drawn_once, no_curve):
    """Returns the config of a job with a table's name, small enough to train in a second or two."""

    def make(task: str, name: str):
        config = default_config(task)
        config.data.archive, config.data.table = str(table), name
        config.data.data_dir, config.data.num_threads = str(table.parent / "prepared"), 1
        config.data.train_size = config.data.eval_resize = config.data.eval_crop = 32
        config.batch_size = config.eval.batch_size = 8
        config.num_steps = config.eval_every_steps = 6
        config.checkpoint.every_steps, config.log_every_steps = 3, 2
        config.model.depth_multiplier, config.model.classifier_dropout_prob = 0.35, 0.0
        config.model.initializer_range = config.model.classifier_initializer_range = 0.1
        config.model.batch_norm_momentum = 0.9
        config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "adam", 0.005, "cosine"
        return config

    return make
