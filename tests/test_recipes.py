"""Every recipe loads, says what it must, and its shrunken variant trains."""

import importlib.util
import pathlib
import re
import shlex
import sys
import unittest.mock

import pytest
from absl import flags
from ml_collections import config_flags

from flax_mnv2.training.run_config import check_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.py"))
TRAINING = [path for path in RECIPES if not path.stem.startswith("cls_")]  # classifiers are only evaluated as yet


def _load(path, variant="", *overrides):
    """The config as the scripts get it; ml_collections looks for overrides in ``sys.argv`` itself."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    arguments = ["test", f"--config={path}{':' if variant else ''}{variant}", *overrides]
    with unittest.mock.patch.object(sys, "argv", arguments):
        values(arguments)
    return values.config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_passes_the_checks(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    check_config(_load(path))


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_shrunken_recipe_loads_and_passes_the_checks(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    check_config(_load(path, "smoke"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_its_command_and_what_to_expect(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    script = "train.py" if path in TRAINING else "eval.py"
    assert f"python {script} --config configs/{path.name}" in module.__doc__
    assert "Expected:" in module.__doc__


def test_voc_recipe_is_that_of_tf_deeplab():
    config = _load(ROOT / "configs" / "seg_voc.py")
    assert (config.batch_size, config.num_steps, config.data.crop_size) == (16, 30_000, (513, 513))
    assert (config.optimizer.learning_rate, config.optimizer.poly_power) == (0.007, 0.9)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 4e-5)
    assert (config.data.min_scale, config.data.max_scale, config.data.scale_step) == (0.5, 2.0, 0.25)
    assert config.model.head_batch_norm_momentum == 0.9997
    assert _load(ROOT / "configs" / "seg_voc.py", "aug").data.train_split == "trainaug"


def test_the_readmes_flags_for_own_data_are_the_camvid_recipe(monkeypatch):
    """The README shows CamVid by overrides of seg_voc alone; configs/seg_camvid.py records the same run."""
    monkeypatch.syspath_prepend(ROOT)
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^python train\.py --config configs/seg_voc\.py .*data\.archive.*$", text, re.M)
    overrides = [part for part in shlex.split(command) if part.startswith("--config.")]
    by_flags = _load(ROOT / "configs" / "seg_voc.py", "", *overrides)
    recorded = _load(ROOT / "configs" / "seg_camvid.py")
    recorded.data.archive, recorded.data.labels = by_flags.data.archive, by_flags.data.labels
    recorded.init_from = by_flags.init_from
    assert by_flags.to_dict() == recorded.to_dict()
