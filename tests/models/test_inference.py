"""Folded batch norm and the compiled inference function, beside the model they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_mnv2 as fm

TASKS = {
    "classification": fm.MobileNetV2ForImageClassification,
    "segmentation": fm.MobileNetV2ForSemanticSegmentation,
    "backbone": fm.MobileNetV2Model,
}


def _random(model, *, images):
    """Variables with statistics far from 0 and 1, under which every part of the fold shows."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    generator = np.random.default_rng(0)
    ranges = {"scale": (0.5, 1.5), "bias": (-0.5, 0.5), "mean": (-1, 1), "var": (0.2, 3)}

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            values = generator.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        else:
            values = generator.uniform(*ranges[name], size=leaf.shape)
        return jnp.asarray(values, jnp.float32)

    return jax.tree.map_with_path(draw, shapes)


@pytest.fixture
def images():
    return np.random.default_rng(1).uniform(-1, 1, (4, 40, 33, 3)).astype(np.float32)


def _assert_close(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch):
    """One with a shortcut, one without."""
    monkeypatch.setattr("flax_mnv2.layer_plan.BLOCK_TABLE", ((8, 2, 2),))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tf_padding", [True, False])
def test_folding_changes_nothing_but_the_variables(task, tf_padding, images):
    config = fm.MobileNetV2Config(num_labels=5, tf_padding=tf_padding, output_stride=16, layer_norm_eps=0.05)
    model = TASKS[task](config)
    variables = _random(model, images=images)
    folded, folded_variables = fm.fold_batch_norm(model, variables)
    assert set(folded_variables) == {"params"}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(folded_variables)]
    assert not any("normalization" in path for path in paths)
    shapes = jax.eval_shape(folded.init, jax.random.key(0), images)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), folded_variables
    )
    _assert_close(jax.jit(folded.apply)(folded_variables, images), jax.jit(model.apply)(variables, images))
    with pytest.raises(fm.ConfigError, match="folded already"):
        fm.fold_batch_norm(folded, folded_variables)


def test_the_inference_function_gives_what_the_model_gives(images):
    model = fm.MobileNetV2ForImageClassification(fm.MobileNetV2Config(num_labels=5))
    variables = _random(model, images=images)
    infer, apply = fm.make_inference_fn(model, variables), jax.jit(model.apply)
    for batch in (1, 3, 4):
        actual, expected = infer(images[:batch]), apply(variables, images[:batch])
        assert actual.logits.shape == (batch, 5)
        _assert_close(actual, expected)
