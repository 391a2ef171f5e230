"""Runs that train with rounded weights and activations: their ranges on disk, across modes, and as a start."""

import copy
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from harness import compiling_once

from flax_mnv2 import ConfigError, MobileNetV2Config, from_pretrained, save_pretrained
from flax_mnv2.export import export
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.evaluate import evaluate_run
from flax_mnv2.training.initial_weights import initial_weights
from flax_mnv2.training.logging.metrics_writer import read_metrics
from flax_mnv2.training.loop import train
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.weights.models import MODEL_CLASSES

COLORS = ("blue", "green", "red")
_FINISHED = []


@pytest.fixture
def config(classifier_config, monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))  # less to compile
    classifier_config.model.quantization.scheme = "int8"
    classifier_config.model.quantization.range_decay = 0.8
    classifier_config.model.quantization.freeze_range_step = 5
    classifier_config.optimizer.learning_rate = 0.01
    classifier_config.ema.decay = 0.5
    return classifier_config


@pytest.fixture
def finished(config, tmp_path_factory):
    """The folder and the last state of a run of ``config``, made once."""
    if not _FINISHED:
        workdir = tmp_path_factory.mktemp("quantized")
        state = train(config, workdir, parallel=compiling_once(config))
        _FINISHED.append((workdir, jax.device_get(state)))
    return _FINISHED[0]


def test_a_run_takes_ranges_and_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(config, finished, tmp_path):
    workdir, state = finished
    ranges = traverse_util.flatten_dict(state.collections["quantization"], sep="/")
    assert int(ranges.pop("step")) == 6
    assert all(np.isfinite(end) for end in ranges.values())
    assert any(end > 0 for name, end in ranges.items() if name.endswith("max"))
    assert all(ranges[name] <= 0 <= ranges[name.removesuffix("min") + "max"] for name in ranges if name.endswith("min"))
    assert int(state.ema["quantization"]["step"]) == 6

    again = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "step_6")
    resumed = train(config, again, parallel=compiling_once(config))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), state)


def test_the_result_is_loaded_evaluated_and_written_with_its_ranges(config, finished, tmp_path, assert_same, caplog):
    workdir, state = finished
    metrics = evaluate_run(config, workdir=str(workdir), weights="raw")
    assert metrics["top1"] == read_metrics(workdir)[-1]["top1"]
    path = workdir / "checkpoints" / "step_6"
    model, variables = from_pretrained(path, weights="raw")
    assert model.config.quantization.scheme == "int8"
    assert_same(variables["quantization"], jax.tree.map(np.asarray, state.collections["quantization"]))
    save_pretrained(tmp_path / "flax", model, variables, layout="flax")
    again, same = from_pretrained(tmp_path / "flax")
    assert again.config == model.config.replace(architectures=again.config.architectures)
    assert_same(same, variables)
    save_pretrained(tmp_path / "hf", model, variables)
    assert "without the ranges" in caplog.text
    plain, weights = from_pretrained(tmp_path / "hf")
    assert plain.config.quantization is None
    assert_same(weights, {name: variables[name] for name in ("params", "batch_stats")})


def test_an_exported_file_is_evaluated_in_the_place_of_its_run(config, finished, tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    parallel = make_parallel("jit", jax.devices()[:1])
    monkeypatch.setattr("flax_mnv2.training.evaluate.make_parallel", lambda _: parallel)
    workdir, _ = finished
    model, variables = from_pretrained(workdir / "checkpoints" / "step_6", weights="raw")
    path, size = tmp_path / "model.tflite", config.data.eval_crop
    options = {"workdir": str(workdir), "weights": "raw", "exported": str(path)}
    export(model, variables, path, size=size)
    found = evaluate_run(config, **options)
    ours = evaluate_run(config, workdir=str(workdir), weights="raw")
    assert found["model"] == str(path)
    assert {**found, "model": ""} == {**ours, "model": ""}  # the model in integers gives what its file does
    labels = dict(enumerate(reversed(COLORS)))
    export(model.clone(config=model.config.replace(id2label=labels)), variables, path, size=size)
    with pytest.raises(ConfigError, match="label 0 is 'red' there, 'blue' here"):
        evaluate_run(config, **options)
    export(model, variables, path, size=size + 8)
    with pytest.raises(ConfigError, match=f"--size {size} {size}, or"):
        evaluate_run(config, **options)


@pytest.mark.parametrize("scope", ["all", "backbone"])
def test_a_run_begins_with_learned_ranges_and_counts_its_own_steps(config, finished, scope):
    workdir, state = finished
    config.init_from, config.init_scope = str(workdir / "checkpoints" / "step_6"), scope
    task = get_task(config.task).for_training(config, COLORS)
    variables, _ = initial_weights(config, task, task.init_variables(1))
    found, learned = (
        traverse_util.flatten_dict(dict(tree["quantization"]), sep="/") for tree in (variables, state.ema)
    )
    assert int(found.pop("step")) == 0
    for name, end in found.items():
        assert end == (learned[name] if scope == "all" or name.startswith("mobilenet_v2") else 0), name


def test_a_run_begins_with_a_float_run_of_which_no_ranges_are_known(config, tmp_path):
    plain = copy.deepcopy(config)
    plain.model.quantization.scheme = ""
    trained = get_task(config.task).for_training(plain, COLORS)
    weights = jax.tree.map(np.asarray, trained.init_variables(3))
    save_pretrained(tmp_path, trained.model, weights)
    config.init_from, config.init_scope = str(tmp_path), "all"
    task = get_task(config.task).for_training(config, COLORS)
    variables, _ = initial_weights(config, task, task.init_variables(1))
    jax.tree.map(np.testing.assert_array_equal, {name: variables[name] for name in weights}, weights)
    assert not any(map(np.any, jax.tree.leaves(variables["quantization"])))


def test_a_wrong_scheme_is_named_before_anything_begins(config):
    config.model.quantization.scheme = "int4"
    with pytest.raises(ConfigError, match=r"quantization.scheme must be 'int8' or 'uint8'; found 'int4'"):
        check_config(config)


def _places(task, **config):
    """The maps that a network rounds, by their place."""
    config = MobileNetV2Config(num_labels=3, quantization="int8", **config)
    model = MODEL_CLASSES[task](config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    paths = traverse_util.flatten_dict(shapes["quantization"], sep="/")
    return {path.removesuffix("/max") for path in paths if path.endswith("/max")}


@pytest.mark.usefixtures("tiny_blocks")
def test_what_is_joined_has_one_range():
    head = "segmentation_head/"
    places = {place.removeprefix(head) for place in _places("segmentation", deeplab="smp") if place.startswith(head)}
    assert places == {
        *("pool", "branches", "decoder_input", "conv_projection/output", "classifier/output"),
        *("conv_atrous_1/conv_3x3_output", "conv_atrous_2/conv_3x3_output", "conv_atrous_3/conv_3x3_output"),
        *("conv_refine_0/conv_3x3_output", "conv_refine_0/reduce_1x1/output"),
        *("conv_decoder_0/conv_3x3_output", "conv_decoder_0/reduce_1x1/output"),
    }
    detection = {"feature_layers": ("layer_01/expansion", "conv_1x1"), "anchors": (((0.1, 1.0),),) * 2}
    detection |= {"extra_channels": ()}
    places = {place for place in _places("detection", detection=detection) if place.startswith("detection_head/")}
    assert {place.rpartition("/")[2] for place in places if "conv_3x3" not in place} == {"class_logits", "box_codes"}
