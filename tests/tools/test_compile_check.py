"""compile_check: the step of a run compiled from shapes, and what is said of it."""

import dataclasses
import importlib.util
import io
import json
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
from PIL import Image

from flax_mnv2 import ConfigError
from flax_mnv2.data.datasets.registry import load_segmentation
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.tools.tpu_compile import command as compile_check
from flax_mnv2.tools.tpu_compile.abstract_step import AbstractStep, known_num_classes, lower_train_step
from flax_mnv2.tools.tpu_compile.command import DoesNotFitError, check, does_not_fit
from flax_mnv2.tools.tpu_compile.report import format_report, lower_bounds, make_report, sent_bytes
from flax_mnv2.tools.tpu_compile.slices import CHIPS, CompilerMissingError, Slice, open_slice
from flax_mnv2.training import cli
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.optimizer import configured_optimizer
from flax_mnv2.training.parallel import JitParallel
from flax_mnv2.training.state import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


# ---- the arithmetic of the report ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known_program():
    """One product and the gradient of its weights: 32 rows of 64 over 4 devices, weights 64 × 128."""

    def step(state, batch):
        gradient = jax.grad(lambda w: jnp.sum((batch["image"] @ w) ** 2))(state.params)
        return state.replace(step=state.step + 1, params=state.params - gradient), {}

    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=jax.ShapeDtypeStruct((64, 128), jnp.float32),
        collections={},
        opt_state={},
    )
    batch = {"image": jax.ShapeDtypeStruct((32, 64), jnp.float32)}
    devices = jax.devices()[:4]
    lowered = JitParallel(devices).compile_train_step(step).lower(shapes, batch)
    abstract = AbstractStep(lowered=lowered, state=shapes, batch=batch, num_labels=2, parts=1)
    return abstract, lowered.compile(), Slice("v5e:2x2", devices, 1, CHIPS["v5e"])


def test_report_of_a_known_program(known_program):
    report = make_report(*known_program)
    memory, work, bounds = report["memory"], report["work"], report["bounds"]
    assert memory["state"] == {"step": 4, "params": 64 * 128 * 4, "collections": 0, "opt_state": 0, "ema": 0}
    assert memory["batch"] == 8 * 64 * 4
    parts = ("padding", "results", "temporaries", "program")
    assert memory["total"] == sum(memory["state"].values()) + memory["batch"] + sum(memory[name] for name in parts)
    assert memory["results"] >= 0  # the new state lies where the old one was
    assert memory["results"] < 64 * 128 * 4
    assert memory["fits"]
    assert report["collectives"] == {"all-reduce": {"count": 1, "bytes": 64 * 128 * 4, "largest": 64 * 128 * 4}}
    products = 2 * (2 * 8 * 64 * 128)  # 8 rows a device, forward and for the gradient
    assert products <= work["flops"] < 1.3 * products
    assert work["images"] == 8
    assert work["flops_per_image"] == work["flops"] / 8
    assert work["hbm_bytes"] >= 3 * 64 * 128 * 4  # weights read and written, gradient
    assert bounds["seconds"]["flops"] == pytest.approx(work["flops"] / 197e12)
    assert bounds["seconds"]["hbm"] == pytest.approx(work["hbm_bytes"] / 819e9)
    assert bounds["seconds"]["interconnect"] == pytest.approx(1.5 * 64 * 128 * 4 / 200e9)
    assert bounds["binding"] == max(bounds["seconds"], key=bounds["seconds"].get)
    assert bounds["images_per_second"]["slice"] == pytest.approx(32 / bounds["step_seconds"])
    assert bounds["images_per_second"]["chip"] == pytest.approx(8 / bounds["step_seconds"])
    json.dumps(report)


def test_a_chip_that_is_too_small_is_said_so(known_program):
    step, compiled, target = known_program
    small = dataclasses.replace(target, chip=dataclasses.replace(target.chip, hbm_bytes=2**10))
    report = make_report(step, compiled, small)
    assert not report["memory"]["fits"]
    assert "DOES NOT FIT" in format_report(report)
    assert ": fits" in format_report(make_report(*known_program))


