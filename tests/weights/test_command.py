"""The command: recognises, refuses with names, and gives every tensor back bit for bit."""

import json
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from flax_mnv2 import (
    CheckpointError,
    ConfigError,
    MobileNetV2Config,
    from_pretrained,
    load_backbone,
    save_pretrained,
)
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.weights import files, formats, timm
from flax_mnv2.weights.checkpoint import make_model
from flax_mnv2.weights.command import main
from flax_mnv2.weights.pretrained import load_processor

pytestmark = pytest.mark.usefixtures("tiny_blocks")
CONFIG = MobileNetV2Config(depth_multiplier=0.5, num_labels=5)
# What torchvision and timm do, at a width where the reference agrees with them on every layer.
TORCH_LIKE = CONFIG.replace(
    tf_padding=False, layer_norm_eps=1e-5, batch_norm_momentum=0.9, classifier_dropout_prob=0.2, num_labels=5
)


@pytest.fixture(autouse=True)
def one_variant(monkeypatch):
    """With so few blocks several variants are the same network."""
    monkeypatch.setattr(timm, "VARIANTS", {"mobilenetv2_050": timm.VARIANTS["mobilenetv2_050"]})


@pytest.fixture
def make_folder(tmp_path, random_variables):
    """A Hugging Face folder, as transformers would leave it: counters that count, a convolution nobody reads."""

    def make(task="classification", config=CONFIG, name="source"):
        folder = tmp_path / name
        processor = MobileNetV2ImageProcessor(crop_size=96, extra={"made_by": "a test"})
        save_pretrained(folder, make_model(config, task), random_variables(config, task), processor)
        state = load_file(folder / "model.safetensors")
        for index, key in enumerate(sorted(key for key in state if key.endswith("num_batches_tracked"))):
            state[key] = np.asarray(index + 1, np.int64)
        for key in state:
            if "conv_1x1" in key and task == "segmentation" and state[key].ndim:
                state[key] = state[key] + np.float32(0.25)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(
            text.replace('"model_type"', '"transformers_version": "5.0",\n  "model_type"')
        )
        return folder

    return make


def _convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def _refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("task", ["backbone", "classification", "segmentation"])
def test_there_and_back_is_exact(make_folder, tmp_path, assert_same, capsys, task):
    source = make_folder(task)
    _convert(source, tmp_path / "flax")
    _convert(tmp_path / "flax", tmp_path / "back")
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
    _convert(source, tmp_path / "flax")
    (model, variables), (other_model, others) = from_pretrained(source), from_pretrained(tmp_path / "flax")
    assert model == other_model
    assert_same(variables, others)
    assert set(variables) == {"params", "batch_stats"}
    fresh = jax.tree.map(np.zeros_like, variables)
    assert_same(load_backbone(tmp_path / "flax", fresh)["params"]["mobilenet_v2"], variables["params"]["mobilenet_v2"])


def test_parameters_are_counted(make_folder, tmp_path, capsys):
    source = make_folder("segmentation")
    _convert(source, tmp_path / "flax")
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
    _convert(source, path, "--to", to)
    assert formats.open_source(path).format == to
    _convert(path, tmp_path / "flax")
    _convert(tmp_path / "flax", tmp_path / "hf")
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), load_file(source / "model.safetensors"))
    _convert(tmp_path / "hf", tmp_path / f"again{suffix}", "--to", to)
    assert_same(files.read_tensor_file(tmp_path / f"again{suffix}").state, files.read_tensor_file(path).state)
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (values["tf_padding"], values["layer_norm_eps"], len(values["id2label"])) == (False, 1e-5, 5)


@pytest.fixture
def run_checkpoint(tmp_path, random_variables):
    """WORKDIR/checkpoints/step_N as training leaves it."""
    from flax_mnv2.checkpoint.run import Checkpoints
    from flax_mnv2.training.state import TrainState

    variables = random_variables(CONFIG, "segmentation", seed=4)
    state = TrainState.create(variables, optax.sgd(0.1))
    about = {"config": {"task": "segmentation"}, "model": CONFIG.to_dict()}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(0, state.to_items(), about)
    return tmp_path / "run" / "checkpoints" / "step_0", variables


