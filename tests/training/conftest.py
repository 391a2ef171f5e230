"""Runs small enough to train in a second: drawn shapes or coloured photos, a few narrow blocks."""

import importlib.util
import pathlib
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from flax_mnv2.training.run_config import default_config

COLORS = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> pathlib.Path:
    """Where the drawn shapes are prepared, once for all tests."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def tiny_config(shapes_dir, tiny_blocks):
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
    """The helpers in tests/imagenet_archives.py (tests are not a package)."""
    path = pathlib.Path(__file__).resolve().parents[1] / "imagenet_archives.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of single-coloured noisy photos, 12 to train and 5 to test in each class."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(color, 25, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return root


@pytest.fixture
def classifier_config(photos, tiny_blocks):
    """A classifier of those photos, small enough to train in a second."""
    config = default_config()
    config.task = "classification"
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
