"""DeepLab's head as its spec says: layers, sizes, rules, refusals."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config, fold_batch_norm, from_pretrained, save_pretrained
from flax_mnv2.config.deeplab import HUGGING_FACE, PRESETS, DeepLabSpec, preset
from flax_mnv2.losses import segmentation_loss
from flax_mnv2.models.complexity import complexity
from flax_mnv2.models.layers import window_means
from flax_mnv2.weights.source import make_model, variable_shapes

NARROW = {"channels": 16, "low_level_channels": 4, "low_level": "layer_00", "atrous_rates": (1, 2)}


def _variables(model, seed=0):
    """Random variables in the range of useful ones."""
    rng = np.random.default_rng(seed)
    tree = {}
    for path, shape in variable_shapes(model).items():
        *parents, leaf = path
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        spread = rng.normal(0.0, 0.2, shape) if leaf in ("kernel", "bias", "mean") else rng.uniform(0.5, 1.5, shape)
        node[leaf] = spread.astype(np.float32)
    return tree


def _segmenter(**fields):
    config = MobileNetV2Config(**{"num_labels": 3, "output_stride": 8, "depth_multiplier": 0.5} | fields)
    return make_model(config, "segmentation")


@pytest.mark.parametrize("name", PRESETS)
def test_counted_parameters_are_those_of_the_model(name, tiny_blocks):
    head = preset(name)
    head = head.replace(low_level=head.low_level and "layer_00/depthwise")
    model = _segmenter(deeplab=head, dilation_rule="smp", tf_padding=False, pad_block_input=name.startswith("vainf"))
    count = sum(int(np.prod(shape)) for path, shape in variable_shapes(model).items() if path[0] == "params")
    assert count == complexity(model.config, "segmentation").parameters


@pytest.mark.parametrize(
    ("fields", "millions", "billions"),
    [
        # MobileNetV2's paper, table 7, has 4.52 M and 5.8 B with atrous branches and no decoder. Of the latter 2.75 B
        # are without the branches, and what they add on 33×33 features is 2.6 B.
        ({"deeplab": DeepLabSpec(separable_branches=False, low_level=None, decoder_convs=0)}, 4.52, 5.36),
        # the table of VainF's repository: 5.226 M and 17.0 G
        ({"deeplab": "vainf", "tf_padding": False, "pad_block_input": True}, 5.23, 17.0),
    ],
)
def test_size_and_cost_are_the_published_ones(fields, millions, billions):
    figures = complexity(MobileNetV2Config(num_labels=21, output_stride=16, **fields), "segmentation", image_size=513)
    assert round(figures.parameters / 1e6, 2) == millions
    assert figures.multiply_adds / 1e9 == pytest.approx(billions, rel=0.02)


def test_the_head_of_hugging_face_is_said_by_nothing():
    plain = MobileNetV2Config()
    for value in ("hugging_face", HUGGING_FACE, HUGGING_FACE.to_dict()):
        assert MobileNetV2Config(deeplab=value) == plain
    assert not {"deeplab", "dilation_rule", "pad_block_input"} & json.loads(plain.to_json_string()).keys()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "hugging_face"])
def test_a_config_comes_back_from_json(name):
    config = MobileNetV2Config(deeplab=name, dilation_rule="mmseg", pad_block_input=True, tf_padding=False)
    assert config.deeplab == preset(name)
    again = MobileNetV2Config.from_dict(json.loads(config.to_json_string()))
    assert (again, hash(again)) == (config, hash(config))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("tf", [1] * 6 + [2] * 7 + [4] * 3),
        ("smp", [1] * 5 + [2] * 7 + [4] * 4),
        ("mmseg", [1] * 5 + [2, 1, 1, 1, 2, 1, 1, 4, 1, 1, 4]),
    ],
)
def test_dilations_by_each_rule(rule, expected):
    blocks = MobileNetV2Config(output_stride=8, dilation_rule=rule).layer_plan.blocks
    assert [block.dilation for block in blocks] == expected
    assert {block.dilation for block in MobileNetV2Config(dilation_rule=rule).layer_plan.blocks} == {1}


def test_rates_follow_the_output_stride_or_not():
    assert [DeepLabSpec().rates_at(stride) for stride in (8, 16, 32)] == [(12, 24, 36), (6, 12, 18), (3, 6, 9)]
    assert preset("smp").rates_at(16) == preset("smp").rates_at(8) == (12, 24, 36)
    with pytest.raises(ConfigError, match="give no integers at 32"):
        DeepLabSpec(atrous_rates=(5, 6)).rates_at(32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"deeplab": "pspnet"}, "No DeepLab head 'pspnet'; expected one of hugging_face, deeplab_v3plus, "),
        ({"deeplab": {"atrous_rates": (0,)}}, r"deeplab\.atrous_rates must be .*; found \(0,\)"),
        ({"deeplab": {"low_level": "layer_01/expansion"}}, r"deeplab\.low_level must be None, or an endpoint"),
        ({"deeplab": {"rates": (6,)}}, r"deeplab must have fields among atrous_rates, .*; found \['rates'\]"),
        ({"deeplab": {"channels": True}}, r"deeplab\.channels must be an integer from 1 to 4096; found True"),
        ({"deeplab": 3}, "found int"),
        ({"dilation_rule": "torch"}, "dilation_rule must be one of 'tf', 'smp', 'mmseg'; found 'torch'"),
    ],
)
def test_what_cannot_be_said_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        MobileNetV2Config(**fields)


def test_a_decoder_without_its_endpoint_is_refused(tiny_blocks):
    with pytest.raises(ConfigError, match=r"deeplab.low_level names 'layer_09'; expected one of conv_stem, layer_00, "):
        variable_shapes(_segmenter(deeplab={"low_level": "layer_09"}))


@pytest.mark.parametrize(
    ("low_level", "size"),
    [("layer_00/depthwise", (13, 16)), ("layer_01", (7, 8)), (None, (7, 8)), ("conv_stem", (25, 32))],
)
def test_logits_have_the_resolution_that_the_decoder_joins_in(tiny_blocks, low_level, size):
    model = _segmenter(deeplab=DeepLabSpec(**NARROW | {"low_level": low_level}))
    images = jax.ShapeDtypeStruct((2, 49, 64, 3), jnp.float32)
    output, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert output.logits.shape == (2, *size, 3)


@pytest.mark.parametrize("changes", [{}, {"inner_norm": False, "bounded_activation": True, "reads_last_conv": True}])
def test_folding_changes_nothing(tiny_blocks, changes):
    model = _segmenter(deeplab=DeepLabSpec(**NARROW | changes))
    variables = _variables(model)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 49, 64, 3)), jnp.float32)
    expected = jax.jit(model.apply)(variables, images).logits
    assert expected.shape == (1, 13, 16, 3)
    folded, merged = fold_batch_norm(model, variables)
    difference = np.abs(jax.jit(folded.apply)(merged, images).logits - expected).max()
    assert difference < 1e-5 * np.abs(expected).max()
    assert not any("normalization" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(merged))


def test_transformers_cannot_hold_it_and_flax_can(tiny_blocks, tmp_path):
    model = _segmenter(deeplab=DeepLabSpec(**NARROW), dilation_rule="smp")
    variables = _variables(model)
    with pytest.raises(ConfigError, match=r"(?s)  deeplab: transformers has None.*DeepLabSpec\(.*layout=\"flax\""):
        save_pretrained(tmp_path / "hf", model, variables)
    assert not (tmp_path / "hf").exists()
    save_pretrained(tmp_path / "flax", model, variables, layout="flax")
    again, loaded = from_pretrained(tmp_path / "flax")
    assert again.config.replace(extra={}) == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_a_classifier_with_such_a_config_is_nothing_special(tiny_blocks, tmp_path):
    model = make_model(MobileNetV2Config(deeplab="deeplab_v3plus"), "classification")
    save_pretrained(tmp_path, model, _variables(model))


def test_logits_are_resized_by_the_rule_of_the_head(tiny_blocks):
    images = jnp.asarray(np.random.default_rng(2).normal(size=(1, 49, 49, 3)), jnp.float32)
    labels = jnp.asarray(np.random.default_rng(3).integers(0, 3, (1, 49, 49)))
    model = _segmenter(deeplab=DeepLabSpec(**NARROW, align_corners=True, decoder_convs=0))
    output = jax.jit(model.apply)(_variables(model), images, labels)
    aligned, not_aligned = (
        float(segmentation_loss(output.logits, labels, ignore_label=255, align_corners=rule)) for rule in (True, False)
    )
    assert float(output.loss) == pytest.approx(aligned, rel=1e-6)
    assert abs(aligned - not_aligned) > 1e-4


def test_pooled_windows():
    x = np.random.default_rng(4).normal(size=(2, 7, 9, 3)).astype(np.float32)
    places = itertools.product(range(0, 7 - 4 + 1, 2), range(0, 9 - 3 + 1, 3))
    expected = np.stack([x[:, row : row + 4, column : column + 3].mean((1, 2)) for row, column in places], 1)
    np.testing.assert_allclose(window_means(x, (4, 3), (2, 3)).reshape(2, -1, 3), expected, atol=1e-6)
    np.testing.assert_allclose(window_means(x, (70, 90)), x.mean((1, 2), keepdims=True), atol=1e-6)


def test_a_spec_shows_what_it_changes():
    assert repr(DeepLabSpec(channels=128, low_level=None)) == "DeepLabSpec(channels=128, low_level=None)"
    assert {field.name for field in dataclasses.fields(DeepLabSpec)} == DeepLabSpec.rules.keys()