def test_text_says_what_binds_and_what_quick_means(known_program):
    report = make_report(*known_program)
    text = format_report(report)
    (line,) = (line for line in text.splitlines() if "<- binds" in line)
    assert (
        line.split("  ")[1].strip()
        == {
            "hbm": "HBM traffic",
            "flops": "FLOPs",
            "interconnect": "interconnect",
        }[report["bounds"]["binding"]]
    )
    assert "--quick" not in text
    assert "--quick" in format_report(report, quick=True)


def test_bytes_that_every_algorithm_must_send():
    assert sent_bytes({"all-reduce": [100, 300]}, 4) == pytest.approx(2 * 3 / 4 * 400)
    assert sent_bytes({"all-gather": [400]}, 4) == pytest.approx(300)
    assert sent_bytes({"reduce-scatter": [100]}, 4) == pytest.approx(300)  # 400 bytes are summed
    assert sent_bytes({"collective-permute": [7]}, 4) == 7
    assert sent_bytes({"all-reduce": [100]}, 1) == sent_bytes({}, 8) == 0


def test_bounds_are_bytes_and_operations_over_published_rates():
    found = lower_bounds(CHIPS["v6e"], hbm_bytes=1638e6, flops=918e9, collectives={"all-reduce": [400e6]}, num_chips=2)
    assert found == pytest.approx({"hbm": 1e-3, "flops": 1e-3, "interconnect": 1e-3})


# ---- the step of a run -------------------------------------------------------------------------------------


@pytest.fixture
def one_block(monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 1, 2),))


@pytest.mark.slow
def test_the_step_of_a_run_is_compiled_from_shapes(tiny_config, one_block, capsys):
    tiny_config.ema.decay = 0.99
    tiny_config.data.data_dir = "/nonexistent"  # no data is read
    tiny_config.init_from = "/nonexistent"  # and no weights
    report = check(tiny_config, "cpu:4")
    printed = capsys.readouterr().out
    assert "4 × CPU device" in printed
    assert "batch 8 = 4 × 2 images" in printed
    assert "moving averages" in printed
    assert "bounds" not in report  # nothing is published of this machine

    task = get_task(tiny_config.task).for_training(tiny_config, ("a", "b", "c", "d"))
    optimizer = configured_optimizer(tiny_config)[1]
    state = jax.eval_shape(lambda: TrainState.create(task.init_variables(0), optimizer, ema=True))
    expected = {field.name: _bytes(getattr(state, field.name)) for field in dataclasses.fields(state)}
    assert report["memory"]["state"] == expected
    assert report["memory"]["batch"] == 2 * 48 * 48 * (3 + 1)
    assert report["collectives"]["all-reduce"]["bytes"] > 0.99 * expected["params"]  # gradients, in float32
    assert report["config"]["batch_size"] == 8


def test_pmap_and_batch_norm_per_chip_are_programs_of_one_device(tiny_config, one_block):
    """They see a device's share of the batch and sum by themselves; jit with global batch norm sees all of it."""
    found = {}
    for mode, sync in (("jit", True), ("jit", False), ("pmap", True)):
        tiny_config.parallel, tiny_config.batch_norm.sync = mode, sync
        text = lower_train_step(tiny_config, jax.devices()[:2]).lowered.as_text()
        found[mode, sync] = text.count("all_reduce")
    assert found["jit", True] == 0  # the compiler finds out where sums are needed
    assert found["pmap", True] > found["jit", False] > 0  # one sum more for each normalisation and direction


def test_batch_shapes_are_those_of_the_segmentation_pipeline(tiny_config):
    task = get_task(tiny_config.task).for_training(tiny_config, ("a", "b", "c", "d"))
    with task.train_batches(load_segmentation(tiny_config.data), start_step=0) as batches:
        batch = next(batches)
    expected = {name: (batch[name].shape, batch[name].dtype) for name in task.batch_fields}
    assert {name: (each.shape, each.dtype) for name, each in task.batch_shapes(tiny_config).items()} == expected


