"""Selecting layers, stopping at one, features by resolution, pooling windows, rematerialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structure import drawn, images_of, variables_of

from flax_mnv2 import (
    ConfigError,
    MobileNetV2Backbone,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
)
from flax_mnv2.models.complexity import complexity
from flax_mnv2.models.endpoints import endpoint_names
from flax_mnv2.models.layers import pool

IMAGES = jax.ShapeDtypeStruct((2, 96, 64, 3), jnp.float32)


def _shapes(model, images=IMAGES, **arguments):
    return jax.eval_shape(functools.partial(model.apply, **arguments), variables_of(model), images)


def _tiny(model):
    return drawn(model, std=model.config.initializer_range), images_of(2, 64, 64, 3)


# ---- output_hidden_states ------------------------------------------------------------------------------------


def test_names_and_indices_select_layers_in_the_order_asked_for():
    selection = (
        "layer_13/expansion",
        np.int64(3),
        -1,
        "layer_10/expansion",
        "layer_12/depthwise",
        "conv_stem",
        "conv_1x1",
    )
    output = _shapes(MobileNetV2Model(MobileNetV2Config()), output_hidden_states=selection)
    assert [state.shape for state in output.hidden_states] == [
        (2, 3, 2, 960),
        (2, 12, 8, 32),
        (2, 3, 2, 320),
        (2, 6, 4, 576),
        (2, 3, 2, 576),
        (2, 48, 32, 16),
        (2, 3, 2, 1280),
    ]


def test_selected_values_are_those_of_the_network(tiny_blocks):
    model = MobileNetV2Model(MobileNetV2Config())
    variables, images = _tiny(model)
    output = jax.jit(functools.partial(model.apply, output_hidden_states=True))(variables, images)
    picked = jax.jit(functools.partial(model.apply, output_hidden_states=[2, "layer_01", "conv_1x1"]))(
        variables, images
    )
    for one, other in zip(
        picked.hidden_states,
        (output.hidden_states[2], output.hidden_states[1], output.last_hidden_state),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (("layer_03",), "'layer_03'"),
        (("layer_01/projection",), "layer_01/projection"),
        ((3,), "index 3; this network has 3"),
        ((True,), "names True"),
        (jnp.zeros(()), "static"),
        ("layer_01", r"\('layer_01',\)"),
        (3, r"\(3,\)"),
    ],
)
def test_layers_that_do_not_exist_are_named(selection, message, tiny_blocks):
    with pytest.raises(ConfigError, match=message):
        _shapes(MobileNetV2Model(MobileNetV2Config()), output_hidden_states=selection)


def test_segmentation_has_no_last_convolution_to_select(tiny_blocks):
    with pytest.raises(ConfigError, match="conv_1x1"):
        _shapes(MobileNetV2ForSemanticSegmentation(MobileNetV2Config()), output_hidden_states=("conv_1x1",))


# ---- run_to --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["conv_stem", "layer_02/expansion", "layer_03/depthwise", "layer_15", "conv_1x1"])
def test_run_to_stops_there(end):
    model = MobileNetV2Model(MobileNetV2Config())
    names = endpoint_names(model.config.layer_plan)
    output = _shapes(model, run_to=end, output_hidden_states=(end,))
    assert output.last_hidden_state.shape == output.hidden_states[0].shape
    assert output.pooler_output.shape == (2, output.last_hidden_state.shape[-1])
    later = names[names.index(end) + 1 :]
    if later:
        with pytest.raises(ConfigError, match=later[0]):
            _shapes(model, run_to=end, output_hidden_states=(later[0],))


def test_what_is_not_needed_has_no_parameters_and_is_not_computed(tiny_blocks):
    model = MobileNetV2Model(MobileNetV2Config(), add_pooling_layer=False)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    stopped = jax.eval_shape(functools.partial(model.init, run_to="layer_02/expansion"), jax.random.key(0), IMAGES)
    assert set(stopped["params"]["mobilenet_v2"]) == {"conv_stem", "layer_00", "layer_01", "layer_02"}
    assert set(stopped["params"]["mobilenet_v2"]["layer_02"]) == {"expand_1x1"}

    def flops(end):
        apply = jax.jit(functools.partial(model.apply, run_to=end))
        return apply.lower(variables, IMAGES).compile().cost_analysis()["flops"]

    whole, part = flops(None), flops("layer_02/expansion")
    # The last convolution alone, 16 → 1280 channels on 6×4 pixels of two images, costs this much.
    assert whole - part > 2 * 2 * 6 * 4 * 16 * 1280
    assert flops("conv_stem") < part


def test_run_to_gives_the_same_values(tiny_blocks):
    model = MobileNetV2Model(MobileNetV2Config())
    variables, images = _tiny(model)
    part = jax.jit(functools.partial(model.apply, run_to="layer_01"))(variables, images).last_hidden_state
    whole = jax.jit(functools.partial(model.apply, output_hidden_states=[1]))(variables, images).hidden_states[0]
    np.testing.assert_allclose(part, whole, atol=1e-6)


# ---- features by resolution ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("output_stride", "depth_multiplier"), [(8, 0.35), (16, 1.0), (32, 0.35)])
def test_features_have_the_channels_that_were_announced(output_stride, depth_multiplier):
    model = MobileNetV2Backbone(MobileNetV2Config(output_stride=output_stride, depth_multiplier=depth_multiplier))
    features = _shapes(model)
    strides = [stride for stride in (4, 8, 16, 32) if stride <= output_stride]
    assert list(features) == list(model.channels) == [f"stride_{stride}" for stride in strides]
    for stride, (name, feature) in zip(strides, features.items(), strict=True):
        assert feature.shape == (2, 96 // stride, 64 // stride, model.channels[name])


def test_default_channels_are_the_deepest_at_each_resolution():
    channels = MobileNetV2Backbone(MobileNetV2Config()).channels
    assert channels == {"stride_4": 24, "stride_8": 32, "stride_16": 96, "stride_32": 320}


def test_features_stop_at_the_last_one_asked_for():
    model = MobileNetV2Backbone(MobileNetV2Config(), strides=(8, 2))
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert sorted(variables["params"]["mobilenet_v2"]) == ["conv_stem", *(f"layer_{i:02d}" for i in range(5))]
    assert list(_shapes(model)) == ["stride_8", "stride_2"]


@pytest.mark.parametrize(("output_stride", "strides"), [(2, None), (32, ())])
def test_no_stride_at_all_is_refused(output_stride, strides):
    with pytest.raises(ConfigError, match=r"at least one of stride_2.*output_stride"):
        _shapes(MobileNetV2Backbone(MobileNetV2Config(output_stride=output_stride), strides=strides))


def test_a_stride_beyond_the_output_stride_is_refused():
    with pytest.raises(ConfigError, match=r"asks for \[32\]; with output_stride=16"):
        _shapes(MobileNetV2Backbone(MobileNetV2Config(output_stride=16), strides=(8, 32)))


# ---- pooling window ----------------------------------------------------------------------------------------------


def test_window_means():
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype(np.float32)
    expected = [[x[:, r : r + 7, c : c + 7].mean((1, 2)) for c in range(2)] for r in range(3)]
    np.testing.assert_allclose(pool(x, window=7), np.moveaxis(expected, 2, 0), atol=1e-6)
    np.testing.assert_allclose(pool(x), x.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(pool(x, window=100)[:, 0, 0], x.mean((1, 2)), atol=1e-6)


def test_larger_images_give_a_map_of_logits(tiny_blocks):
    config = MobileNetV2Config(num_labels=5, pool_window=7)
    large = jax.ShapeDtypeStruct((1, 80, 64, 3), jnp.float32)  # a map of 10×8
    assert _shapes(MobileNetV2ForImageClassification(config), large).logits.shape == (1, 4, 2, 5)
    assert _shapes(MobileNetV2Model(config), large).pooler_output.shape == (1, 4, 2, 1280)
    with pytest.raises(ValueError, match="give 4×2 logits"):
        _shapes(MobileNetV2ForImageClassification(config), large, labels=np.zeros(1, np.int32))


def test_the_window_of_the_whole_map_is_global_pooling(tiny_blocks):
    config = MobileNetV2Config(num_labels=5)
    model = MobileNetV2ForImageClassification(config)
    variables, images = _tiny(model)
    windowed = MobileNetV2ForImageClassification(config.replace(pool_window=8, num_labels=5))
    labels = np.array([1, 4])
    expected = jax.jit(lambda v, x: model.apply(v, x, labels=labels))(variables, images)
    output = jax.jit(lambda v, x: windowed.apply(v, x, labels=labels))(variables, images)
    np.testing.assert_allclose(output.logits[:, 0, 0], expected.logits, atol=1e-6)
    np.testing.assert_allclose(output.loss, expected.loss, rtol=1e-6)


# ---- rematerialisation -------------------------------------------------------------------------------------------


def test_remat_computes_more_keeps_less_and_changes_nothing(monkeypatch):
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 2, 2),))  # one block with a shortcut, one without
    config = MobileNetV2Config(num_labels=5, classifier_dropout_prob=0.0, expand_ratio=8.0)
    results, costs = [], []
    variables, images = _tiny(MobileNetV2ForImageClassification(config))
    for remat in (False, True):
        model = MobileNetV2ForImageClassification(config, remat=remat)

        def loss(params, model=model):
            output, updated = model.apply(
                {**variables, "params": params}, images, labels=np.array([1, 4]), train=True, mutable=["batch_stats"]
            )
            return output.loss, updated

        compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(variables["params"]).compile()
        results.append(compiled(variables["params"]))
        pullback = jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], variables["params"])
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))
        costs.append((compiled.cost_analysis()["flops"], kept))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    (flops, kept), (remat_flops, remat_kept) = costs
    assert remat_flops > 1.05 * flops
    assert remat_kept < 0.8 * kept


def test_remat_has_the_same_parameters(tiny_blocks):
    for remat in (False, True):
        model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=21), remat=remat)
        variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert count == complexity(model.config, "segmentation").parameters
