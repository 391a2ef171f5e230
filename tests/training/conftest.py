"""A run small enough to train in a second: drawn shapes, four narrow blocks."""

import importlib.util
import pathlib
from types import ModuleType

import pytest

from flax_mnv2.training.run_config import default_config


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