class _Source(list):
    as_stored = False


def test_batch_shapes_are_those_of_the_classification_pipeline(tiny_blocks):
    tiny_config = default_config("classification")
    tiny_config.batch_size, tiny_config.data.num_threads, tiny_config.data.train_size = 8, 1, 40
    file = io.BytesIO()
    Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(file, "JPEG")
    examples = _Source([{"image": file.getvalue(), "label": 1, "file_name": "x.jpg"}] * 8)
    task = get_task(tiny_config.task).for_training(tiny_config, ("a", "b"))
    with task.train_batches(SimpleNamespace(source=lambda split: examples), start_step=0) as batches:
        batch = next(batches)
    expected = {name: (batch[name].shape, batch[name].dtype) for name in task.batch_fields}
    assert {name: (each.shape, each.dtype) for name, each in task.batch_shapes(tiny_config).items()} == expected


def test_a_sharded_optimizer_is_counted_by_its_share(known_program):
    step, _, target = known_program
    parallel = JitParallel(target.devices, shard_optimizer=True)
    state = step.state.replace(opt_state=jax.ShapeDtypeStruct((64, 128), jnp.float32))
    shapes = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        parallel.state_sharding(state),
    )

    def momentum(state, batch):
        gradient = jax.grad(lambda w: jnp.sum((batch["image"] @ w) ** 2))(state.params)
        return state.replace(params=state.params - state.opt_state, opt_state=state.opt_state + gradient), {}

    lowered = parallel.compile_train_step(momentum).lower(shapes, step.batch)
    abstract = dataclasses.replace(step, lowered=lowered, state=shapes)
    found = make_report(abstract, lowered.compile(), target)["memory"]["state"]
    assert (found["params"], found["opt_state"]) == (64 * 128 * 4, 64 * 128)


# ---- mistakes ------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_divide_is_explained(tiny_config):
    tiny_config.batch_size = 6
    with pytest.raises(ConfigError, match=r"config\.batch_size must be divisible by .* 4; found 6"):
        lower_train_step(tiny_config, jax.devices()[:4])


def test_a_wrong_config_is_explained(tiny_config):
    tiny_config.optimizer.name = "lion"
    with pytest.raises(ConfigError, match=r"config\.optimizer\.name must be one of"):
        lower_train_step(tiny_config, jax.devices()[:1])


def test_the_number_of_classes_comes_from_the_name_the_config_or_a_flag(tiny_config, one_block):
    for name, count in (("imagenet2012", 1000), ("voc_segmentation/2012_aug", 21), ("shapes_segmentation", 4)):
        tiny_config.data.dataset = name
        assert known_num_classes(tiny_config) == count
    tiny_config.data.dataset = "voc_segmentation/custom"
    with pytest.raises(ConfigError, match=r"Give --num_classes=N"):
        known_num_classes(tiny_config)
    assert lower_train_step(tiny_config, jax.devices()[:1], num_classes=7).num_labels == 7
    tiny_config.data.num_classes = 11
    assert known_num_classes(tiny_config) == 11


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:4x4", r"KIND one of v4, v5e, v5p, v6e or cpu.*found 'v9:4x4'"),
        ("v5e", r"no slice 'v5e'"),
        ("v5e:16", r"no slice 'v5e:16'.*v5e:4x4.*v5e:16x16"),
        ("v5e:3x3", r"no slice 'v5e:3x3'"),
        ("v4:4x4", r"no slice 'v4:4x4'.*v4:2x2x4"),
        ("cpu:none", r"expected cpu:N"),
        ("cpu:64", r"more devices than this process has"),
    ],
)
def test_a_slice_that_does_not_exist_is_explained(topology, message):
    with pytest.raises(ConfigError, match=message):
        open_slice(topology)