def test_a_trained_model_loads_and_converts(run_checkpoint, tmp_path, assert_same, capsys):
    folder, variables = run_checkpoint
    model, loaded = from_pretrained(folder)
    assert type(model).__name__ == "MobileNetV2ForSemanticSegmentation"
    assert model.config == CONFIG
    assert_same(loaded, variables)
    for target in ("hf", "flax"):
        _convert(folder, tmp_path / target, "--to", target)
        assert_same(from_pretrained(tmp_path / target)[1], variables)
        assert load_processor(tmp_path / target) == load_processor(folder)
    assert not load_processor(folder).do_resize
    assert "conv_1x1 is a fresh one" in capsys.readouterr().out
    state = load_file(tmp_path / "hf" / "model.safetensors")
    assert state["mobilenet_v2.conv_1x1.convolution.weight"].shape == (1280, 8, 1, 1)
    assert {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")} == {0}


def test_a_workdir_asks_for_a_step(run_checkpoint):
    folder, _ = run_checkpoint
    for parent in folder.parents[:2]:
        with pytest.raises(CheckpointError, match=rf"training run; name one of them, such as {folder}"):
            from_pretrained(parent)


def test_a_run_is_never_overwritten(run_checkpoint, make_folder, capsys):
    folder, _ = run_checkpoint
    source = make_folder()
    assert "checkpoint of a training run" in _refused(capsys, source, folder, "--overwrite")
    assert (folder / "variables").is_dir()


def _edit(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("form", ["hf", "torchvision", "timm", "flax"])
def test_every_difference_is_named(make_folder, tmp_path, capsys, form):
    source = tmp_path / ("form" if form in ("hf", "flax") else "form.safetensors")
    _convert(make_folder(config=TORCH_LIKE), source, "--to", form)
    naming = formats.open_source(source).naming
    last, first, norm = (
        naming.key_of(("params", *path))
        for path in (
            ("classifier", "bias"),
            ("mobilenet_v2", "layer_01", "expand_1x1", "convolution", "kernel"),
            ("mobilenet_v2", "layer_01", "conv_3x3", "normalization", "bias"),
        )
    )
    if form == "flax":
        import orbax.checkpoint as ocp

        variables = traverse_util.flatten_dict(from_pretrained(source)[1])
        state = {"/".join(path): value for path, value in variables.items()}
    else:
        path = source / "model.safetensors" if form == "hf" else source
        state = load_file(path)
    del state[norm]
    state |= {last: np.zeros(9, np.float32), f"{first}s": np.zeros((3, 4), np.float32)}
    if form == "flax":
        tree = traverse_util.unflatten_dict({tuple(key.split("/")): value for key, value in state.items()})
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(source / "variables", tree, force=True)
    else:
        save_file(state, path)
    message = _refused(capsys, source, tmp_path / "out", "--to", "flax")
    assert f"1 missing:\n    {norm} " in message
    assert f"1 unexpected:\n    {first}s (3, 4)" in message
    assert f"{last}: the checkpoint has (9,), the model needs (5,)" in message
    assert not (tmp_path / "out").exists()


def test_unknown_names_are_shown_beside_the_known(tmp_path, capsys):
    save_file({"conv1.weight": np.zeros((2, 3), np.float32)}, tmp_path / "resnet.safetensors")
    message = _refused(capsys, tmp_path / "resnet.safetensors", tmp_path / "out")
    assert "found 1: conv1.weight (2, 3)" in message
    assert "torchvision: features.0.0.weight" in message


def test_another_model_of_torchvision_is_refused_with_its_differences(tmp_path, capsys):
    """MobileNetV3 too begins with features.0.0."""
    names = {"features.0.0.weight": (16, 3, 3, 3), "features.1.block.0.0.weight": (16, 1, 3, 3)}
    save_file({key: np.zeros(shape, np.float32) for key, shape in names.items()}, tmp_path / "v3.safetensors")
    message = _refused(capsys, tmp_path / "v3.safetensors", tmp_path / "out")
    assert "unexpected:\n    features.1.block.0.0.weight (16, 1, 3, 3)" in message
    assert "missing:\n    classifier.1.bias (1000,)\n    classifier.1.weight (1000, 1280)" in message


@pytest.mark.parametrize(
    ("to", "absent", "missing"),
    [
        ("torchvision", ["classifier.1.weight"], "1 missing:\n    classifier.1.weight (5, 1280)"),
        ("torchvision", ["classifier.1.weight", "classifier.1.bias"], "classifier.1.weight (1000, 1280)"),
        ("timm", ["classifier.weight"], "1 missing:\n    classifier.weight (5, 1280)"),
        ("timm", ["bn1.weight", "conv_head.weight"], "2 missing:\n    bn1.weight (16,)\n    conv_head.weight"),
    ],
)
def test_missing_tensors_do_not_change_what_is_expected(make_folder, tmp_path, capsys, to, absent, missing):
    path = tmp_path / "form.safetensors"
    _convert(make_folder(config=TORCH_LIKE), path, "--to", to)
    save_file({key: value for key, value in load_file(path).items() if key not in absent}, path)
    message = _refused(capsys, path, tmp_path / "out")
    assert missing in message
    assert "unexpected" not in message


def test_a_file_of_transformers_needs_its_config(make_folder, tmp_path, capsys, assert_same):
    source = make_folder()
    _convert(source / "model.safetensors", tmp_path / "flax")
    assert_same(from_pretrained(tmp_path / "flax")[1], from_pretrained(source)[1])
    (source / "config.json").unlink()
    assert "no config.json lies beside it" in _refused(capsys, source / "model.safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "resnet"}, "model_type 'resnet'"),
        ({"architecture": "resnet18"}, "timm's architecture 'resnet18'"),
        ({"architecture": "mobilenetv2_050", "model_args": {"act_layer": "gelu"}}, "does not have: act_layer"),
        ({"architecture": "mobilenetv2_050", "global_pool": "max"}, "does not have: global_pool"),
        ({"architecture": "mobilenetv2_050", "model_args": [1]}, "model_args in the config.json"),
        ({"architecture": "mobilenetv2_050", "pretrained_cfg": {"crop_pct": "x"}}, "crop_pct above 0"),
        ({"architecture": "mobilenetv2_050", "pretrained_cfg": {"input_size": [3, 224, 192]}}, "square input_size"),
    ],
)
def test_configs_of_other_models_are_refused(make_folder, tmp_path, capsys, values, message):
    source = make_folder()
    (source / "config.json").write_text(json.dumps(values))
    assert message in _refused(capsys, source, tmp_path / "out")


def test_timm_folders_are_converted_before_they_are_loaded(make_folder, tmp_path):
    _convert(make_folder(config=TORCH_LIKE), tmp_path / "timm", "--to", "timm")
    values = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert (values["architecture"], values["num_classes"]) == ("mobilenetv2_050", 5)
    # The processor's own preprocessing, in timm's words.
    assert values["pretrained_cfg"]["crop_pct"] == 96 / 256
    assert values["pretrained_cfg"]["interpolation"] == "bilinear"
    assert values["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(CheckpointError, match=r"in timm's format; convert it first: python -m flax_mnv2\.convert"):
        from_pretrained(tmp_path / "timm")


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_what_another_library_cannot_represent_is_listed(make_folder, tmp_path, capsys, to):
    config = CONFIG.replace(output_stride=16, hidden_act="relu", first_layer_is_expansion=False)
    message = _refused(capsys, make_folder("segmentation", config), tmp_path / "out.safetensors", "--to", to)
    for line in (
        "task: {} needs 'classification', the source has 'segmentation'",
        "tf_padding: {} needs False, the source has True",
        "layer_norm_eps: {} needs 1e-05, the source has 0.001",
        "hidden_act: {} needs 'relu6', the source has 'relu'",
        "output_stride: {} needs 32, the source has 16",
        "conv_stem.expand: {} needs False, the source has True",
    ):
        target = "torchvision" if to == "torchvision" else "timm's mobilenetv2_050"
        assert line.format(target) in message
    assert not (tmp_path / "out.safetensors").exists()


def test_torchvision_has_three_channels_and_a_classifier(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE.replace(num_channels=4, num_labels=0))
    message = _refused(capsys, source, tmp_path / "out.safetensors", "--to", "torchvision")
    assert "num_channels: torchvision needs 3, the source has 4" in message
    assert "num_labels: torchvision needs 1, the source has 0" in message
    _convert(source, tmp_path / "out.safetensors", "--to", "timm")  # which has both
    config = formats.open_source(tmp_path / "out.safetensors").config
    assert (config.num_channels, config.num_labels) == (4, 0)


def test_half_precision_is_widened_and_said(make_folder, tmp_path, capsys, assert_same):
    source = make_folder()
    values = json.loads((source / "config.json").read_text()) | {"dtype": "float16"}
    (source / "config.json").write_text(json.dumps(values))
    halves = {}

    def halve(state):
        for key, value in state.items():
            state[key] = halves[key] = value.astype(np.float16) if value.ndim else value

    _edit(source, halve)
    _convert(source, tmp_path / "flax")
    assert "float16 became float32, exactly" in capsys.readouterr().out
    _convert(tmp_path / "flax", tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float32"
    widened = load_file(tmp_path / "hf" / "model.safetensors")
    assert_same(widened, {key: value.astype(np.float32) if value.ndim else value for key, value in halves.items()})


def test_double_precision_is_refused(make_folder, tmp_path, capsys):
    source = make_folder()
    _edit(source, lambda state: state.update({"classifier.bias": state["classifier.bias"].astype(np.float64)}))
    assert "Tensor classifier.bias is float64" in _refused(capsys, source, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"classifier\.bias is float64"):
        from_pretrained(source)


def test_counters_may_be_absent_and_stay_so(make_folder, tmp_path, assert_same):
    source = make_folder()

    def drop(state):
        for key in [key for key in state if key.endswith("num_batches_tracked")]:
            del state[key]

    _edit(source, drop)
    _convert(source, tmp_path / "flax")
    _convert(tmp_path / "flax", tmp_path / "hf")
    assert_same(load_file(tmp_path / "hf" / "model.safetensors"), load_file(source / "model.safetensors"))


def test_destinations_are_guarded(make_folder, tmp_path, capsys, assert_same):
    source = make_folder()
    assert "could be a torchvision or a timm file" in _refused(capsys, source, tmp_path / "out.pth")
    assert "format hf is a folder" in _refused(capsys, source, tmp_path / "out.pth", "--to", "hf")
    assert "format torchvision is a file" in _refused(
        capsys, make_folder(config=TORCH_LIKE, name="b"), tmp_path / "x", "--to", "torchvision"
    )
    assert "is in the format hf, not timm" in _refused(capsys, source, tmp_path / "out", "--from", "timm")
    assert "is where the source lies" in _refused(capsys, source, source, "--overwrite", "--to", "hf")
    assert "No folder" in _refused(capsys, tmp_path / "absent", tmp_path / "out")
    assert "No file or folder absent.pth" in _refused(capsys, "absent.pth", tmp_path / "out")
    assert "could not be downloaded" in _refused(capsys, "owner/name", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert "exists and is not empty" in _refused(capsys, source, tmp_path / "full")
    assert "holds no model" in _refused(capsys, source, tmp_path / "full", "--overwrite")
    _convert(source, tmp_path / "out")
    assert "exists and is not empty" in _refused(capsys, source, tmp_path / "out")
    _convert(source, tmp_path / "out", "--overwrite", "--to", "hf")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"config.json", "preprocessor_config.json", "model.safetensors"}, "what lay there before is gone"
    (source / "preprocessor_config.json").unlink()
    _convert(source, tmp_path / "out", "--overwrite")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"config.json", "extra_tensors.safetensors", "variables"}
    assert_same(from_pretrained(tmp_path / "out")[1], from_pretrained(source)[1])


def test_a_damaged_flax_folder_is_named(make_folder, tmp_path):
    _convert(make_folder(), tmp_path / "flax")
    for path in (tmp_path / "flax" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(CheckpointError, match=r"Cannot read .*variables.*no Orbax checkpoint") as caught:
        from_pretrained(tmp_path / "flax")
    assert "NoneType" not in str(caught.value)


@pytest.mark.parametrize("layout", ["hf", "flax"])
def test_a_cut_write_leaves_nothing_that_looks_whole(make_folder, tmp_path, monkeypatch, random_variables, layout):
    source = make_folder()
    model = make_model(CONFIG, "classification")
    write = files.write_text

    def cut(path, text):
        if path.name == "config.json":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(files, "write_text", cut)
    for folder in (tmp_path / "new", source):
        with pytest.raises(KeyboardInterrupt):
            save_pretrained(folder, model, random_variables(CONFIG, "classification", seed=9), layout=layout)
        with pytest.raises((CheckpointError, ConfigError), match=r"No folder|No model config"):
            from_pretrained(folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("to", ["hf", "flax", "timm"])
@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupt_is_one_word_and_leaves_nothing(make_folder, tmp_path, monkeypatch, capsys, to, exists):
    source, target = make_folder(config=TORCH_LIKE), tmp_path / "out"
    if exists:
        target.mkdir()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([str(source), str(target), "--to", to]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert target.exists() == exists
    assert not exists or not list(target.iterdir())


def test_the_source_is_never_written_to(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE)
    before = {path: path.read_bytes() for path in source.iterdir()}
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "linked").mkdir()
    for path in before:
        (tmp_path / "linked" / path.name).symlink_to(path)
    for place, target, to in (
        (source, source / "model.safetensors", "timm"),
        (source, source / "new.safetensors", "timm"),
        (source, source / "below" / "new", "flax"),
        (source, tmp_path / "link", "hf"),
        (source, tmp_path / "link" / "new", "hf"),
        (tmp_path / "link", source, "hf"),
        (tmp_path / "linked", source / "model.safetensors", "timm"),
        (source / "model.safetensors", source, "hf"),
        (source / "model.safetensors", tmp_path / "link" / "model.safetensors", "timm"),
    ):
        message = _refused(capsys, place, target, "--to", to, "--overwrite")
        assert message == f"error: {target} is where the source lies; name another place.\n"
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    _convert(source / "model.safetensors", source / "beside.safetensors", "--to", "timm")  # a file beside a file
    _convert(source, tmp_path / "flax")
    assert "where the source lies" in _refused(capsys, tmp_path / "flax", tmp_path / "flax" / "variables" / "x")


def test_what_killed_writes_left_counts_as_nothing(make_folder, tmp_path, capsys):
    source, target = make_folder(), tmp_path / "out"
    target.mkdir()
    (target / ".model.safetensors.12.tmp").write_text("x")
    (target / "variables.orbax-checkpoint-tmp-7").mkdir()
    (target / "variables.orbax-checkpoint-tmp-7" / "_METADATA").write_text("x")
    _convert(source, target)
    left = {path.name for path in target.iterdir()}
    assert left == {"config.json", "preprocessor_config.json", "extra_tensors.safetensors", "variables"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".hidden").write_text("x")
    assert "exists and is not empty" in _refused(capsys, source, tmp_path / "other")


def test_a_file_in_the_way_is_named(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE)
    (tmp_path / "plain").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent" / "place")
    (tmp_path / "folder.pth").mkdir()
    for target, options, message in (
        ("plain", [], "plain is a file, where a folder is needed"),
        ("plain", ["--overwrite"], "plain is a file, where a folder is needed"),
        ("plain/a/b", [], "plain is a file, where a folder is needed"),
        ("plain/a.pth", ["--to", "timm"], "plain is a file, where a folder is needed"),
        ("dangling", [], "dangling is a link to nothing, where a folder is needed"),
        ("folder.pth", ["--to", "timm"], "folder.pth is a folder, where a file is to be written"),
    ):
        assert message in _refused(capsys, source, tmp_path / target, *options)
    assert (tmp_path / "plain").read_text() == "x"


def test_home_folders_of_nobody_are_named(make_folder, tmp_path, capsys):
    for source, target in (("~nosuchuser/x", tmp_path / "out"), (make_folder(), "~nosuchuser/x")):
        message = _refused(capsys, source, target)
        assert message.startswith("error: ~nosuchuser/x begins with a user's home folder")
    with pytest.raises(CheckpointError, match="home folder"):
        load_processor("~nosuchuser/x")


@pytest.mark.parametrize("names", [5, [["x"]], {"a": 1}, [None]])
def test_a_damaged_list_of_architectures_names_no_task(make_folder, tmp_path, names):
    source = make_folder()
    values = json.loads((source / "config.json").read_text()) | {"architectures": names}
    (source / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="Say which model you want"):
        from_pretrained(source)
    _convert(source, tmp_path / "flax")  # the tensors say what it is


def test_halved_counters_are_named(make_folder, tmp_path, capsys):
    source = make_folder()
    _edit(source, lambda state: state.update({key: value.astype(np.float16) for key, value in state.items()}))
    message = _refused(capsys, source, tmp_path / "out")
    assert "num_batches_tracked is float16; this counter of batches must be an integer" in message
    assert "v.half() if v.is_floating_point() else v" in message
    from_pretrained(source)  # which reads no counters


def _set_processor(folder, **settings):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": "a"}}, "size['shortest_edge'] must be"),
        ({"resample": [1]}, "resample must be"),
        ({"image_std": "x"}, "image_std must be"),
        ({"crop_size": [[1]]}, "crop_size must be"),
    ],
)
def test_a_damaged_processor_is_named(make_folder, tmp_path, capsys, settings, message):
    source = make_folder(config=TORCH_LIKE)
    _set_processor(source, **settings)
    assert f"The source's preprocessor_config.json: {message}" in _refused(
        capsys, source, tmp_path / "out", "--to", "timm"
    )
    assert not (tmp_path / "out").exists()


def _through_timm(source, tmp_path):
    _convert(source, tmp_path / "timm", "--to", "timm")
    _convert(tmp_path / "timm", tmp_path / "back", "--to", "hf")
    return json.loads((tmp_path / "timm" / "config.json").read_text()), load_processor(tmp_path / "back")


@pytest.mark.parametrize(
    ("settings", "same_as"),
    [
        ({"crop_size": 224}, {"crop_size": 224}),
        ({"crop_size": None, "size": None}, {}),
        ({"image_mean": 0.25}, {"image_mean": 0.25, "crop_size": 96}),
        ({"crop_size": 256, "size": 224}, {"crop_size": 256, "size": 224}),  # padded with zeros by both
        ({"crop_size": 224, "size": 400}, {"crop_size": 224, "size": 400}),
    ],
)
def test_every_form_of_a_processor_goes_through_timm(make_folder, tmp_path, capsys, settings, same_as):
    source = make_folder(config=TORCH_LIKE)
    _set_processor(source, **settings)
    _, processor = _through_timm(source, tmp_path)
    assert processor == MobileNetV2ImageProcessor(**same_as)
    assert "timm cannot" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_resize": False, "do_center_crop": False}, ["do_resize=False", "do_center_crop=False"]),
        ({"do_rescale": False, "do_normalize": False}, ["do_rescale=False", "do_normalize=False"]),
        ({"rescale_factor": 1 / 127.5}, ["rescale_factor=0.00784"]),
        ({"crop_size": [96, 80]}, ["crop_size={'height': 96, 'width': 80}"]),
        ({"size": [96, 80]}, ["size={'height': 96, 'width': 80}"]),
    ],
)
def test_what_timm_cannot_prepare_is_noted(make_folder, tmp_path, capsys, settings, named):
    source = make_folder(config=TORCH_LIKE)
    _set_processor(source, **settings)
    _convert(source, tmp_path / "timm", "--to", "timm")
    notes = [line for line in capsys.readouterr().out.splitlines() if "timm cannot prepare images with" in line]
    assert len(notes) == len(named)
    for note, name in zip(notes, named, strict=True):
        assert f"with {name}" in note


