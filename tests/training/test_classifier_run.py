"""Whole runs of a classifier on tiny photos: training, EMA, resumption, evaluation, loading the result."""

import json

import jax
import numpy as np
import pytest
from harness import compiling_once

from flax_mnv2 import CheckpointError, ConfigError, MobileNetV2ImageProcessor, from_pretrained, save_pretrained
from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.errors import UserError
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.weights.opening import open_weights

COLORS = ("blue", "green", "red")


@pytest.fixture
def config(classifier_config, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))  # colours need no more
    return classifier_config


@pytest.fixture
def parallel(config):
    """For runs that differ from ``config`` in their length, or in where weights come from, which changes no step."""
    return compiling_once(config)


def test_a_run_learns_colours_keeps_an_average_and_can_be_loaded(config, tmp_path, capsys, monkeypatch):
    config.num_steps = config.eval_every_steps = config.checkpoint.every_steps = 40
    config.ema.decay = 0.8
    config.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.02  # with 0.05 some CPUs' rounding ends at 0.4
    train(config, tmp_path / "run", parallel=compiling_once(config))
    printed = capsys.readouterr().out
    assert "36 training and 15 evaluation examples, 3 classes" in printed
    assert "EMA top-1 accuracy" in printed
    assert ", accuracy 1.000," in printed
    last = read_metrics(tmp_path / "run")[-1]
    assert last["top1"] > 0.9
    assert last["ema_top1"] > 0.9
    assert "best by EMA top-1 accuracy: step 40" in printed

    parallel = compiling_once(config, devices=4, what="evaluation")
    monkeypatch.setattr("flax_mnv2.training.evaluate.make_parallel", lambda _: parallel)
    average = evaluate_run(config, workdir=str(tmp_path / "run"))
    raw = evaluate_run(config, workdir=str(tmp_path / "run"), weights="raw")
    assert average["model"].endswith("checkpoints/step_40 (moving average)")
    assert raw["model"].endswith("checkpoints/step_40")
    assert (average["top1"], raw["top1"]) == (last["ema_top1"], last["top1"])
    folder = tmp_path / "run" / "evaluation" / "test_step_40"
    assert json.loads((folder / "metrics.json").read_text())["num_examples"] == 15
    assert (folder.with_name("test_step_40_raw") / "predictions.jsonl").exists()

    checkpoint = tmp_path / "run" / "checkpoints" / "step_40"
    model, variables = from_pretrained(checkpoint)
    assert model.config.id2label == dict(enumerate(COLORS))
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert (checkpoints.path_of(40) / "ema").is_dir()
        kept = checkpoints.restore(40, {"ema": jax.tree.map(jax.numpy.asarray, variables)})["ema"]
    jax.tree.map(np.testing.assert_array_equal, variables, kept)
    processor = open_weights(checkpoint).processor()
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 32}, {"height": 32, "width": 32})


def test_epochs_are_counted_in_the_data(config, parallel, tmp_path):
    defaults = default_config("classification")
    config.num_steps, config.eval_every_steps = defaults.num_steps, defaults.eval_every_steps
    config.checkpoint.every_steps = defaults.checkpoint.every_steps
    config.num_epochs, config.eval_every_epochs, config.checkpoint.every_epochs = 1.5, 1.0, 1.0
    state = train(config, tmp_path, parallel=parallel)
    assert int(state.step) == round(1.5 * 36 / 8)
    assert [line["step"] for line in read_metrics(tmp_path) if line["split"] == "test"] == [4, 7]


def test_frozen_layers_keep_weights_and_statistics(config, tmp_path):
    config.freeze_until = "layer_00"
    task = get_task(config.task).for_training(config, COLORS)
    before = jax.tree.map(np.asarray, task.init_variables(config.seed))
    state = train(config, tmp_path, parallel=compiling_once(config))
    for collection, values in (("params", state.params), ("batch_stats", state.collections["batch_stats"])):
        for name, layer in values["mobilenet_v2"].items():
            pairs = zip(jax.tree.leaves(layer), jax.tree.leaves(before[collection]["mobilenet_v2"][name]), strict=True)
            same = [np.array_equal(one, other) for one, other in pairs]
            assert all(same) if name in ("conv_stem", "layer_00") else not any(same), f"{collection}: {name}"


def test_a_note_where_the_weights_know_other_pixels(config, parallel, tmp_path, capsys):
    config.model.tf_padding = False
    task = get_task(config.task).for_training(config, ("a", "b"))
    variables = jax.tree.map(np.asarray, task.init_variables(0))
    processor = MobileNetV2ImageProcessor(image_mean=(0.485, 0.456, 0.406))
    save_pretrained(tmp_path / "weights", task.model, variables, processor)
    config.init_from, config.num_steps = str(tmp_path / "weights"), 1
    config.model.tf_padding = True
    train(config, tmp_path / "run", parallel=parallel)
    printed = capsys.readouterr().out
    assert "--config.data.image_mean=0.485,0.456,0.406 keeps what it learned" in printed
    assert "tf_padding False, this run has True; --config.model.tf_padding=False keeps" in printed


def test_another_recipe_in_the_same_folder_is_refused_field_by_field(config, parallel, tmp_path):
    config.num_steps = 1
    train(config, tmp_path, parallel=parallel)
    config.optimizer.name, config.ema.decay = "rmsprop", 0.99
    with pytest.raises(ConfigError, match="another config") as caught:
        train(config, tmp_path, parallel=parallel)
    assert "ema.decay: 0.0 there, 0.99 now" in str(caught.value)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError):
        train(config, tmp_path, parallel=parallel)


def test_a_first_mistake_can_be_mended_in_the_same_folder(config, parallel, tmp_path):
    config.num_steps = 1
    for name, value in (("freeze_until", "layer_99"), ("init_from", str(tmp_path / "nowhere"))):
        wrong = config.copy_and_resolve_references()
        wrong[name] = value
        with pytest.raises(UserError, match=r"layer_99|nowhere"):
            train(wrong, tmp_path / "run", parallel=parallel)
    assert int(train(config, tmp_path / "run", parallel=parallel).step) == 1


def test_repetitions_that_would_be_mixed_with_themselves_are_refused(config, tmp_path):
    config.data.augment_repeats, config.gradient_accumulation_steps, config.data.cutmix_alpha = 4, 2, 1.0
    with pytest.raises(ConfigError, match="would pair an image with itself"):
        train(config, tmp_path, parallel=compiling_once(config))


def test_what_cannot_be_divided_is_explained(config, tmp_path):
    config.gradient_accumulation_steps, config.data.mixup_alpha = 3, 0.2
    with pytest.raises(ConfigError, match=r"batch_size must be divisible by 6, for 1 device.* Use 6 or 12"):
        train(config, tmp_path, parallel=compiling_once(config))
    assert not any(tmp_path.iterdir())


def test_evaluating_an_average_that_was_not_kept(config, parallel, tmp_path):
    config.num_steps = 1
    train(config, tmp_path, parallel=parallel)
    with pytest.raises(CheckpointError, match="has no moving average"):
        evaluate_run(config, workdir=str(tmp_path), weights="ema")
    with pytest.raises(ConfigError, match="--weights must be one of auto, raw, ema; found 'best'"):
        evaluate_run(config, workdir=str(tmp_path), weights="best")
