"""Schedules and update rules against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2 import ConfigError, MobileNetV2Config, MobileNetV2ForSemanticSegmentation
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.optimizer import decay_mask, layer_factors, make_optimizer, make_schedule


@pytest.fixture
def config():
    return default_config().optimizer


def test_poly_schedule(config):
    schedule = make_schedule(config, 1000)
    for step in (0, 1, 500, 999, 1000, 2000):
        expected = 0.007 * (1 - min(step, 1000) / 1000) ** 0.9
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ["poly", "cosine", "constant"])
def test_warm_up_rises_to_the_peak_and_the_rest_decays_to_the_end(config, name):
    config.schedule, config.warmup_steps, config.end_learning_rate = name, 10, 0.001
    schedule = make_schedule(config, 110)
    assert float(schedule(0)) == 0
    assert float(schedule(5)) == pytest.approx(0.0035)
    assert float(schedule(10)) == pytest.approx(0.007)
    assert float(schedule(110)) == pytest.approx(0.007 if name == "constant" else 0.001)


def test_decay_spares_depthwise_kernels_norms_and_biases(config):
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config())
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    mask = decay_mask(variables["params"], config)
    decayed = {".".join(entry.key for entry in path) for path, value in jax.tree.leaves_with_path(mask) if value}
    assert "mobilenet_v2.conv_stem.first_conv.convolution.kernel" in decayed
    assert "segmentation_head.classifier.convolution.kernel" in decayed
    # 52 convolutions of the network without its last: 34 pointwise and stem; 4 in the head; 17 depthwise spared.
    assert len(decayed) == 34 + 4
    assert not any("conv_3x3" in name or "normalization" in name or name.endswith("bias") for name in decayed)
    config.weight_decay_on = "kernels"
    kernels = sum(jax.tree.leaves(decay_mask(variables["params"], config)))
    assert kernels == len(decayed) + 17
    config.weight_decay_on = "all"
    assert all(jax.tree.leaves(decay_mask(variables["params"], config)))


def test_the_rate_is_scaled_to_the_batch(config):
    config.schedule, config.learning_rate, config.base_batch_size = "cosine", 0.5, 256
    config.end_learning_rate, config.warmup_steps, config.warmup_start = 0.01, 4, 0.1
    schedule = make_schedule(config, 20, batch_size=1024)
    assert float(schedule(0)) == pytest.approx(0.2)
    assert float(schedule(4)) == pytest.approx(2.0)
    assert float(schedule(20)) == pytest.approx(0.04)


@pytest.mark.parametrize("staircase", [True, False])
def test_exponential_decay_counts_from_the_first_step(config, staircase):
    config.schedule, config.learning_rate, config.decay_rate, config.decay_every_steps = "exponential", 1.0, 0.5, 10
    config.staircase, config.warmup_steps = staircase, 4
    schedule = make_schedule(config, 100)
    assert [float(schedule(step)) for step in (0, 2)] == pytest.approx([0.0, 0.5])
    periods = [step // 10 if staircase else step / 10 for step in (4, 9, 10, 35)]
    assert [float(schedule(step)) for step in (4, 9, 10, 35)] == pytest.approx([0.5**n for n in periods])


def test_layers_are_frozen_or_slowed_by_depth(config):
    layers = {name: jnp.ones(2) for name in ("conv_1x1", "layer_10", "conv_stem", "layer_02", "layer_00")}
    params = {"mobilenet_v2": layers, "classifier": jnp.ones(2)}
    config.layer_lr_decay, config.head_lr_multiplier = 0.5, 3.0
    factors = layer_factors(params, config, freeze_until="layer_00")
    assert factors == {
        "conv_stem": 0.0,
        "layer_00": 0.0,
        "layer_02": 0.5**3,
        "layer_10": 0.5**2,
        "conv_1x1": 0.5,
        "classifier": 3.0,
    }
    with pytest.raises(ConfigError, match=r"config.freeze_until must be one of conv_stem, .* found 'layer_7'"):
        layer_factors(params, config, freeze_until="layer_7")


def test_frozen_layers_do_not_move_though_weight_decay_would(config):
    config.name, config.weight_decay, config.learning_rate = "rmsprop", 0.1, 0.1
    optimizer = make_optimizer(config, make_schedule(config, 100), freeze_until="layer_00")
    params = _params()
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["mobilenet_v2"]))
    assert all(leaf.all() for leaf in jax.tree.leaves(updates["segmentation_head"]))


def test_rmsprop_is_timms_and_not_torchs(config):
    torch = pytest.importorskip("torch")
    rmsprop_tf = pytest.importorskip("timm.optim").RMSpropTF
    config.name, config.schedule, config.learning_rate, config.epsilon = "rmsprop", "constant", 0.1, 1e-3
    config.weight_decay, config.weight_decay_on = 0.05, "kernels"
    weight = torch.nn.Parameter(torch.full((4,), 2.0))
    reference = rmsprop_tf([weight], lr=0.1, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=0.05)
    for _ in range(2):
        weight.grad = torch.ones(4)
        reference.step()
    ours = _two_updates(config)["mobilenet_v2"]["layer_00"]["expand_1x1"]["convolution"]["kernel"]
    assert ours == pytest.approx(weight[0].item(), rel=1e-5)


def _params():
    kernel = {"convolution": {"kernel": jnp.full((1, 1, 2, 2), 2.0)}}
    return {
        "mobilenet_v2": {"layer_00": {"expand_1x1": kernel, "conv_3x3": kernel}},
        "segmentation_head": {"conv_pool": kernel},
    }


def _two_updates(config):
    optimizer = make_optimizer(config, make_schedule(config, 100))
    params = _params()
    state = optimizer.init(params)
    for _ in range(2):
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return jax.tree.map(lambda leaf: float(leaf.ravel()[0]), params)


def test_sgd_with_l2_momentum_and_head_multiplier(config):
    config.schedule, config.learning_rate, config.weight_decay = "constant", 0.1, 0.01
    config.head_lr_multiplier = 10.0
    params = _two_updates(config)

    def by_hand(decay, rate):
        value, momentum = 2.0, 0.0
        for _ in range(2):
            momentum = 0.9 * momentum + 1.0 + decay * value
            value -= rate * momentum
        return value

    backbone, head = params["mobilenet_v2"]["layer_00"], params["segmentation_head"]
    assert backbone["expand_1x1"]["convolution"]["kernel"] == pytest.approx(by_hand(0.01, 0.1), rel=1e-6)
    assert backbone["conv_3x3"]["convolution"]["kernel"] == pytest.approx(by_hand(0.0, 0.1), rel=1e-6)
    assert head["conv_pool"]["convolution"]["kernel"] == pytest.approx(by_hand(0.01, 1.0), rel=1e-6)


def test_sgd_equals_torch(config):
    torch = pytest.importorskip("torch")
    config.schedule, config.weight_decay, config.nesterov = "constant", 0.0, True
    weight = torch.nn.Parameter(torch.full((4,), 2.0))
    reference = torch.optim.SGD([weight], lr=config.learning_rate, momentum=0.9, nesterov=True)
    for _ in range(2):
        weight.grad = torch.ones(4)
        reference.step()
    ours = _two_updates(config)["mobilenet_v2"]["layer_00"]["expand_1x1"]["convolution"]["kernel"]
    assert ours == pytest.approx(weight[0].item(), rel=1e-6)


def test_adam_decays_weights_apart_from_the_gradient(config):
    torch = pytest.importorskip("torch")
    config.name, config.schedule, config.learning_rate, config.weight_decay = "adam", "constant", 0.1, 0.05
    weight = torch.nn.Parameter(torch.full((4,), 2.0))
    reference = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.999), weight_decay=0.05)
    for _ in range(2):
        weight.grad = torch.ones(4)
        reference.step()
    ours = _two_updates(config)["mobilenet_v2"]["layer_00"]["expand_1x1"]["convolution"]["kernel"]
    assert ours == pytest.approx(weight[0].item(), rel=1e-5)


def test_clipping_bounds_the_global_norm(config):
    config.schedule, config.learning_rate, config.weight_decay = "constant", 1.0, 0.0
    config.momentum, config.clip_norm = 0.0, 0.5
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = _params()
    gradients = jax.tree.map(lambda leaf: 100 * jnp.ones_like(leaf), params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(updates)))
    assert norm == pytest.approx(0.5, rel=1e-5)
