"""Schedules and update rules against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2 import MobileNetV2Config, MobileNetV2ForSemanticSegmentation
from flax_mnv2.training.optimizer import decay_mask, make_optimizer, make_schedule
from flax_mnv2.training.run_config import default_config


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


def test_decay_spares_depthwise_kernels_norms_and_biases():
    model = MobileNetV2ForSemanticSegmentation(MobileNetV2Config())
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    mask = decay_mask(variables["params"])
    decayed = {".".join(entry.key for entry in path) for path, value in jax.tree.leaves_with_path(mask) if value}
    assert "mobilenet_v2.conv_stem.first_conv.convolution.kernel" in decayed
    assert "segmentation_head.classifier.convolution.kernel" in decayed
    # 52 convolutions of the network without its last: 34 pointwise and stem; 4 in the head; 17 depthwise spared.
    assert len(decayed) == 34 + 4
    assert not any("conv_3x3" in name or "normalization" in name or name.endswith("bias") for name in decayed)


def _params():
    kernel = {"convolution": {"kernel": jnp.full((1, 1, 2, 2), 2.0)}}
    return {
        "mobilenet_v2": {"expand_1x1": kernel, "conv_3x3": kernel},
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

    backbone, head = params["mobilenet_v2"], params["segmentation_head"]
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
    ours = _two_updates(config)["mobilenet_v2"]["expand_1x1"]["convolution"]["kernel"]
    assert ours == pytest.approx(weight[0].item(), rel=1e-6)


def test_adam_decays_weights_apart_from_the_gradient(config):
    torch = pytest.importorskip("torch")
    config.name, config.schedule, config.learning_rate, config.weight_decay = "adam", "constant", 0.1, 0.05
    weight = torch.nn.Parameter(torch.full((4,), 2.0))
    reference = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.999), weight_decay=0.05)
    for _ in range(2):
        weight.grad = torch.ones(4)
        reference.step()
    ours = _two_updates(config)["mobilenet_v2"]["expand_1x1"]["convolution"]["kernel"]
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
