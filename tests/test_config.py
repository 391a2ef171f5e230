"""The config: round trips, validation, and the layer plan against the published architecture."""

import json

import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config
from flax_mnv2.config import ACTIVATIONS
from flax_mnv2.layer_plan import make_divisible
from flax_mnv2.models.layers import ACTIVATION_FUNCTIONS


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    ours, theirs = MobileNetV2Config().to_dict(), transformers.MobileNetV2Config().to_dict()
    for name, value in ours.items():
        if name not in ("id2label", "label2id"):
            assert theirs[name] == value, name
    # transformers writes no labels that are generic; it has these
    assert {str(k): v for k, v in transformers.MobileNetV2Config().id2label.items()} == ours["id2label"]


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
        assert MobileNetV2Config.from_json_file(path).to_dict() == json.loads(path.read_text())


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
        ("output_stride", 12, "one of 2, 4, 8, 16, 32"),
        ("output_stride", 16.0, "one of"),
        ("first_layer_is_expansion", 1, "one of True, False"),
        ("tf_padding", "yes", "one of True, False"),
        ("hidden_act", "relu7", "one of 'relu6'"),
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
