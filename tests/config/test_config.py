"""The config: round trips, validation, and the layer plan against the published architecture."""

import copy
import dataclasses
import json
import pickle

import jax.numpy as jnp
import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config
from flax_mnv2.config.checks import ACTIVATIONS
from flax_mnv2.layer_plan import make_divisible
from flax_mnv2.models.ops.activations import ACTIVATION_FUNCTIONS, activation


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    ours, theirs = MobileNetV2Config().to_dict(), transformers.MobileNetV2Config().to_dict()
    for name, value in ours.items():
        if name not in ("id2label", "label2id"):
            assert theirs[name] == value, name
    # transformers writes no labels that are generic; it has these
    assert transformers.MobileNetV2Config().id2label == ours["id2label"]


def test_json_round_trip_keeps_unknown_keys(tmp_path):
    values = {
        "model_type": "mobilenet_v2",
        "depth_multiplier": 0.5,
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "architectures": ["MobileNetV2ForSemanticSegmentation"],
        "something_new": {"nested": [1, {"deep": None}]},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = MobileNetV2Config.from_json_file(tmp_path / "config.json")
    config.to_json_file(tmp_path / "again.json")
    written = json.loads((tmp_path / "again.json").read_text())
    assert written.items() >= values.items()
    assert MobileNetV2Config.from_dict(written) == config
    assert hash(config) == hash(MobileNetV2Config.from_dict(written))


def test_real_configs_round_trip(shared):
    paths = sorted((shared / "weights").glob("*/config.json"))
    assert paths
    for path in paths:
        assert json.loads(MobileNetV2Config.from_json_file(path).to_json_string()) == json.loads(path.read_text())


def test_own_fields_are_written_only_where_they_differ():
    assert "batch_norm_momentum" not in MobileNetV2Config().to_dict()
    config = MobileNetV2Config(batch_norm_momentum=0.95, head_batch_norm_momentum=0.9)
    assert MobileNetV2Config.from_dict(config.to_dict()) == config


def test_labels_follow_from_each_other():
    assert MobileNetV2Config().num_labels == 2
    assert MobileNetV2Config(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config = MobileNetV2Config(id2label={0: "crane", 1: "crow", 2: "crane"})
    assert config.num_labels == 3
    assert config.label2id == {"crane": 2, "crow": 1}
    assert config.replace(num_labels=2).id2label[1] == "LABEL_1"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_channels", 0, "an integer from 1"),
        ("num_channels", 3.0, "an integer"),
        ("num_channels", True, "an integer"),
        ("image_size", "224", "a pair"),
        ("image_size", (224, 224, 3), "a pair"),
        ("depth_multiplier", 0, "above 0"),
        ("depth_multiplier", -1.0, "above 0"),
        ("depth_multiplier", float("nan"), "a number"),
        ("depth_multiplier", 1e9, "to 64"),
        ("depth_multiplier", "1.0", "a number"),
        ("depth_divisible_by", 0, "an integer from 1"),
        ("min_depth", -8, "an integer from 1"),
        ("expand_ratio", float("inf"), "a number"),
        ("output_stride", 0, "an integer from 1"),
        ("output_stride", 16.0, "an integer"),
        ("first_layer_is_expansion", 1, "one of True, False"),
        ("tf_padding", "yes", "one of True, False"),
        ("hidden_act", "relu7", "one of 'relu6'"),
        ("hidden_act", "prelu", "has parameters of its own"),
        ("hidden_act", dict, "one of 'relu6'"),
        ("return_dict", "no", "one of True, False"),
        ("label2id", {"a": "x"}, "a mapping from name to class index"),
        ("label2id", {"a": "9" * 4000}, "a mapping from name to class index"),
        ("label2id", ["a"], "a mapping from name to class index"),
        ("architectures", {1}, "must be what JSON can hold"),
        ("classifier_dropout_prob", 1.5, "from 0"),
        ("initializer_range", -0.1, "from 0"),
        ("layer_norm_eps", None, "a number"),
        ("semantic_loss_ignore_index", "255", "an integer"),
        ("num_labels", -1, "an integer from 0"),
        ("num_labels", 10**9, "to 200000"),
        ("id2label", ["a", "b"], "a mapping"),
        ("id2label", {"x": "a"}, "a mapping"),
        ("id2label", {0: "a", 2: "b"}, "every class from 0 to 1"),
        ("batch_norm_momentum", 2.0, "from 0"),
    ],
)
def test_bad_values_name_the_field_and_what_it_takes(field, value, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        MobileNetV2Config(**{field: value})
    assert field in str(caught.value)


def test_disagreeing_labels_are_refused():
    with pytest.raises(ConfigError, match="num_labels is 3 but id2label names 2"):
        MobileNetV2Config(num_labels=3, id2label={0: "a", 1: "b"})


def test_cross_entropy_over_one_class_is_refused():
    with pytest.raises(ConfigError, match="needs at least two classes"):
        MobileNetV2Config(num_labels=1, problem_type="single_label_classification")


def test_unknown_override_is_named():
    with pytest.raises(ConfigError, match="no field output_strid;"):
        MobileNetV2Config().replace(output_strid=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Cannot read"),
        ("[1]", "must be a JSON object"),
        ('{"model_type": "resnet"}', "model_type 'resnet'"),
        ('{"output_stride": "16"}', "output_stride must be"),
        ('{"output_hidden_states": 1}', "output_hidden_states must be"),
        ("[" * 100_000, "Cannot read"),
        ('{"x": ' + "9" * 5000 + "}", "Cannot read"),
        ('{"depth_multiplier": ' + "9" * 400 + "}", "depth_multiplier must be"),
        ('{"depth_multiplier": NaN}', "depth_multiplier must be"),
        ('{"layer_norm_eps": -Infinity}', "layer_norm_eps must be"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        MobileNetV2Config.from_json_file(path)
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------------- as a config of transformers


def test_common_keywords_are_kept_read_and_written_back(tmp_path):
    given = {"architectures": ["A"], "output_attentions": True, "dtype": jnp.bfloat16, "torchscript": True}
    config = MobileNetV2Config(**given)
    assert (config.architectures, config.output_attentions, config.torchscript) == (["A"], True, True)
    assert config.dtype == config.torch_dtype == "bfloat16"
    config.save_pretrained(tmp_path / "new")
    assert MobileNetV2Config.from_pretrained(tmp_path / "new") == config
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written.items() >= {**given, "dtype": "bfloat16"}.items()
    assert MobileNetV2Config(output_attentions=False, architectures=None) == MobileNetV2Config()
    assert MobileNetV2Config().architectures is None
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(AttributeError, match="no attribute 'num_layers'"):
        config.num_layers  # noqa: B018


def test_unknown_keywords_are_kept_with_one_warning():
    with pytest.warns(UserWarning, match="no field my_note, output_strid; kept") as caught:
        config = MobileNetV2Config(output_strid=8, my_note={"a": 1}, extra={"more": 2})
    assert len(caught) == 1
    assert (config.my_note, config.more, config.output_stride) == ({"a": 1}, 2, 32)
    assert config.replace(my_note=3, dtype="float16").to_diff_dict()["my_note"] == 3  # known by then, and silent


def test_an_assignment_names_replace():
    config = MobileNetV2Config()
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"config = config\.replace\(num_labels=3\)"):
        config.num_labels = 3
    assert config.num_labels == 2


def test_labels_may_have_indices_as_strings():
    config = MobileNetV2Config(id2label={"0": "cat", "1": "dog"}, label2id={"cat": "0", "dog": "1"})
    assert config.label2id == {"cat": 0, "dog": 1}


def test_defaults_for_calls_are_fields_and_null_is_off():
    config = MobileNetV2Config.from_dict({"output_hidden_states": True, "return_dict": False})
    assert (config.output_hidden_states, config.return_dict, config.use_return_dict) == (True, False, False)
    assert json.loads(config.to_json_string()).items() >= {"output_hidden_states": True, "return_dict": False}.items()
    assert MobileNetV2Config.from_dict({"output_hidden_states": None}).output_hidden_states is False
    assert "return_dict" not in MobileNetV2Config().to_diff_dict()
    assert MobileNetV2Config().to_dict()["return_dict"] is True
    assert MobileNetV2Config.from_dict(config.to_dict()) == config


def test_from_pretrained_takes_a_folder_or_the_file_and_overrides(tmp_path):
    MobileNetV2Config(depth_multiplier=0.5, image_size=[96, 128]).save_pretrained(tmp_path)
    config = MobileNetV2Config.from_pretrained(tmp_path, tf_padding=False, num_labels=5, torch_dtype="auto")
    assert (config.depth_multiplier, config.tf_padding, config.num_labels) == (0.5, False, 5)
    assert config.image_size == (96, 128)
    assert MobileNetV2Config.from_pretrained(tmp_path / "config.json").depth_multiplier == 0.5
    config, unused = MobileNetV2Config.from_pretrained(tmp_path, foo=1, min_depth=4, return_unused_kwargs=True)
    assert (config.min_depth, unused) == (4, {"foo": 1})
    with pytest.warns(UserWarning, match="no field foo; left out"):
        MobileNetV2Config.from_pretrained(tmp_path, foo=1)
    with pytest.raises(ConfigError, match=r"config\.json: min_depth must be"):
        MobileNetV2Config.from_pretrained(tmp_path, min_depth="4")
    with pytest.raises(ConfigError, match="is a file, where a folder is needed"):
        config.save_pretrained(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="No model config at"):
        MobileNetV2Config.from_pretrained(tmp_path)


def test_an_activation_may_be_a_function(tmp_path):
    config = MobileNetV2Config(hidden_act=jnp.sin)
    assert hash(config) == hash(MobileNetV2Config(hidden_act=jnp.sin))
    assert activation(config.hidden_act) is jnp.sin
    with pytest.raises(ConfigError, match="hidden_act is a function"):
        config.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("output_stride", [1, 5, 64])
def test_an_output_stride_that_is_never_reached_warns_and_runs_at_32(output_stride):
    with pytest.warns(UserWarning, match=f"output_stride {output_stride} is none that the network reaches"):
        config = MobileNetV2Config(output_stride=output_stride)
    assert config.layer_plan == MobileNetV2Config(output_stride=32).layer_plan


def test_every_activation_has_a_function():
    assert set(ACTIVATIONS) == set(ACTIVATION_FUNCTIONS)


@pytest.mark.parametrize(
    ("value", "expected"), [(16, 16), (11, 16), (10, 16), (12, 16), (7, 8), (33.6, 32), (20, 24), (19, 24)]
)
def test_make_divisible_never_loses_more_than_a_tenth(value, expected):
    assert make_divisible(value) == expected
    assert expected >= 0.9 * value


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [
        (32, [2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1], [1] * 16),
        (16, [2, 1, 2, 1, 1, 2] + [1] * 10, [1] * 13 + [2] * 3),
        (8, [2, 1, 2] + [1] * 13, [1] * 6 + [2] * 7 + [4] * 3),
        (4, [2] + [1] * 15, [1] * 3 + [2] * 3 + [4] * 7 + [8] * 3),
    ],
)
def test_output_stride_turns_strides_into_dilation(output_stride, strides, dilations):
    blocks = MobileNetV2Config(output_stride=output_stride).layer_plan.blocks
    assert [block.stride for block in blocks] == strides
    assert [block.dilation for block in blocks] == dilations
    assert blocks[-1].output_stride == output_stride
    assert [block.name for block in blocks] == sorted(block.name for block in blocks)


def test_widths_of_the_published_network():
    plan = MobileNetV2Config().layer_plan
    assert (plan.stem.channels, plan.stem.out_channels, plan.last_channels) == (32, 16, 1280)
    widths = [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
    assert [block.out_channels for block in plan.blocks] == widths
    assert all(block.expanded_channels == 6 * block.in_channels for block in plan.blocks)
    assert sum(block.residual for block in plan.blocks) == 10


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({"depth_multiplier": 0.5}, 1280),
        ({"depth_multiplier": 0.5, "finegrained_output": False}, 640),
        ({"depth_multiplier": 1.4}, 1792),
    ],
)
def test_width_of_the_last_convolution(changes, last):
    assert MobileNetV2Config(**changes).layer_plan.last_channels == last


def test_residual_is_decided_after_strides_are_removed():
    narrow = {"depth_multiplier": 0.35}
    assert not MobileNetV2Config(**narrow).layer_plan.blocks[0].residual
    assert MobileNetV2Config(**narrow, output_stride=2).layer_plan.blocks[0].residual


def test_names_alone_can_be_replaced():
    config = MobileNetV2Config(num_labels=3).replace(label2id={"a": 0, "b": 1, "c": 2})
    assert (config.num_labels, config.label2id["c"]) == (3, 2)


def test_names_of_the_deepest_network_sort_by_depth():
    names = [block.name for block in MobileNetV2Config(layer_depth_multiplier=6.0).layer_plan.blocks]
    assert len(names) == 91
    assert names == sorted(names)
