"""Reading and writing Hugging Face folders: strict, both ways, and never executing what a file holds."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from flax_mnv2 import (
    CheckpointError,
    ConfigError,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
    from_pretrained,
    load_backbone,
    save_pretrained,
)
from flax_mnv2.pretrained import variable_shapes

CONFIG = MobileNetV2Config(depth_multiplier=0.35, num_labels=6)


def _random_variables(model, seed=0):
    rng = np.random.default_rng(seed)
    flat = {path: rng.uniform(0.1, 1.0, shape).astype(np.float32) for path, shape in variable_shapes(model).items()}
    return traverse_util.unflatten_dict(flat)


@pytest.fixture
def segmentation_folder(tmp_path, tiny_blocks):
    model = MobileNetV2ForSemanticSegmentation(CONFIG)
    variables = _random_variables(model)
    save_pretrained(tmp_path / "model", model, variables)
    return tmp_path / "model", variables


def _assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "model_class", [MobileNetV2Model, MobileNetV2ForImageClassification, MobileNetV2ForSemanticSegmentation]
)
def test_round_trip_is_exact(tmp_path, tiny_blocks, model_class):
    model = model_class(CONFIG)
    variables = _random_variables(model)
    save_pretrained(tmp_path, model, variables)
    loaded_model, loaded = from_pretrained(tmp_path)
    assert type(loaded_model) is model_class
    assert loaded_model.config.replace(extra={}) == CONFIG
    _assert_same(loaded, variables)


@pytest.mark.parametrize(
    "name", ["MobileNetV2Model", "MobileNetV2ForImageClassification", "MobileNetV2ForSemanticSegmentation"]
)
def test_transformers_loads_what_is_saved(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    import flax_mnv2

    model = getattr(flax_mnv2, name)(CONFIG)
    save_pretrained(tmp_path, model, _random_variables(model))
    reference, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    saved = load_file(tmp_path / "model.safetensors")
    for key, value in reference.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), saved[key])


def test_overrides_reach_the_model(segmentation_folder):
    folder, _ = segmentation_folder
    model, _ = from_pretrained(folder, output_stride=8, dtype=jnp.bfloat16)
    assert model.config.output_stride == 8
    assert model.dtype == jnp.bfloat16
    with pytest.raises(ConfigError, match="no field output_strid;"):
        from_pretrained(folder, output_strid=8)


def _edit(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_every_difference_is_named(segmentation_folder):
    folder, _ = segmentation_folder
    key = "segmentation_head.classifier.convolution."

    def change(state):
        del state["mobilenet_v2.layer.1.conv_3x3.normalization.running_var"]
        state["mobilenet_v2.layer.99.mystery"] = np.zeros((3, 4), np.float32)
        state[key + "weight"] = np.zeros((9, 256, 1, 1), np.float32)

    _edit(folder, change)
    with pytest.raises(CheckpointError) as caught:
        from_pretrained(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "1 missing:\n    mobilenet_v2.layer.1.conv_3x3.normalization.running_var" in message
    assert "1 unexpected:\n    mobilenet_v2.layer.99.mystery (3, 4)" in message
    assert f"{key}weight: the checkpoint has (9, 256, 1, 1), the model needs (6, 256, 1, 1)" in message


def test_pytorch_file_is_read_like_safetensors(segmentation_folder):
    torch = pytest.importorskip("torch")
    folder, variables = segmentation_folder
    state = {key: torch.from_numpy(value) for key, value in load_file(folder / "model.safetensors").items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    _assert_same(from_pretrained(folder)[1], variables)


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_does_not_run(segmentation_folder, tmp_path, protocol):
    pytest.importorskip("torch")
    folder, _ = segmentation_folder
    (folder / "model.safetensors").unlink()
    sprung = tmp_path / "sprung"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": _Trap(sprung)}, protocol=protocol))
    with pytest.raises(CheckpointError, match="never executed"):
        from_pretrained(folder)
    assert not sprung.exists()


def test_a_torch_file_that_is_no_state_dict_is_refused(segmentation_folder):
    torch = pytest.importorskip("torch")
    folder, _ = segmentation_folder
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a state dict"):
        from_pretrained(folder)


def test_damaged_and_absent_files_are_named(segmentation_folder, tmp_path):
    folder, _ = segmentation_folder
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.safetensors.*damaged"):
        from_pretrained(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model.bin"):
        from_pretrained(folder)
    with pytest.raises(CheckpointError, match="No folder"):
        from_pretrained(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="No model config"):
        from_pretrained(tmp_path / "empty")


def test_a_hub_id_without_network_is_explained(tmp_path):
    with pytest.raises(CheckpointError, match=r"could not be downloaded .* give a local folder"):
        from_pretrained("nobody/nothing", cache_dir=tmp_path)


def test_a_config_without_architecture_asks_for_the_task(segmentation_folder):
    folder, variables = segmentation_folder
    values = json.loads((folder / "config.json").read_text())
    del values["architectures"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="Say which model you want"):
        from_pretrained(folder)
    _assert_same(from_pretrained(folder, task="segmentation")[1], variables)


def test_backbone_alone_goes_into_a_new_head(segmentation_folder, tiny_blocks):
    folder, saved = segmentation_folder
    model = MobileNetV2ForSemanticSegmentation(CONFIG.replace(num_labels=3))
    fresh = _random_variables(model, seed=1)
    loaded = load_backbone(folder, fresh)
    for collection in ("params", "batch_stats"):
        _assert_same(loaded[collection]["mobilenet_v2"], saved[collection]["mobilenet_v2"])
        _assert_same(loaded[collection]["segmentation_head"], fresh[collection]["segmentation_head"])


def test_backbone_of_another_width_is_refused_by_name(segmentation_folder):
    folder, _ = segmentation_folder
    model = MobileNetV2ForSemanticSegmentation(CONFIG.replace(depth_multiplier=1.0))
    with pytest.raises(CheckpointError, match="of another shape") as caught:
        load_backbone(folder, _random_variables(model))
    assert "mobilenet_v2.conv_stem.first_conv.convolution.weight" in str(caught.value)


def test_imagenet_backbone_in_deeplab(shared):
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=11, output_stride=16))
    loaded = load_backbone(shared / "weights" / "mobilenet_v2_1.0_224", _random_variables(model))
    kernel = loaded["params"]["mobilenet_v2"]["conv_stem"]["first_conv"]["convolution"]["kernel"]
    state = load_file(shared / "weights" / "mobilenet_v2_1.0_224" / "model.safetensors")
    theirs = state["mobilenet_v2.conv_stem.first_conv.convolution.weight"]
    np.testing.assert_array_equal(kernel[1, 2, 0], theirs[:, 0, 1, 2])