def test_other_things_that_stay_behind_are_noted(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE.replace(problem_type="multi_label_classification"))
    for to in ("timm", "torchvision"):
        _convert(source, tmp_path / f"{to}.safetensors", "--to", to)
        out = capsys.readouterr().out
        assert f"note        {to} has no problem_type: 'multi_label_classification' stays behind" in out
        assert f"note        a {to} file holds tensors only" in out
    (source / "preprocessor_config.json").unlink()
    _convert(source, tmp_path / "timm", "--to", "timm")
    assert "no preprocessor_config.json: timm's usual preprocessing is written" in capsys.readouterr().out


def test_a_processor_that_was_changed_on_the_way_is_what_timm_gets(make_folder, tmp_path):
    _convert(make_folder(config=TORCH_LIKE), tmp_path / "timm", "--to", "timm")
    before = json.loads((tmp_path / "timm" / "config.json").read_text())
    _convert(tmp_path / "timm", tmp_path / "hf", "--to", "hf")
    _set_processor(tmp_path / "hf", size={"shortest_edge": 128}, resample=3)
    _convert(tmp_path / "hf", tmp_path / "again", "--to", "timm")
    after = json.loads((tmp_path / "again" / "config.json").read_text())
    changed = {"crop_pct": 96 / 128, "interpolation": "bicubic"}
    assert after == before | {"pretrained_cfg": before["pretrained_cfg"] | changed}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pretrained_cfg": {"mean": ["a"]}}, "image_mean must be three finite numbers"),
        ({"pretrained_cfg": {"std": [0.5, 0.5]}}, "image_std must be three finite numbers"),
        ({"pretrained_cfg": {"std": 0}}, "image_std must be above 0"),
        ({"pretrained_cfg": {"crop_pct": 1e-308}}, "crop_pct above 0"),
        ({"pretrained_cfg": {"crop_pct": float("nan")}}, "crop_pct above 0"),
        ({"pretrained_cfg": {"crop_pct": 10**400}}, "crop_pct above 0"),
        ({"pretrained_cfg": {"crop_pct": 1000}}, "size['shortest_edge'] must be"),
        ({"pretrained_cfg": {"input_size": [3, 0, 0]}}, "square input_size"),
        ({"pretrained_cfg": {"input_size": [3, 10**400, 10**400]}}, "square input_size"),
        ({"pretrained_cfg": {"interpolation": ["a"]}}, "interpolation among"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg in the config.json of a timm folder must be an object"),
        ({"label_names": [["a"]] * 5, "label_descriptions": {"a": "b"}}, "label_names in the config.json"),
    ],
)
def test_damaged_configs_of_timm_are_named(make_folder, tmp_path, capsys, values, message):
    source = make_folder(config=TORCH_LIKE)
    _convert(source, tmp_path / "timm", "--to", "timm")
    path = tmp_path / "timm" / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps(config))
    capsys.readouterr()
    message_found = _refused(capsys, tmp_path / "timm", tmp_path / "out")
    assert message in message_found
    assert len(message_found.splitlines()) == 1
    # The same, kept in a config.json of ours; what is no such config is not looked at.
    text = json.loads((source / "config.json").read_text())
    for kept in (config, 5):
        (source / "config.json").write_text(json.dumps(text | {timm.CONFIG_KEY: kept}))
        assert main([str(source), str(tmp_path / "o"), "--to", "timm"]) in (0, 2)


