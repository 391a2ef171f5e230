"""Drop path and frozen layers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structure import drawn, images_of

import flax_mnv2.layer_plan
from flax_mnv2 import ConfigError, MobileNetV2Config, MobileNetV2ForImageClassification
from flax_mnv2.models.layers import DropPath


@pytest.fixture
def config(monkeypatch):
    """Some of the blocks have a shortcut."""
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 1, 1), (8, 2, 2), (8, 2, 1)))
    return MobileNetV2Config(depth_multiplier=0.35, num_labels=3, initializer_range=0.3, classifier_dropout_prob=0.0)


IMAGES = images_of(8, 32, 32, 3)


def _variables(config):
    return drawn(MobileNetV2ForImageClassification(config), std=config.initializer_range)


def _logits(model, variables, **arguments):
    return jax.jit(lambda variables: model.apply(variables, IMAGES, **arguments).logits)(variables)


def test_dropped_branches_are_whole_examples_and_survivors_are_scaled():
    x = jnp.ones((2000, 2, 3, 4))
    y = np.asarray(DropPath(0.25).apply({}, x, rngs={"dropout": jax.random.key(0)}))
    assert (y == y[:, :1, :1, :1]).all()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert (y[:, 0, 0, 0] == 0).mean() == pytest.approx(0.25, abs=0.04)


def test_devices_drop_the_same_as_one():
    x = jnp.ones((8, 2, 2, 1))
    whole = DropPath(0.5).apply({}, x, rngs={"dropout": jax.random.key(3)})
    split = jax.pmap(lambda x: DropPath(0.5, "data").apply({}, x, rngs={"dropout": jax.random.key(3)}), "data")(
        x.reshape(4, 2, 2, 2, 1)
    )
    assert 0 < float(whole.mean()) < 2
    np.testing.assert_array_equal(whole, split.reshape(whole.shape))


def test_the_rate_grows_with_depth_and_spares_blocks_without_shortcut(config):
    variables = _variables(config)
    model = MobileNetV2ForImageClassification(config, drop_path_rate=0.9, freeze_batch_norm=True)
    blocks = config.layer_plan.blocks

    @jax.jit
    def outputs(key):
        _, state = model.apply(
            variables, IMAGES, train=True, rngs={"dropout": key}, mutable=["intermediates"], capture_intermediates=True
        )
        found = state["intermediates"]["mobilenet_v2"]
        return {spec.name: found[spec.name]["__call__"][0]["output"] for spec in blocks}

    dropped = {spec.name: [] for spec in blocks}
    for key in jax.random.split(jax.random.key(2), 60):
        x = outputs(key)
        for before, spec in itertools.pairwise(blocks):
            if spec.residual:  # a dropped branch leaves what came in
                dropped[spec.name].append((x[spec.name] == x[before.name]).all(axis=(1, 2, 3)))
    rates = {name: float(np.mean(each)) for name, each in dropped.items() if each}
    expected = {spec.name: 0.9 * (at + 1) / (len(blocks) + 1) for at, spec in enumerate(blocks) if spec.residual and at}
    assert len(rates) > 1
    assert rates == pytest.approx(expected, abs=0.08)


def test_evaluation_drops_nothing_and_needs_no_key(config):
    variables = _variables(config)
    plain = _logits(MobileNetV2ForImageClassification(config), variables)
    dropping = _logits(MobileNetV2ForImageClassification(config, drop_path_rate=0.5), variables)
    np.testing.assert_array_equal(plain, dropping)


def test_frozen_layers_have_no_gradient_and_keep_their_statistics(config, monkeypatch):
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 2, 1),))
    variables = _variables(config)
    model = MobileNetV2ForImageClassification(config, freeze_until="layer_00")

    @jax.jit
    def gradients(params):
        def loss(params):
            out, state = model.apply(
                {**variables, "params": params},
                IMAGES,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.sum(out.logits**2), state["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    grads, statistics = gradients(variables["params"])
    for name, layer in grads["mobilenet_v2"].items():
        frozen = name in ("conv_stem", "layer_00")
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(layer))
        assert (largest == 0) == frozen, name
        before = jax.tree.leaves(variables["batch_stats"]["mobilenet_v2"][name])
        after = jax.tree.leaves(statistics["mobilenet_v2"][name])
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)) == frozen, name


def test_frozen_layers_drop_nothing(config):
    variables = _variables(config)
    last = config.layer_plan.blocks[-1].name
    model = MobileNetV2ForImageClassification(config, freeze_until=last, drop_path_rate=0.9, freeze_batch_norm=True)
    logits = _logits(model, variables, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(logits, _logits(model, variables), rtol=1e-5)


def test_the_torch_recipes_start_with_hes_rule(config, monkeypatch):
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 1, 1),))
    fan_out = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    model = MobileNetV2ForImageClassification(config.replace(depth_multiplier=2.0), kernel_init=fan_out)

    @jax.jit
    def kernels(key):
        params = model.init(key, IMAGES[:1])["params"]["mobilenet_v2"]
        return params["conv_1x1"]["convolution"]["kernel"], params["layer_00"]["conv_3x3"]["convolution"]["kernel"]

    dense, depthwise = map(np.asarray, kernels(jax.random.key(1)))
    assert dense.std() == pytest.approx((2 / dense.shape[-1]) ** 0.5, rel=0.05)
    assert depthwise.std() == pytest.approx((2 / (9 * depthwise.shape[-1])) ** 0.5, rel=0.1)


def test_a_layer_that_is_not_there_is_refused(config):
    model = MobileNetV2ForImageClassification(config, freeze_until="layer_12")
    with pytest.raises(ConfigError, match=r"freeze_until must be one of conv_stem, layer_00, .*found 'layer_12'"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)
