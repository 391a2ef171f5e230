"""Reading and writing Hugging Face folders: strict, both ways, and never executing what a file holds."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import flax_mnv2.config.mobilenet_v2
import flax_mnv2.layer_plan
from flax_mnv2 import (
    CheckpointError,
    ConfigError,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
    from_pretrained,
    from_state_dict,
    load_backbone,
    save_pretrained,
)
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.models import MobileNetV2Backbone
from flax_mnv2.weights.formats import hugging_face
from flax_mnv2.weights.pretrained import variable_shapes

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
    model = getattr(flax_mnv2, name)(CONFIG)
    save_pretrained(tmp_path, model, _random_variables(model))
    hf_model, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    saved = load_file(tmp_path / "model.safetensors")
    for key, value in hf_model.state_dict().items():
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


def test_other_labels_start_a_new_head_with_one_warning(segmentation_folder):
    folder, variables = segmentation_folder
    with pytest.warns(UserWarning, match="started afresh") as caught:
        model, loaded = from_pretrained(folder, num_labels=4, ignore_mismatched_sizes=True)
    assert len(caught) == 1
    key = "segmentation_head.classifier.convolution."
    assert f"{key}bias (6,), {key}weight (6, 256, 1, 1)." in str(caught[0].message)
    assert caught[0].filename == __file__
    assert model.config.num_labels == 4
    head = loaded["params"]["segmentation_head"].pop("classifier")["convolution"]
    old = variables["params"]["segmentation_head"].pop("classifier")["convolution"]
    _assert_same(loaded, variables)
    assert head["kernel"].shape == (1, 1, 256, 4)
    assert 0.015 < head["kernel"].std() < 0.025, "drawn as the model's own initialiser does"
    assert not head["bias"].any()
    assert old["bias"].all()
    with pytest.warns(UserWarning, match="started afresh"):
        _, again = from_pretrained(folder, id2label=dict(enumerate("wxyz")), ignore_mismatched_sizes=True)
    np.testing.assert_array_equal(
        again["params"]["segmentation_head"]["classifier"]["convolution"]["kernel"], head["kernel"]
    )


def test_other_labels_are_refused_unless_asked_for(segmentation_folder):
    folder, variables = segmentation_folder
    with pytest.raises(CheckpointError, match="pass ignore_mismatched_sizes=True") as caught:
        from_pretrained(folder, num_labels=4)
    assert "weight: the checkpoint has (6, 256, 1, 1), the model needs (4, 256, 1, 1)" in str(caught.value)
    model, loaded = from_pretrained(folder, num_labels=6, ignore_mismatched_sizes=True)
    assert model.config.replace(extra={}) == CONFIG
    _assert_same(loaded, variables)


def test_a_backbone_of_another_shape_is_never_started_afresh(segmentation_folder):
    folder, _ = segmentation_folder
    with pytest.raises(CheckpointError, match=r"of another shape:\n    mobilenet_v2\.") as caught:  # and no warning
        from_pretrained(folder, depth_multiplier=1.0, ignore_mismatched_sizes=True)
    assert "ignore_mismatched_sizes" not in str(caught.value)


def test_a_backbone_is_taken_from_any_checkpoint(tmp_path, tiny_blocks):
    model = MobileNetV2ForImageClassification(CONFIG)
    variables = _random_variables(model)
    save_pretrained(tmp_path, model, variables)
    backbone, loaded = from_pretrained(tmp_path, task="backbone")
    assert type(backbone) is MobileNetV2Model
    _assert_same(loaded["params"], {"mobilenet_v2": variables["params"]["mobilenet_v2"]})


def test_a_processor_is_saved_beside_the_model(tmp_path, tiny_blocks):
    model = MobileNetV2Model(CONFIG)
    save_pretrained(tmp_path, model, _random_variables(model), MobileNetV2ImageProcessor(crop_size=96))
    assert MobileNetV2ImageProcessor.from_pretrained(tmp_path).crop_size == {"height": 96, "width": 96}
    save_pretrained(tmp_path, model, _random_variables(model, seed=1))
    assert MobileNetV2ImageProcessor.from_pretrained(tmp_path).crop_size == {"height": 96, "width": 96}


@pytest.mark.parametrize(
    "fields",
    [{"layer_depth_multiplier": 1.2}, {"fixed_stem_and_head": True}, {"pool_window": 7}, {"round_widths": False}],
    ids=lambda fields: next(iter(fields)),
)
def test_what_transformers_cannot_represent_goes_into_the_flax_layout(tmp_path, monkeypatch, fields):
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((64, 1, 2), (16, 1, 2)))  # each field changes the first
    config = CONFIG.replace(depth_multiplier=0.68125, **fields)
    model = MobileNetV2ForImageClassification(config)
    variables = _random_variables(model)
    name, value = next(iter(fields.items()))
    with pytest.raises(ConfigError, match=rf"{name}: transformers has .*, this model {value}\n") as caught:
        save_pretrained(tmp_path / "hf", model, variables)
    assert 'layout="flax"' in str(caught.value)
    assert not (tmp_path / "hf").exists()
    save_pretrained(tmp_path / "flax", model, variables, layout="flax")
    loaded_model, loaded = from_pretrained(tmp_path / "flax")
    assert loaded_model.config.replace(extra={}) == config
    _assert_same(loaded, variables)


def test_fields_of_ours_that_change_nothing_are_no_obstacle(tmp_path, tiny_blocks):
    model = MobileNetV2Model(CONFIG.replace(round_widths=False, stem_residual=True, batch_norm_momentum=0.9))
    save_pretrained(tmp_path, model, _random_variables(model))
    assert from_pretrained(tmp_path)[0].config.replace(extra={}) == model.config


def test_every_field_of_ours_is_judged():
    """A new field must be placed: does it change the network that transformers would build?"""
    training_only = {"batch_norm_momentum", "head_batch_norm_momentum", "classifier_initializer_range"}
    refused = {"detection"}  # with the whole model, which transformers does not have
    left_out = {"quantization"}  # with a note: the weights are those of a network in floating point
    judged = {*hugging_face.PLAN_FIELDS, *hugging_face.OTHER_NETWORK_FIELDS, *training_only, *refused, *left_out}
    assert judged == set(flax_mnv2.config.mobilenet_v2._OWN_FIELDS)


def test_models_of_part_of_the_network_are_not_saved(tmp_path):
    with pytest.raises(ConfigError, match="A MobileNetV2Backbone cannot be saved"):
        save_pretrained(tmp_path, MobileNetV2Backbone(CONFIG), {})
    with pytest.raises(ConfigError, match="layout must be one of 'hf', 'flax'"):
        save_pretrained(tmp_path, MobileNetV2Model(CONFIG), {}, layout="tf")


@pytest.mark.parametrize("layout", ["hf", "flax"])
def test_variables_of_another_model_are_not_saved(tmp_path, tiny_blocks, layout):
    model = MobileNetV2ForImageClassification(CONFIG)
    variables = _random_variables(model)
    other = _random_variables(MobileNetV2ForImageClassification(CONFIG.replace(num_labels=4)))
    stem = "mobilenet_v2/conv_stem/first_conv"
    for wrong, messages in (
        ({"params": variables["params"]}, ["missing:", f"batch_stats/{stem}/normalization/mean (16,)"]),
        (other, ["params/classifier/bias: variables have (4,), the model needs (6,)"]),
        (
            variables | {"intermediates": {"x": (np.ones(2), np.ones(3))}},
            ["1 unexpected:\n    intermediates/x ()", "leave out intermediates."],
        ),
        (
            variables["params"],
            [
                "unexpected:\n    classifier/bias (6,)\n    classifier/kernel (1280, 6)\n    mobilenet_v2/",
                '{"params": …',
            ],
        ),
        ({}, ["missing:"]),
    ):
        with pytest.raises(CheckpointError, match="MobileNetV2ForImageClassification to be saved do not") as caught:
            save_pretrained(tmp_path / "new", model, wrong, layout=layout)
        for message in messages:
            assert message in str(caught.value)
        assert ("leave out" in str(caught.value)) == ("intermediates" in wrong)
        assert "the checkpoint" not in str(caught.value)
        assert not (tmp_path / "new").exists()


def test_another_head_is_named_with_what_helps(segmentation_folder, tmp_path):
    folder, _ = segmentation_folder
    with pytest.raises(CheckpointError, match="has the head of a segmentation model, and a classification") as caught:
        from_pretrained(folder, task="classification", num_labels=3, ignore_mismatched_sizes=True)
    assert 'task="backbone"' in str(caught.value)
    assert "load_backbone" in str(caught.value)
    model, backbone = from_pretrained(folder, task="backbone")
    save_pretrained(tmp_path / "backbone", model, backbone)
    with pytest.raises(CheckpointError, match="has no head, and a segmentation model was asked for"):
        from_pretrained(tmp_path / "backbone", task="segmentation")
    _edit(folder, lambda state: state.pop("segmentation_head.classifier.convolution.bias"))
    with pytest.raises(CheckpointError) as caught:
        from_pretrained(folder)
    assert "asked for" not in str(caught.value)


def test_a_model_is_not_saved_over_a_file(tmp_path, tiny_blocks):
    model = MobileNetV2Model(CONFIG)
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="file is a file, where a folder is needed"):
            save_pretrained(folder, model, _random_variables(model))


def test_shards_are_loaded(segmentation_folder):
    folder, variables = segmentation_folder
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(sorted(state))}
    for name in set(names.values()):
        save_file({key: state[key] for key in state if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    _assert_same(from_pretrained(folder)[1], variables)


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenet_v2.conv_stem.first_conv.convolution.weight", r"Pass config=MobileNetV2Config\.from_dict"),
        ("encoder.weight", "The tensors of the state dict are those of no format known here"),
    ],
)
def test_a_state_dict_that_says_too_little_is_explained(name, message):
    with pytest.raises(CheckpointError, match=message):
        from_state_dict({name: np.zeros((32, 3, 3, 3), np.float32)})
