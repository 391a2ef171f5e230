"""Whole runs: what they leave behind, how they go on, when they refuse."""

import contextlib
import copy
import functools
import io
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest
from harness import compiling_once
from PIL import Image

from flax_mnv2 import CheckpointError, ConfigError, save_pretrained
from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.tasks.segmentation.decide import scores_of
from flax_mnv2.tasks.segmentation.evaluator import SegmentationEvaluator
from flax_mnv2.tasks.segmentation.task import SegmentationTask
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.logging.learning_curve import save_curve
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.training.parallel import make_parallel

_FINISHED = []


@pytest.fixture
def tiny_config(tiny_config, monkeypatch):
    """With less to compile: runs do not depend on how many blocks there are."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))
    return tiny_config


@pytest.fixture
def finished(tiny_config, tmp_path_factory):
    """A run of ``tiny_config`` that has ended, made once: its folder, last state and what it printed."""
    if not _FINISHED:
        workdir, printed = tmp_path_factory.mktemp("finished"), io.StringIO()
        with contextlib.redirect_stdout(printed):
            state = train(tiny_config, workdir, parallel=compiling_once(tiny_config))
        _FINISHED.append(
            types.SimpleNamespace(workdir=workdir, state=jax.device_get(state), printed=printed.getvalue())
        )
    return _FINISHED[0]


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of that run, to change."""
    return shutil.copytree(finished.workdir, tmp_path / "run")


def _learning_nothing(config):
    """The ways to run of ``config``, with a training step that counts alone."""
    parallel = copy.copy(compiling_once(config))
    metrics = dict.fromkeys(("loss", "gradient_norm", "learning_rate", "skipped"), 0.0)
    parallel.compile_train_step = lambda _: lambda state, batch: (state.replace(step=state.step + 1), metrics)
    return parallel


def _assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _without_rates(lines):
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def test_a_finished_run_leaves_checkpoints_metrics_and_config(finished):
    workdir = finished.workdir
    assert f"checkpoints: {workdir / 'checkpoints'} (last step 6, best by mean IoU: step 6)" in finished.printed
    assert Checkpoints(workdir / "checkpoints").steps() == [3, 6]
    lines = read_metrics(workdir)
    assert [(line["step"], line["split"]) for line in lines] == [
        (1, "train"),
        (2, "train"),
        (4, "train"),
        (6, "train"),
        (6, "val"),
    ]
    assert all(np.isfinite(line["loss"]) for line in lines[:-1])
    assert 0 <= lines[-1]["mean_iou"] <= 1
    assert json.loads((workdir / "config.json").read_text())["num_steps"] == 6
    assert list((workdir / "tensorboard").glob("events*"))


def test_bfloat16_trains(tiny_config, tmp_path):
    tiny_config.dtype = "bfloat16"
    tiny_config.num_steps = tiny_config.eval_every_steps = 3
    state = train(tiny_config, tmp_path, parallel=compiling_once(tiny_config))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    assert np.isfinite(read_metrics(tmp_path)[-2]["loss"])


def test_metrics_of_steps_that_are_repeated_are_not_doubled(tiny_config, workdir):
    before = read_metrics(workdir)
    shutil.rmtree(workdir / "checkpoints" / "step_6")  # as if killed before the last save
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "spl')  # and while writing a line
    train(tiny_config, workdir, parallel=compiling_once(tiny_config))
    assert _without_rates(read_metrics(workdir)) == _without_rates(before)