def test_without_the_compiler_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerMissingError, match=r"pip install .* benchmarks/requirements-tpu\.txt"):
        open_slice("v5e:4x4")
    assert (ROOT / "benchmarks" / "requirements-tpu.txt").is_file()


def test_a_step_that_does_not_fit_says_what_helps(tiny_config):
    target = Slice("v5e:2x2", jax.devices()[:4], 1, CHIPS["v5e"])
    text = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error.\n  Used 20.00G of 15.75G hbm. Exceeded by 4.25G.\n"
    failing = SimpleNamespace(compile=lambda compiler_options: (_ for _ in ()).throw(jax.errors.JaxRuntimeError(text)))
    state = SimpleNamespace(opt_state={"trace": jax.ShapeDtypeStruct((2**20,), jnp.float32)})
    step = SimpleNamespace(lowered=failing, state=state)
    message = r"v5e:2x2: Used 20\.00G of 15\.75G hbm"
    with pytest.raises(DoesNotFitError, match=message) as caught:
        compile_check.compile_step(step, target, tiny_config, quick=True)
    for advice in (
        "batch_size (2 images a chip",
        "dtype=bfloat16",
        "shard_optimizer_state=True (saves at most 3.00 MiB)",
        "crop_size",
    ):
        assert advice in str(caught.value)
    tiny_config.dtype, tiny_config.parallel, tiny_config.batch_size = "bfloat16", "pmap", 4
    shorter = does_not_fit(text, step, target, tiny_config)
    for applied in ("batch_size", "bfloat16", "shard_optimizer_state"):
        assert applied not in shorter
    text = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        compile_check.compile_step(step, target, tiny_config, quick=True)


RECIPE = "--config=configs/seg_voc.py:smoke"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:7x7"], "there is no slice 'v5e:7x7'"),
        (["--topology=cpu:2", "--json=/nonexistent/x.json"], "there is no folder /nonexistent"),
        (["--topology=cpu:3"], "config.batch_size must be divisible by the number of devices, 3; found 4"),
        ([], "--topology must have a value"),
    ],
)
def test_mistakes_give_one_message_and_status_2(arguments, message):
    def door():
        compile_check.define_flags()
        cli.run(compile_check.main)

    result = scripts.run(door, RECIPE, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_in_a_process_of_its_own():
    command = [sys.executable, "-m", "flax_mnv2.tools.tpu_compile", RECIPE, "--topology=v5e:7x7"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "there is no slice 'v5e:7x7'" in result.stderr
    assert "Traceback" not in result.stderr


# ---- with the TPU's compiler ---------------------------------------------------------------------------------


POD = """\
import json, sys
import flax_mnv2.layer_plan
from configs import quickstart
from flax_mnv2.tools.tpu_compile.command import DoesNotFitError, check

flax_mnv2.layer_plan.BLOCK_TABLE = ((8, 1, 2), (16, 2, 2))
config = quickstart.get_config("smoke")
config.dtype = "bfloat16"
config.batch_size = config.eval.batch_size = 512
report = check(config, "v5e:16x16", quick=True)
config.batch_size = config.eval.batch_size = 2**18
try:
    check(config, "v5e:2x2", quick=True)
except DoesNotFitError as error:
    report["error"] = str(error)
json.dump(report, open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_a_tiny_step_compiles_for_a_pod_and_a_huge_batch_does_not_fit(tmp_path):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: benchmarks/requirements-tpu.txt says how to install it; PYTHONPATH must name it")
    command = [sys.executable, "-c", POD, str(tmp_path / "report.json")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "256 × TPU v5e, 64 host(s); batch 512 = 256 × 2 images" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["chips"], report["hosts"]) == (256, 64)
    assert report["memory"]["fits"]
    assert report["collectives"]["all-reduce"]["count"] > 10  # batch norm over all chips
    assert report["bounds"]["step_seconds"] > 0
    assert "batch_size (65536 images a chip now)" in report["error"]
    assert "15.75G" in report["error"]
