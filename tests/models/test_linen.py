"""The models are linen modules like others: they can be listed, captured, intercepted, bridged and built upon."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, nnx, traverse_util
from structure import drawn

import flax_mnv2.layer_plan
import flax_mnv2.models.blocks
from flax_mnv2 import (
    CheckpointError,
    ConfigError,
    MobileNetV2Backbone,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
    load_backbone,
    load_variables,
    save_pretrained,
)
from flax_mnv2.models.layers import Convolution
from flax_mnv2.weights.source import variable_shapes

CONFIG = MobileNetV2Config(num_labels=3, depth_multiplier=0.35, output_stride=8, classifier_dropout_prob=0.0)
MODELS = (
    MobileNetV2Model(CONFIG),
    MobileNetV2Backbone(CONFIG),
    MobileNetV2ForImageClassification(CONFIG),
    MobileNetV2ForSemanticSegmentation(CONFIG.replace(first_layer_is_expansion=False)),
    MobileNetV2ForImageClassification(CONFIG, remat=True),
)
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
pytestmark = pytest.mark.usefixtures("tiny_blocks")


def _variables(model):
    """Random ones; kernels keep the size of what goes through them."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in variable_shapes(model).items():
        if path[-1] == "kernel":
            flat[path] = rng.normal(0.0, (2.0 / np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)
        else:
            flat[path] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return traverse_util.unflatten_dict(flat)


def _layers(model):
    """Paths of all convolutions and norms, from the variables."""
    tree = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return {path[1:-1] for path in traverse_util.flatten_dict(dict(tree))}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__ + "-remat" * model.remat)
def test_tabulate_lists_every_layer(model):
    table = model.tabulate(jax.random.key(0), IMAGES, console_kwargs={"width": 500, "force_terminal": False})
    listed = {line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")}
    assert {"/".join(path) for path in _layers(model)} <= listed


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__ + "-remat" * model.remat)
def test_captured_intermediates_hold_every_layer(model):
    _, captured = jax.eval_shape(
        functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"]), _variables(model), IMAGES
    )
    calls = {path[:-1] for path in traverse_util.flatten_dict(captured["intermediates"]) if path[-1] == "__call__"}
    assert _layers(model) <= calls


def test_captured_intermediates_are_the_hidden_states():
    model = MobileNetV2Model(CONFIG)
    weights = _variables(model)
    parts = {"expansion": "expand_1x1", "depthwise": "conv_3x3", "": "reduce_1x1"}
    names = [f"layer_{block:02d}/{part}".rstrip("/") for block, part in itertools.product(range(3), parts)]
    _, captured = jax.jit(functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"]))(
        weights, IMAGES
    )
    expected = jax.jit(lambda weights: model.apply(weights, IMAGES, output_hidden_states=("conv_stem", *names)))(
        weights
    )
    captured = captured["intermediates"]["mobilenet_v2"]
    found = [captured["conv_stem"]["__call__"][0]]
    for name in names:
        block, _, part = name.partition("/")
        (outputs,) = captured[block]["__call__"]
        found.append(captured[block][parts[part]]["__call__"][0] if part else outputs["output"])
    for name, one, other in zip(("conv_stem", *names), found, expected.hidden_states, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=name)


def _round_kernels(next_fun, args, kwargs, context):
    """An interceptor that has each convolution compute with a kernel of few values."""
    if not isinstance(context.module, Convolution) or not context.module.path:  # that of the call below
        return next_fun(*args, **kwargs)
    params = dict(context.module.variables["params"])
    params["kernel"] = jnp.round(params["kernel"] * 8.0) / 8.0
    return context.module.clone(parent=None).apply({"params": params}, *args, **kwargs)


@pytest.mark.parametrize("model", MODELS[2:], ids=lambda model: type(model).__name__ + "-remat" * model.remat)
def test_an_interceptor_changes_every_kernel(model):
    weights = _variables(model)
    flat = traverse_util.flatten_dict(weights)
    rounded = {
        path: np.round(value * 8.0) / 8.0 if path[-2:] == ("convolution", "kernel") else value
        for path, value in flat.items()
    }
    plain = jax.jit(lambda weights: model.apply(weights, IMAGES).logits)
    expected, before = plain(traverse_util.unflatten_dict(rounded)), plain(weights)

    def intercepted(weights):
        with nn.intercept_methods(_round_kernels):
            return model.apply(weights, IMAGES).logits

    found = jax.jit(intercepted)(weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(found - before).max() > 1e-2 * np.abs(before).max()


def test_unobserved_layers_are_computed_as_one_operation(monkeypatch):
    """And one by one where somebody looks; both ways give the same, gradients and statistics included."""
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 2, 2),))  # one block with a shortcut, one without
    model, calls = MobileNetV2ForImageClassification(CONFIG), []
    weights = _variables(model)
    plain = flax_mnv2.models.blocks._is_observed
    monkeypatch.setattr(flax_mnv2.models.blocks, "_is_observed", lambda m: calls.append(plain(m)) or calls[-1])

    def step(params, stats, mutable):
        output, updated = model.apply({"params": params, "batch_stats": stats}, IMAGES, train=True, mutable=mutable)
        return jnp.sum(jnp.sin(output.logits)), updated["batch_stats"]

    results = [
        jax.jit(jax.value_and_grad(functools.partial(step, mutable=mutable), has_aux=True))(
            weights["params"], weights["batch_stats"]
        )
        for mutable in (["batch_stats"], ["batch_stats", "intermediates"])
    ]
    assert calls == [False] * 3 + [True] * 3  # the stem and two blocks
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(results[1][1]))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * max(np.abs(other).max(), 1e-2 * largest))