def test_best_and_last_checkpoints_are_kept_and_patience_ends_the_run(tiny_config, tmp_path, monkeypatch, capsys):
    scores = iter([0.2, 0.9, 0.3, 0.4, 0.1])

    original = SegmentationEvaluator.metrics
    monkeypatch.setattr(SegmentationEvaluator, "metrics", lambda self: {**original(self), "mean_iou": next(scores)})
    monkeypatch.setattr("flax_mnv2.training.loop.save_curve", save_curve)
    parallel = compiling_once(tiny_config)  # when a run saves, evaluates and ends does not change a step
    tiny_config.early_stopping.patience = 3
    tiny_config.eval_every_steps = tiny_config.checkpoint.every_steps = 1
    tiny_config.checkpoint.keep_last = 1
    for _ in range(2):  # the same command again does nothing more
        train(tiny_config, tmp_path, parallel=parallel)
        checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
        assert checkpoints.steps() == [2, 5]
        assert checkpoints.best_step() == 2
        assert "stopped at step 5: 3 evaluations were no better than 0.9000 of step 2" in capsys.readouterr().out
    with Image.open(tmp_path / "learning_curve.png") as curve:
        assert min(curve.size) > 400


def test_checkpoint_of_another_architecture_is_refused_by_name(tiny_config, workdir):
    (workdir / "config.json").unlink()
    tiny_config.model.depth_multiplier = 1.0
    with pytest.raises(CheckpointError, match="do not fit the model") as caught:
        train(tiny_config, workdir, parallel=compiling_once(tiny_config))
    name = "batch_stats/mobilenet_v2/conv_stem/conv_3x3/normalization/mean"
    assert f"{name}: the checkpoint has (16,), the model needs (32,)" in str(caught.value)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(tiny_config, finished, workdir, capsys):
    lines = _without_rates(read_metrics(workdir))
    for file in (workdir / "checkpoints" / "step_6" / "variables").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"6.*damaged.*Without --strict"):
        train(tiny_config, workdir, parallel=compiling_once(tiny_config), strict=True)
    assert (workdir / "checkpoints" / "step_6").is_dir()
    again = train(tiny_config, workdir, parallel=compiling_once(tiny_config))
    printed = capsys.readouterr().out
    assert "is damaged" in printed
    assert "kept as step_6.damaged, going on from the one before" in printed
    assert "going on from step 3" in printed
    _assert_same(again, finished.state)
    assert _without_rates(read_metrics(workdir)) == lines
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["step_3", "step_6", "step_6.damaged"]


def test_a_run_with_damaged_checkpoints_alone_does_not_begin_anew(tiny_config, workdir):
    for step in ("step_3", "step_6"):
        shutil.rmtree(workdir / "checkpoints" / step / "training")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is whole; all of \[3, 6\] are damaged"):
        train(tiny_config, workdir, parallel=compiling_once(tiny_config))


def test_start_from_pretrained_weights(tiny_config, tmp_path):
    parallel = _learning_nothing(tiny_config)  # where weights come from does not change a step
    tiny_config.num_steps = 1
    task = SegmentationTask.for_training(tiny_config, ("a", "b", "c", "d"))
    variables = jax.tree.map(np.asarray, task.init_variables(seed=7))
    save_pretrained(tmp_path / "weights", task.model, variables)
    tiny_config.init_from = str(tmp_path / "weights")

    def trained(scope, **changes):
        config = tiny_config.copy_and_resolve_references()
        config.init_scope = scope
        config.update_from_flattened_dict(changes)
        return train(config, tmp_path / f"{scope}{len(changes)}", parallel=parallel).params

    def close(one, other):
        return all(
            np.allclose(a, b, atol=1e-6) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        )

    everything = trained("all")
    assert close(everything, variables["params"])
    backbone = trained("backbone")
    assert close(backbone["mobilenet_v2"], variables["params"]["mobilenet_v2"])
    assert not close(backbone["segmentation_head"], variables["params"]["segmentation_head"])
    with pytest.raises(CheckpointError, match="other widths"):
        trained("all", **{"model.depth_multiplier": 1.0})


def test_labels_that_differ_ask_for_a_new_head(tiny_config, tmp_path):
    task = SegmentationTask.for_training(tiny_config, ("a", "b"))
    save_pretrained(tmp_path / "weights", task.model, jax.tree.map(np.asarray, task.init_variables(0)))
    tiny_config.init_from, tiny_config.init_scope = str(tmp_path / "weights"), "all"
    with pytest.raises(CheckpointError, match=r"has 2 classes and the data 4; use --config.init_scope=backbone"):
        train(tiny_config, tmp_path / "run", parallel=compiling_once(tiny_config))


