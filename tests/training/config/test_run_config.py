"""Mistakes in a run's config, and the check that a workdir belongs to the run."""

import json

import pytest

from flax_mnv2 import ConfigError, DataError
from flax_mnv2.tasks.registry import TASKS
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.config.defaults import check_same_run, default_config
from flax_mnv2.training.workdir import config_for_evaluation, open_workdir


@pytest.mark.parametrize("task", TASKS)
def test_defaults_pass(task):
    check_config(default_config(task))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("task", "depth", "one of 'segmentation', 'detection'"),
        ("parallel", "pjit", "one of 'jit', 'pmap'"),
        ("dtype", "float16", "one of 'float32', 'bfloat16'"),
        ("batch_size", 0, "at least 1"),
        ("num_steps", -5, "at least 1"),
        ("data.crop_size", (0, 321), "at least 32"),
        ("data.crop_size", (321,), "a pair"),
        ("data.crop_size", (-1, -1), "at least 32"),
        ("data.min_scale", 0.0, "above 0"),
        ("data.max_scale", 0.1, "at least data.min_scale"),
        ("data.scale_step", -1.0, "at least 0"),
        ("optimizer.schedule", "step", "one of 'poly'"),
        ("optimizer.momentum", 1.0, "below 1"),
        ("optimizer.learning_rate", -0.1, "above 0"),
        ("optimizer.warmup_steps", 30_000, "below num_steps"),
        ("eval.scales", (), "positive numbers"),
        ("init_scope", "head", "one of 'backbone', 'all'"),
        ("seed", 1 << 32, "below 2"),
        ("optimizer.learning_rate", float("inf"), "above 0"),
        ("optimizer.end_learning_rate", 0.1, "from 0 to optimizer.learning_rate = 0.007"),
        ("num_epochs", float("inf"), "at least 0"),
        ("data.crop_size", ("a", "b"), "a pair"),
        ("model.classifier_dropout_prob", 1.0, "below 1"),
    ],
)
def test_values_out_of_range_are_named(name, value, expected):
    config = default_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ConfigError, match=expected) as caught:
        check_config(config)
    assert f"config.{name} must be" in str(caught.value)


@pytest.mark.parametrize("name", ["output_stride", "scales", "flip"])
def test_what_a_classifier_would_ignore_is_no_field_of_its_config(name):
    config = default_config("classification")
    check_config(config)
    with pytest.raises(AttributeError, match=name):
        setattr(config.eval, name, 8)
    with config.unlocked():
        config.eval[name] = 8
    with pytest.raises(ConfigError, match=rf"has unknown eval\.{name}; start from default_config\('classification'\)"):
        check_config(config)


def test_values_of_a_classifier_out_of_range_are_named():
    for name, value, expected in (
        ("data.image_mean", ("a", "b", "c"), "3 numbers from 0 to 1"),
        ("data.crop_area", (0.5, 1.5), "a pair .* at most 1"),
        ("data.color_jitter", (0.1, 0.1, 0.1, 0.6), "the last at most 0.5"),
        ("data.randaugment_magnitude", 31.0, "from 0 to 30"),
        ("data.augment_repeats", 3, "a divisor of batch_size = 16"),
    ):
        config = default_config("classification")
        config.update_from_flattened_dict({name: value})
        with pytest.raises(ConfigError, match=expected) as caught:
            check_config(config)
        assert f"config.{name} must be" in str(caught.value)


def test_what_contradicts_is_refused():
    for fields, expected in (
        ({"num_epochs": 2.0, "num_steps": 7}, r"num_epochs = 2 goes before config.num_steps = 7.*num_epochs=0"),
        ({"optimizer.schedule": "exponential"}, "needs decay_every_steps or decay_every_epochs"),
        ({"shard_optimizer_state": True, "parallel": "pmap"}, "needs config.parallel='jit'"),
        ({"shard_optimizer_state": True, "batch_norm.sync": False}, "batch_norm.sync=True; found 'jit' and False"),
        ({"optimizer.name": "adam", "optimizer.nesterov": True}, "nesterov is for sgd and rmsprop"),
    ):
        config = default_config()
        config.update_from_flattened_dict(fields)
        with pytest.raises(ConfigError, match=expected):
            check_config(config)


def test_a_misspelt_field_in_a_recipe_fails_where_it_stands():
    with pytest.raises(AttributeError, match="learning_rate"):
        default_config().optimizer.lerning_rate = 0.1


def test_missing_and_unknown_fields_are_named():
    config = default_config()
    with config.unlocked():
        del config["seed"]
    with pytest.raises(ConfigError, match="lacks seed"):
        check_config(config)
    config = default_config()
    with config.unlocked():
        config.sead = 1
    with pytest.raises(ConfigError, match="unknown sead"):
        check_config(config)


def test_another_runs_workdir_is_refused_field_by_field(tmp_path):
    open_workdir(tmp_path, default_config())
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')  # the run has begun
    changed = default_config()
    changed.batch_size, changed.optimizer.learning_rate = 8, 0.1
    with pytest.raises(ConfigError) as caught:
        open_workdir(tmp_path, changed)
    message = str(caught.value)
    assert "batch_size: 16 there, 8 now" in message
    assert "optimizer.learning_rate: 0.007 there, 0.1 now" in message
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 16


def test_what_does_not_change_the_run_may_change():
    changed = default_config()
    changed.parallel, changed.data.num_workers, changed.eval.flip = "pmap", 2, True
    changed.checkpoint.every_steps, changed.log_every_steps = 7, 3
    check_same_run(changed, json.loads(default_config().to_json()), "w")


def test_an_evaluation_takes_the_recorded_config_and_the_flags_given(tmp_path):
    config = default_config()
    config.data.crop_size, config.batch_size = (321, 321), 8
    open_workdir(tmp_path, config)
    overrides = {"eval.scales": (0.5, 1.0), "data.eval_split": "test"}
    for place in ({"workdir": str(tmp_path)}, {"checkpoint": str(tmp_path / "checkpoints" / "400")}):
        chosen = config_for_evaluation(default_config(), overrides, **place)
        check_config(chosen)
        assert (chosen.data.crop_size, chosen.batch_size) == ((321, 321), 8)
        assert (chosen.eval.scales, chosen.data.eval_split) == ((0.5, 1.0), "test")


def test_an_evaluation_without_any_config_asks_for_one(tmp_path):
    with pytest.raises(ConfigError, match="give the recipe with --config FILE"):
        config_for_evaluation(None, {}, workdir=str(tmp_path))
    given = default_config()
    assert config_for_evaluation(given, {}, workdir=str(tmp_path)) is given


def test_a_workdir_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot write in the workdir"):
        open_workdir(tmp_path / "file" / "run", default_config())
    with pytest.raises(DataError, match="Choose a folder that you may write to"):
        open_workdir("/proc/flax_mnv2", default_config())


def test_a_workdir_with_a_damaged_config_is_explained(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="Cannot read"):
        open_workdir(tmp_path, default_config())
