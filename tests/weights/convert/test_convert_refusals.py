"""What the convert command cannot read or represent is refused, with names."""

import json

import numpy as np
import pytest
from converting import CONFIG, TORCH_LIKE, convert, edit_tensors, refused
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from flax_mnv2 import CheckpointError, ConfigError, from_pretrained
from flax_mnv2.weights.opening import open_weights

pytestmark = pytest.mark.usefixtures("one_variant")


@pytest.mark.parametrize("form", ["hf", "torchvision", "timm", "flax"])
def test_every_difference_is_named(make_folder, tmp_path, capsys, form):
    source = tmp_path / ("form" if form in ("hf", "flax") else "form.safetensors")
    convert(make_folder(config=TORCH_LIKE), source, "--to", form)
    naming = open_weights(source).naming
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
    message = refused(capsys, source, tmp_path / "out", "--to", "flax")
    assert f"1 missing:\n    {norm} " in message
    assert f"1 unexpected:\n    {first}s (3, 4)" in message
    assert f"{last}: the checkpoint has (9,), the model needs (5,)" in message
    assert not (tmp_path / "out").exists()


def test_unknown_names_are_shown_beside_the_known(tmp_path, capsys):
    save_file({"conv1.weight": np.zeros((2, 3), np.float32)}, tmp_path / "resnet.safetensors")
    message = refused(capsys, tmp_path / "resnet.safetensors", tmp_path / "out")
    assert "found 1: conv1.weight (2, 3)" in message
    assert "torchvision: features.0.0.weight" in message


def test_another_model_of_torchvision_is_refused_with_its_differences(tmp_path, capsys):
    """MobileNetV3 too begins with features.0.0."""
    names = {"features.0.0.weight": (16, 3, 3, 3), "features.1.block.0.0.weight": (16, 1, 3, 3)}
    save_file({key: np.zeros(shape, np.float32) for key, shape in names.items()}, tmp_path / "v3.safetensors")
    message = refused(capsys, tmp_path / "v3.safetensors", tmp_path / "out")
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
    convert(make_folder(config=TORCH_LIKE), path, "--to", to)
    save_file({key: value for key, value in load_file(path).items() if key not in absent}, path)
    message = refused(capsys, path, tmp_path / "out")
    assert missing in message
    assert "unexpected" not in message


def test_a_file_of_transformers_needs_its_config(make_folder, tmp_path, capsys, assert_same):
    source = make_folder()
    convert(source / "model.safetensors", tmp_path / "flax")
    assert_same(from_pretrained(tmp_path / "flax")[1], from_pretrained(source)[1])
    (source / "config.json").unlink()
    assert "No config.json lies beside it" in refused(capsys, source / "model.safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "resnet"}, "model_type 'resnet'"),
        ({"architecture": "resnet18"}, "timm's architecture 'resnet18'"),
        ({"architecture": "mobilenetv2_050", "model_args": {"act_layer": "gelu"}}, "does not have: act_layer"),
        ({"architecture": "mobilenetv2_050", "global_pool": ""}, "does not have: global_pool"),
        ({"architecture": "mobilenetv2_050", "model_args": [1]}, "model_args in the config.json"),
        ({"architecture": "mobilenetv2_050", "pretrained_cfg": {"crop_pct": "x"}}, "crop_pct above 0"),
        ({"architecture": "mobilenetv2_050", "pretrained_cfg": {"input_size": [3, 224, 192]}}, "square input_size"),
    ],
)
def test_configs_of_other_models_are_refused(make_folder, tmp_path, capsys, values, message):
    source = make_folder()
    (source / "config.json").write_text(json.dumps(values))
    assert message in refused(capsys, source, tmp_path / "out")


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_what_another_library_cannot_represent_is_listed(make_folder, tmp_path, capsys, to):
    config = CONFIG.replace(output_stride=16, hidden_act="relu", first_layer_is_expansion=False)
    message = refused(capsys, make_folder("segmentation", config), tmp_path / "out.safetensors", "--to", to)
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
    message = refused(capsys, source, tmp_path / "out.safetensors", "--to", "torchvision")
    assert "num_channels: torchvision needs 3, the source has 4" in message
    assert "num_labels: torchvision needs 1, the source has 0" in message
    convert(source, tmp_path / "out.safetensors", "--to", "timm")  # which has both
    config = open_weights(tmp_path / "out.safetensors").config
    assert (config.num_channels, config.num_labels) == (4, 0)


def test_double_precision_beyond_single_is_refused(make_folder, tmp_path, capsys):
    source = make_folder()
    edit_tensors(source, lambda state: state.update({"classifier.bias": np.full(5, 1e300)}))
    assert "classifier.bias is float64 with values beyond float32's range" in refused(capsys, source, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"classifier\.bias is float64"):
        from_pretrained(source)


def test_a_damaged_flax_folder_is_named(make_folder, tmp_path):
    convert(make_folder(), tmp_path / "flax")
    for path in (tmp_path / "flax" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(CheckpointError, match=r"Cannot read .*variables.*no Orbax checkpoint") as caught:
        from_pretrained(tmp_path / "flax")
    assert "NoneType" not in str(caught.value)


@pytest.mark.parametrize("names", [5, [["x"]], {"a": 1}, [None]])
def test_a_damaged_list_of_architectures_names_no_task(make_folder, tmp_path, names):
    source = make_folder()
    values = json.loads((source / "config.json").read_text()) | {"architectures": names}
    (source / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="Say which model you want"):
        from_pretrained(source)
    convert(source, tmp_path / "flax")  # the tensors say what it is


def test_one_architecture_may_stand_without_a_list(make_folder):
    source = make_folder()
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"architectures": values["architectures"][0]}))
    assert open_weights(source).task == "classification"


def test_halved_counters_are_named(make_folder, tmp_path, capsys):
    source = make_folder()
    edit_tensors(source, lambda state: state.update({key: value.astype(np.float16) for key, value in state.items()}))
    message = refused(capsys, source, tmp_path / "out")
    assert "num_batches_tracked is float16; this counter of batches must be an integer" in message
    assert "v.half() if v.is_floating_point() else v" in message
    from_pretrained(source)  # which reads no counters