def test_missing_and_misshapen_variables_are_named_by_linen():
    model = MobileNetV2ForImageClassification(CONFIG)
    weights = traverse_util.flatten_dict(_variables(model))
    path = ("params", "mobilenet_v2", "layer_01", "conv_3x3", "normalization", "scale")
    absent = traverse_util.unflatten_dict({key: value for key, value in weights.items() if key != path})
    with pytest.raises(errors.ScopeParamNotFoundError, match=r'"scale".*layer_01/conv_3x3/normalization'):
        jax.eval_shape(model.apply, absent, IMAGES)
    misshapen = traverse_util.unflatten_dict(weights | {path: np.ones(5, np.float32)})
    with pytest.raises(errors.ScopeParamShapeError, match=r"(?s)scale.*layer_01/conv_3x3/normalization"):
        jax.eval_shape(model.apply, misshapen, IMAGES)


def test_nnx_bridge_trains_a_step(monkeypatch):
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 1, 2),))
    model = MobileNetV2ForImageClassification(CONFIG)
    bridged = nnx.jit(lambda: nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(IMAGES))()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(bridged, nnx.BatchStat)))
    optimizer = nnx.Optimizer(bridged, optax.sgd(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return model(IMAGES, labels=np.array([0, 2]), train=True, mutable=["batch_stats"]).loss

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [float(step(bridged, optimizer)) for _ in range(3)]
    assert losses[-1] < losses[0]
    after = nnx.to_pure_dict(nnx.state(bridged, nnx.BatchStat))
    moved = jax.tree.map(lambda one, other: bool(np.any(one != np.asarray(other))), before, after)
    assert moved["mobilenet_v2"]["conv_stem"]["first_conv"]["normalization"]["mean"]


class Upsampler(nn.Module):
    """A foreign head, as docs/how_to/library.md has one."""

    config: MobileNetV2Config

    @nn.compact
    def __call__(self, x, train=False):
        features = MobileNetV2Backbone(self.config, strides=(4, 8), name="backbone")(x, train=train)
        y = nn.Conv(8, (1, 1))(features["stride_8"])
        return nn.Conv(2, (1, 1))(jax.image.resize(y, (*features["stride_4"].shape[:3], 8), "bilinear"))


def test_a_foreign_head_takes_weights_trains_saves_and_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(flax_mnv2.layer_plan, "BLOCK_TABLE", ((8, 1, 2), (16, 1, 2)))
    classifier = MobileNetV2ForImageClassification(CONFIG.replace(output_stride=16))
    pretrained = _variables(classifier)
    save_pretrained(tmp_path / "classifier", classifier, pretrained)
    model = Upsampler(CONFIG)
    fresh = drawn(model)
    weights = load_backbone(tmp_path / "classifier", fresh, prefix="backbone")
    stem = ("params", "conv_stem", "first_conv", "convolution", "kernel")
    loaded = traverse_util.flatten_dict(weights)[("params", "backbone", "mobilenet_v2", *stem[1:])]
    np.testing.assert_array_equal(loaded, traverse_util.flatten_dict(pretrained)[("params", "mobilenet_v2", *stem[1:])])

    @jax.jit
    def step(weights):
        def loss(params):
            y, updated = model.apply({**weights, "params": params}, IMAGES, train=True, mutable=["batch_stats"])
            return jnp.mean(y**2), updated

        (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(weights["params"])
        params = jax.tree.map(lambda param, gradient: param - 0.01 * gradient, weights["params"], gradients)
        return value, {"params": params, **updated}

    first, weights = step(weights)
    assert step(weights)[0] < first
    save_pretrained(tmp_path / "own", model, weights, layout="flax")
    again = load_variables(tmp_path / "own", jax.eval_shape(model.init, jax.random.key(0), IMAGES))
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, dict(weights)))


def test_what_fits_nowhere_is_explained(tmp_path):
    model = Upsampler(CONFIG)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    with pytest.raises(CheckpointError, match="no mobilenet_v2 under prefix='head'; there is one under 'backbone'"):
        load_backbone(tmp_path, shapes, prefix="head")
    with pytest.raises(ConfigError, match=r'An? Upsampler cannot be saved as.*\n?.*layout="flax"'):
        save_pretrained(tmp_path / "own", model, {})
    with pytest.raises(CheckpointError, match=r"is saved with .*; found \['opt', 'params'\]"):
        save_pretrained(tmp_path / "own", model, {"opt": {}, "params": {}}, layout="flax")
    with pytest.raises(ConfigError, match="expected it as the field config of the module"):
        save_pretrained(tmp_path / "own", nn.Dense(2), {"params": {}}, layout="flax")
    wide = MobileNetV2ForImageClassification(CONFIG.replace(depth_multiplier=1.0))
    save_pretrained(tmp_path / "wide", wide, _variables(wide))
    with pytest.raises(CheckpointError, match="of another shape"):
        load_backbone(tmp_path / "wide", shapes, prefix="backbone")
