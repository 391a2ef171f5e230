"""A task that the library does not know, in one file: it trains, resumes, evaluates, predicts and is looked at."""

import json
import shutil

import jax
import numpy as np
import pytest
from harness import compiling_once
from redness_task import RednessTask

from flax_mnv2.errors import ConfigError
from flax_mnv2.predict.command import main as predict
from flax_mnv2.tasks.registry import TASKS
from flax_mnv2.tools.preview import preview
from flax_mnv2.tools.tpu_compile.abstract_step import lower_train_step
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train


@pytest.fixture
def config(photos, drawn_once, no_curve, monkeypatch):
    monkeypatch.setitem(TASKS, "redness", RednessTask)
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))
    config = default_config("redness")
    config.data.archive, config.data.eval_split = str(photos), "test"
    config.data.data_dir, config.data.num_threads = str(photos.parent / "prepared"), 1
    config.batch_size = config.eval.batch_size = 8
    config.num_steps = config.eval_every_steps = 60
    config.checkpoint.every_steps, config.log_every_steps = 20, 20
    config.model.depth_multiplier, config.model.initializer_range, config.model.batch_norm_momentum = 0.35, 0.1, 0.9
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.schedule = "adam", 0.003, "cosine"
    return config


def test_it_has_fields_and_rules_of_its_own(config):
    assert "size" in config.data
    assert "crop_size" not in config.data
    config.data.size = 8
    with pytest.raises(ConfigError, match=r"config\.data\.size must be at least 32; found 8"):
        check_config(config)


def test_it_trains_resumes_evaluates_and_predicts(config, photos, tmp_path, capsys):
    parallel, workdir = compiling_once(config), tmp_path / "run"
    state = train(config, workdir, parallel=parallel)
    assert "best by R2: step 60" in capsys.readouterr().out
    logged = read_metrics(workdir)[-1]
    assert logged["r2"] > 0.5

    shutil.rmtree(workdir / "checkpoints" / "step_60")  # as if killed before the last save
    again = train(config, workdir, parallel=parallel)
    assert "going on from step 40" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, state, again)

    report = evaluate_run(config, workdir=str(workdir))
    assert report["r2"] == pytest.approx(logged["r2"], abs=1e-6)
    assert len(json.loads((workdir / "evaluation" / "test_step_60" / "pairs.json").read_text())) == 15
    capsys.readouterr()

    images = [str(photos / "test" / name) for name in ("blue/blue_0.jpg", "red/red_0.jpg")]
    assert predict([*images, "--model", str(workdir / "checkpoints" / "step_60"), "--json"]) == 0
    blue, red = (json.loads(line)["redness"] for line in capsys.readouterr().out.splitlines())
    assert red > blue + 0.5


def test_its_images_can_be_looked_at_and_its_step_lowered_for_other_devices(config, tmp_path):
    preview(config, tmp_path / "sheet.png", num_images=4)
    assert (tmp_path / "sheet.png").stat().st_size > 0
    step = lower_train_step(config, jax.devices()[:2], num_classes=1)
    assert set(step.batch) == {"image", "redness"}
