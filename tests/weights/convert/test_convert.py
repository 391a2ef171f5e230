"""The convert command: what it recognises and says, and that every tensor comes back bit for bit."""

import json
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from converting import CONFIG, TORCH_LIKE, convert, edit_tensors
from safetensors.numpy import load_file

from flax_mnv2 import CheckpointError, from_pretrained, load_backbone, save_pretrained
from flax_mnv2.weights import tensor_files
from flax_mnv2.weights.opening import open_weights
from flax_mnv2.weights.source import make_model

pytestmark = pytest.mark.usefixtures("one_variant")


@pytest.mark.parametrize("task", ["backbone", "classification", "segmentation"])
def test_there_and_back_is_exact(make_folder, tmp_path, assert_same, capsys, task):
    source = make_folder(task)
    convert(source, tmp_path / "flax")
    convert(tmp_path / "flax", tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors"))
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    out = capsys.readouterr().out
    assert f"source      {source} (hf)" in out
    assert f"MobileNetV2 0.5, {task}" in out
    assert f"written     {tmp_path / 'flax'} (flax)" in out


@pytest.mark.parametrize("task", ["backbone", "classification", "segmentation"])
def test_the_flax_format_loads_as_the_source_does(make_folder, tmp_path, assert_same, task):
    source = make_folder(task)
    convert(source, tmp_path / "flax")
    (model, variables), (other_model, others) = from_pretrained(source), from_pretrained(tmp_path / "flax")
    assert model == other_model
    assert_same(variables, others)
    assert set(variables) == {"params", "batch_stats"}
    fresh = jax.tree.map(np.zeros_like, variables)
    assert_same(load_backbone(tmp_path / "flax", fresh)["params"]["mobilenet_v2"], variables["params"]["mobilenet_v2"])


def test_parameters_are_counted(make_folder, tmp_path, capsys):
    source = make_folder("segmentation")
    convert(source, tmp_path / "flax")
    _, variables = from_pretrained(source)
    params, stats = (sum(x.size for x in jax.tree.leaves(variables[kind])) for kind in ("params", "batch_stats"))
    assert f"{params:,} parameters and {stats:,} running statistics" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["torchvision", "timm"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_file_formats_come_back(make_folder, tmp_path, assert_same, to, suffix):
    if suffix != ".safetensors":
        pytest.importorskip("torch")
    source = make_folder(config=TORCH_LIKE)
    path = tmp_path / f"weights{suffix}"
    convert(source, path, "--to", to)
    assert open_weights(path).format == to
    convert(path, tmp_path / "flax")
    convert(tmp_path / "flax", tmp_path / "hf")
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), load_file(source / "model.safetensors"))
    convert(tmp_path / "hf", tmp_path / f"again{suffix}", "--to", to)
    assert_same(
        tensor_files.read_tensor_file(tmp_path / f"again{suffix}").state, tensor_files.read_tensor_file(path).state
    )
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (values["tf_padding"], values["layer_norm_eps"], len(values["id2label"])) == (False, 1e-5, 5)


def test_a_trained_model_loads_and_converts(run_checkpoint, tmp_path, assert_same, capsys):
    folder, variables = run_checkpoint
    model, loaded = from_pretrained(folder)
    assert type(model).__name__ == "MobileNetV2ForSemanticSegmentation"
    assert model.config == CONFIG
    assert_same(loaded, variables)
    for target in ("hf", "flax"):
        convert(folder, tmp_path / target, "--to", target)
        assert_same(from_pretrained(tmp_path / target)[1], variables)
        assert open_weights(tmp_path / target).processor() == open_weights(folder).processor()
    assert not open_weights(folder).processor().do_resize
    assert "conv_1x1 is a fresh one" in capsys.readouterr().out
    state = load_file(tmp_path / "hf" / "model.safetensors")
    assert state["mobilenet_v2.conv_1x1.convolution.weight"].shape == (1280, 8, 1, 1)
    assert {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")} == {0}


def test_a_checkpoint_of_an_earlier_version_is_found_by_either_name(run_checkpoint, assert_same):
    """It was called ``0``, and is ``step_0`` since its run went on."""
    folder, variables = run_checkpoint
    earlier = folder.with_name("0")
    for given in (earlier, folder):
        assert_same(from_pretrained(given)[1], variables)
    folder.rename(earlier)
    for given in (earlier, folder):
        assert_same(from_pretrained(given)[1], variables)


def test_a_workdir_asks_for_a_step(run_checkpoint):
    folder, _ = run_checkpoint
    for parent in folder.parents[:2]:
        with pytest.raises(CheckpointError, match=rf"training run; name one of them, such as {folder}"):
            from_pretrained(parent)


def test_half_precision_is_widened_and_said(make_folder, tmp_path, capsys, assert_same):
    source = make_folder()
    values = json.loads((source / "config.json").read_text()) | {"dtype": "float16"}
    (source / "config.json").write_text(json.dumps(values))
    halves = {}

    def halve(state):
        for key, value in state.items():
            state[key] = halves[key] = value.astype(np.float16) if value.ndim else value

    edit_tensors(source, halve)
    convert(source, tmp_path / "flax")
    assert "float16 became float32, exactly" in capsys.readouterr().out
    convert(tmp_path / "flax", tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float32"
    widened = load_file(tmp_path / "hf" / "model.safetensors")
    assert_same(widened, {key: value.astype(np.float32) if value.ndim else value for key, value in halves.items()})


def test_counters_may_be_absent_and_stay_so(make_folder, tmp_path, assert_same):
    source = make_folder()

    def drop(state):
        for key in [key for key in state if key.endswith("num_batches_tracked")]:
            del state[key]

    edit_tensors(source, drop)
    convert(source, tmp_path / "flax")
    convert(tmp_path / "flax", tmp_path / "hf")
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), load_file(source / "model.safetensors"))


@pytest.mark.slow
def test_the_module_runs_as_a_command(tmp_path, random_variables, monkeypatch, capsys):
    monkeypatch.undo()  # the other process has all sixteen blocks
    config = CONFIG.replace(depth_multiplier=0.35)
    save_pretrained(tmp_path / "hf", make_model(config, "classification"), random_variables(config, "classification"))
    command = [sys.executable, "-m", "flax_mnv2.convert", "hf", "flax"]
    root = pathlib.Path(__file__).resolve().parents[3]
    environment = {"PATH": "", "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("source      hf (hf)\nnetwork     MobileNetV2 0.35, classification, 5 classes")
    # Again, as ``python -m`` would do it, in this process.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command[2:])
    monkeypatch.delitem(sys.modules, "flax_mnv2.convert")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("flax_mnv2.convert", run_name="__main__")
    assert ended.value.code == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.endswith("error: flax exists and is not empty; name another place, or pass --overwrite.\n")