def test_batch_must_divide_over_the_devices(tiny_config, tmp_path):
    tiny_config.batch_size = 6
    with pytest.raises(ConfigError, match="divisible by the number of devices, 4"):
        train(tiny_config, tmp_path, parallel=make_parallel("jit", jax.devices()[:4]))
    assert not any(tmp_path.iterdir())


def test_evaluation_report(tiny_config, workdir, tmp_path, capsys):
    logged = read_metrics(workdir)[-1]
    report = evaluate_run(tiny_config, workdir=str(workdir))
    printed = capsys.readouterr().out
    folder = workdir / "evaluation" / "val_step_6"
    assert json.loads((folder / "metrics.json").read_text()) == report
    assert report["num_examples"] == 16
    assert report["mean_iou"] == pytest.approx(logged["mean_iou"], abs=1e-6)
    assert [row["label"] for row in report["iou_per_class"]] == ["background", "disc", "square", "triangle"]
    for name in ("metrics.json", "predictions.png", "confusion_matrix.png"):
        assert (folder / name).stat().st_size > 0
        assert str(folder / name) in printed
    assert f"triangle             {report['iou_per_class'][3]['iou']:.4f}" in printed

    tiny_config.eval.num_pictures = 1
    by_path = evaluate_run(
        tiny_config, checkpoint=str(workdir / "checkpoints" / "step_3"), output=str(tmp_path / "report")
    )
    assert by_path["model"].endswith("checkpoints/step_3")
    assert (tmp_path / "report" / "metrics.json").exists()


def test_several_scales_and_mirrors_are_averaged(tiny_config):
    tiny_config.eval.scales, tiny_config.eval.flip = (0.75, 1.0), True
    tiny_config.model.initializer_range = tiny_config.model.classifier_initializer_range = 0.4
    task = SegmentationTask.for_training(tiny_config, ("a", "b"))
    variables = task.init_variables(0)
    images = jax.random.normal(jax.random.key(0), (2, 48, 64, 3))

    def evaluated(variables, images):
        return scores_of(task.views(variables, images), images.shape[1:3])

    average = jax.jit(evaluated)
    scores = average(variables, images)
    np.testing.assert_allclose(scores.sum(-1), 1.0, rtol=1e-5)
    mirrored = average(variables, images[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_allclose(scores, mirrored, atol=1e-3)  # the views are summed in another order
    tiny_config.eval.scales, tiny_config.eval.flip = (1.0,), False
    again = jax.jit(functools.partial(evaluated))  # to be traced anew: the config differs
    single = jax.nn.softmax(again(variables, images))
    assert float(abs(single - scores).max()) > 1e-3


def test_evaluation_of_pretrained_weights_at_another_stride(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = SegmentationTask.for_training(tiny_config, ("a", "b", "c", "d"))
    save_pretrained("weights", task.model, jax.tree.map(np.asarray, task.init_variables(0)))
    tiny_config.eval.output_stride, tiny_config.eval.num_pictures = 4, 1
    report = evaluate_run(tiny_config, pretrained="weights")
    assert report["output_stride"] == 4
    assert (pathlib.Path("evaluation") / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of --workdir"),
        ({"workdir": "a", "pretrained": "b"}, "exactly one of --workdir"),
        ({"workdir": "absent"}, "No checkpoints in absent"),
        ({"checkpoint": "absent/7"}, "--checkpoint must be a folder"),
        ({"workdir": "absent", "split": "tset"}, "tset"),
    ],
)
def test_evaluation_of_what_is_not_there(tiny_config, arguments, message):
    with pytest.raises((CheckpointError, ConfigError, ValueError), match=message):
        evaluate_run(tiny_config, **arguments)
