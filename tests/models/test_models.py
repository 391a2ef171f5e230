"""Structure of the models, mostly without computing anything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structure import drawn, images_of, variables_of

from flax_mnv2 import (
    ConfigError,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
)

CLASSIFIER = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000))
DEEPLAB = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=21))
MODELS = (MobileNetV2Model, MobileNetV2ForImageClassification, MobileNetV2ForSemanticSegmentation)


def _outputs(model, shape, dtype=jnp.float32, **arguments):
    apply = functools.partial(model.apply, **arguments)
    return jax.eval_shape(apply, variables_of(model), jax.ShapeDtypeStruct(shape, dtype))


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_parameter_counts_are_the_published_ones():
    assert _count(variables_of(CLASSIFIER)["params"]) == 3_504_872
    assert round(_count(variables_of(DEEPLAB)["params"]) / 1e6, 2) == 2.11


@pytest.mark.parametrize("output_stride", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("tf_padding", [True, False])
def test_segmentation_logits_have_the_output_stride(output_stride, tf_padding, monkeypatch):
    """With a block for each stride, and one behind them; which of all sixteen stride, the tests of parity show."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", (*[(8, 1, 2)] * 4, (8, 1, 1)))
    config = MobileNetV2Config(num_labels=5, output_stride=output_stride, tf_padding=tf_padding)
    model = MobileNetV2ForSemanticSegmentation(config)
    # Neither the stride nor the padding changes the variables.
    variables = variables_of(MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=5)))
    for size in ((32, 32), (33, 47), (513, 513)):
        logits = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)).logits
        assert logits.shape == (2, *(-(-side // output_stride) for side in size), 5)


def test_hidden_states_are_the_sixteen_blocks():
    config = MobileNetV2Config(output_stride=8)
    output = _outputs(MobileNetV2Model(config), (1, 64, 64, 3), output_hidden_states=True)
    shapes = [state.shape for state in output.hidden_states]
    plan = [(1, 64 // b.output_stride, 64 // b.output_stride, b.out_channels) for b in config.layer_plan.blocks]
    assert shapes == plan
    assert output.last_hidden_state.shape == (1, 8, 8, 1280)
    assert output.pooler_output.shape == (1, 1280)


def test_pooling_is_left_out_where_the_second_argument_says_so(tiny_blocks):
    """By position, as in transformers."""
    assert _outputs(MobileNetV2Model(MobileNetV2Config(), False), (1, 64, 64, 3)).pooler_output is None


def test_bfloat16_computes_in_it_and_keeps_parameters_and_logits_in_float32(tiny_blocks):
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=3), dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    output = _outputs(model, (1, 64, 64, 3), output_hidden_states=True)
    assert output.logits.dtype == jnp.float32
    assert {state.dtype for state in output.hidden_states} == {jnp.dtype("bfloat16")}


def test_bfloat16_agrees_with_float32(tiny_blocks):
    config = MobileNetV2Config(num_labels=3)
    model = MobileNetV2ForSemanticSegmentation(config)
    images, variables = images_of(2, 64, 64, 3), drawn(model, std=0.02)
    exact = jax.jit(model.apply)(variables, images).logits
    rough = jax.jit(MobileNetV2ForSemanticSegmentation(config, dtype=jnp.bfloat16).apply)(variables, images).logits
    np.testing.assert_allclose(rough, exact, atol=0.05 * float(jnp.abs(exact).max()))


def test_segmentation_does_not_have_the_last_convolution():
    assert "conv_1x1" not in variables_of(DEEPLAB)["params"]["mobilenet_v2"]
    assert "conv_1x1" in variables_of(CLASSIFIER)["params"]["mobilenet_v2"]


def test_initialisers_follow_the_config(tiny_blocks):
    config = MobileNetV2Config(num_labels=40, initializer_range=0.07, classifier_initializer_range=0.3)
    model, images = MobileNetV2ForSemanticSegmentation(config), jnp.zeros((1, 32, 32, 3))
    head = jax.jit(lambda key: model.init(key, images)["params"]["segmentation_head"])(jax.random.key(0))
    assert abs(float(head["conv_projection"]["convolution"]["kernel"].std()) - 0.07) < 0.002
    assert abs(float(head["classifier"]["convolution"]["kernel"].std()) - 0.3) < 0.01
    assert not head["classifier"]["convolution"]["bias"].any()
    assert (head["conv_pool"]["normalization"]["scale"] == 1).all()


def test_frozen_batch_norm_leaves_the_statistics(tiny_blocks):
    config = MobileNetV2Config(classifier_dropout_prob=0.0)
    images, variables = images_of(2, 32, 32, 3), drawn(MobileNetV2ForSemanticSegmentation(config), std=0.02)
    for freeze in (True, False):
        model = MobileNetV2ForSemanticSegmentation(config, freeze_batch_norm=freeze)
        step = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
        _, updated = step(variables, images)
        pairs = zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"]), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs) == freeze


def test_training_works_at_batch_one(tiny_blocks):
    """Hugging Face's model raises there: its pooled branch normalises a single value."""
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config())
    images, variables = images_of(1, 64, 64, 3), drawn(model, std=0.02)
    step = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    output, _ = step(variables, images, rngs={"dropout": jax.random.key(2)})
    assert np.isfinite(output.logits).all()


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((64, 64, 3), "float32", "found \\(64, 64, 3\\)"),
        ((1, 3, 64, 64), "float32", "channels last"),
        ((1, 31, 64, 3), "float32", "at least 32"),
        ((1, 64, 64, 4), "float32", "found \\(1, 64, 64, 4\\)"),
        ((1, 64, 64, 3), "uint8", "found uint8"),
    ],
)
def test_images_that_do_not_fit_are_explained(model_class, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        _outputs(model_class(MobileNetV2Config()), shape, jnp.dtype(dtype))


def test_unknown_implementation_is_explained():
    model = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=5), implementation="fast")
    with pytest.raises(ConfigError, match="one of 'auto', 'default', 'cpu', 'gpu', 'tpu'; found 'fast'"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