def test_one_number_for_all_channels_is_read_from_timm(make_folder, tmp_path):
    _convert(make_folder(config=TORCH_LIKE), tmp_path / "timm", "--to", "timm")
    path = tmp_path / "timm" / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"] |= {"mean": 0.25, "std": None}
    path.write_text(json.dumps(config))
    _convert(tmp_path / "timm", tmp_path / "hf", "--to", "hf")
    processor = load_processor(tmp_path / "hf")
    assert (processor.image_mean, processor.image_std) == ([0.25] * 3, [0.229, 0.224, 0.225])


def test_a_network_of_other_channels_has_no_processor(make_folder, tmp_path, capsys):
    source = make_folder(config=TORCH_LIKE.replace(num_channels=4))
    (source / "preprocessor_config.json").unlink()
    _convert(source, tmp_path / "timm", "--to", "timm")
    values = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert values["pretrained_cfg"]["input_size"] == [4, 224, 224]
    _convert(tmp_path / "timm", tmp_path / "hf", "--to", "hf")
    assert "makes 3 channels, not 4: preprocessing stays behind" in capsys.readouterr().out
    assert not (tmp_path / "hf" / "preprocessor_config.json").exists()
    _convert(tmp_path / "hf", tmp_path / "again", "--to", "timm")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == values


@pytest.mark.parametrize("crop", [192, 224])
def test_every_edge_is_read_back_by_timms_rule(crop):
    for edge in range(150, 513):
        written = timm._from_processor(MobileNetV2ImageProcessor(size=edge, crop_size=crop), 3)
        assert math.floor(crop / written["crop_pct"]) == edge
        assert abs(written["crop_pct"] - crop / edge) < 1e-9
        assert timm.make_processor(written).size == {"shortest_edge": edge}


@pytest.mark.slow
def test_the_module_runs_as_a_command(tmp_path, random_variables, monkeypatch):
    monkeypatch.undo()  # the other process has all sixteen blocks
    config = CONFIG.replace(depth_multiplier=0.35)
    save_pretrained(tmp_path / "hf", make_model(config, "classification"), random_variables(config, "classification"))
    command = [sys.executable, "-m", "flax_mnv2.convert", "hf", "flax"]
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = {"PATH": "", "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("source      hf (hf)\nnetwork     MobileNetV2 0.35, classification, 5 classes")
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("error: flax exists and is not empty; name another place, or pass --overwrite.\n")
