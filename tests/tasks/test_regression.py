"""Regression: metrics by their definitions, the model's own loss, a run from table to prediction."""

import json
import shutil

import jax
import numpy as np
import predicting
import pytest
from harness import compiling_once

from flax_mnv2 import ConfigError, from_pretrained, save_pretrained
from flax_mnv2.losses import classification_loss
from flax_mnv2.tasks.regression.evaluator import RegressionEvaluator
from flax_mnv2.tasks.regression.metrics import RegressionMetrics
from flax_mnv2.tasks.regression.task import RegressionTask
from flax_mnv2.tools.preview import preview
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.weights.opening import open_weights

TARGETS = ("red", "price")


@pytest.fixture
def config(vector_config, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))  # colours need no more
    return vector_config("regression", "numbers.csv")


def test_metrics_are_their_definitions():
    truth = np.array([[1.0, 5], [2, 5], [4, 5]], np.float32)
    predicted = np.array([[1.5, 5], [2, 4], [3, 6]], np.float32)
    computed = RegressionMetrics.of(truth, predicted)
    assert computed.mae.tolist() == pytest.approx([0.5, 2 / 3])
    assert computed.rmse.tolist() == pytest.approx([(1.25 / 3) ** 0.5, (2 / 3) ** 0.5])
    assert computed.r2[0] == pytest.approx(1 - 1.25 / ((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2))
    assert np.isnan(computed.r2[1])  # nothing varies
    assert computed.summary()["r2"] == computed.r2[0]
    assert RegressionMetrics.of(truth + 1e6, predicted + 1e6).r2[0] == pytest.approx(computed.r2[0], abs=1e-3)


def test_a_target_that_does_not_vary_is_named():
    evaluator = RegressionEvaluator(TARGETS)
    batch = {"index": np.array([1, 0]), "file_name": np.array(["b", "a"])}
    evaluator.add(batch, None, {"label": np.float32([[1, 2], [3, 2]]), "output": np.float32([[1, 2], [3, 4]])})
    assert "always the same here, so without R2: price" in evaluator.format_table(per_class=False)
    assert evaluator.to_dict(per_class=False)["per_target"][1]["r2"] is None
    assert evaluator.metrics()["r2"] == 1.0


@pytest.mark.parametrize("units", ["", "3,2,-1,0.5"])
def test_the_loss_is_that_of_the_model(config, units):
    config.data.target_units = units
    mean, std = (np.float32([[3, -1]]), np.float32([[2, 0.5]])) if units else (0, 1)
    task = RegressionTask.for_training(config, TARGETS)
    variables, rng = task.init_variables(0), np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "label": rng.normal(3, 2, (8, 2)).astype(np.float32),
    }

    @jax.jit
    def losses(variables, key):
        total, (_, sums) = task.loss_sums(variables, batch, key, axis_name=None)
        images, targets = task.train_inputs(batch, key)
        logits = task.model.apply(variables, images, train=True, mutable=["batch_stats"])[0].logits
        return total / sums["weight"], classification_loss(logits, (targets - mean) / std, problem_type="regression")

    ours, models = losses(variables, jax.random.key(0))
    assert ours == pytest.approx(float(models), rel=1e-6)


def test_it_trains_resumes_evaluates_and_predicts(config, table, tmp_path, capsys):
    config.data.labels, config.ema.decay = "price", 0.7
    config.num_steps = config.eval_every_steps = 80
    config.checkpoint.every_steps, workdir = 60, tmp_path / "run"
    state = train(config, workdir, parallel=compiling_once(config))
    printed = capsys.readouterr().out
    assert "image_table/regression: 48 training and 16 evaluation examples, 1 targets" in printed
    assert "best by EMA R2: step 80" in printed
    logged = read_metrics(workdir)[-1]
    assert logged["ema_r2"] > 0.8

    shutil.rmtree(workdir / "checkpoints" / "step_80")  # as if killed before the last save
    again = train(config, workdir, parallel=compiling_once(config))
    assert "going on from step 60" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, state, again)

    report = evaluate_run(config, workdir=str(workdir))
    assert report["r2"] == pytest.approx(logged["ema_r2"], abs=1e-5)
    assert report["per_target"][0]["label"] == "price"
    assert report["mae"] < 5000
    rows = (workdir / "evaluation" / "val_step_80" / "predictions.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    assert first["file_name"] == "img/48.jpg"

    checkpoint = workdir / "checkpoints" / "step_80"
    model, variables = from_pretrained(checkpoint)
    assert (model.config.problem_type, dict(model.config.extra)) == ("regression", {})  # no notes: the units are ours
    save_pretrained(tmp_path / "hf", model, variables, open_weights(checkpoint).processor())
    for weights in (checkpoint, tmp_path / "hf"):
        (record,) = predicting.records(predicting.run(capsys, table / "img/48.jpg", "--model", weights, "--json")[1])
        assert record["task"] == "regression"
        assert record["values"]["price"] == pytest.approx(first["predicted"]["price"], rel=1e-4)
    lines = predicting.run(capsys, table / "img/48.jpg", "--model", checkpoint)[1].splitlines()
    assert lines[1] == f"  {record['values']['price']:.6g}  price"
    pretrained = evaluate_run(config, pretrained=str(tmp_path / "hf"), output=str(tmp_path / "report"))
    assert pretrained["r2"] == pytest.approx(report["r2"], abs=1e-4)


def test_units_that_do_not_fit_are_explained(config):
    config.data.target_units = "1,2,3"
    with pytest.raises(ConfigError, match=r"config\.data\.target_units must be '', 'standardized', or mean and"):
        check_config(config)
    for wrong in ("1,2", "1,2,3,0"):
        config.data.target_units = wrong
        with pytest.raises(ConfigError, match=r"above 0 for each of 2 targets; found"):
            RegressionTask.for_training(config, TARGETS)
    config.data.target_units, config.init_from, config.init_scope = "standardized", "weights", "all"
    with pytest.raises(ConfigError, match=r"Set --config\.data\.target_units=''"):
        check_config(config)


def test_its_images_can_be_looked_at(config, tmp_path):
    config.data.cutmix_alpha = 1.0
    preview(config, tmp_path / "sheet.png", num_images=4)
    assert (tmp_path / "sheet.png").stat().st_size > 0
    task = RegressionTask.for_training(config, TARGETS)
    assert task.caption(None, np.array([0.25, 31.5])) == ("red 0.25", "price 31.5")
