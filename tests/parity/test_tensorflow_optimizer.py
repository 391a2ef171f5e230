"""RMSProp, staircase decay and the moving average against TensorFlow's own, over 20 steps on the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.optimizer import make_optimizer, make_schedule
from flax_mnv2.training.state import update_ema

STEPS = 20


@pytest.fixture(scope="module")
def gradients():
    """Of three sizes, with some that are always zero and some that are large."""
    rng = np.random.default_rng(0)
    scales = {"kernel": 1e-2, "scale": 3.0, "bias": 0.0}
    drawn = {name: rng.normal(0, size, (STEPS, 4, 5)).astype(np.float32) for name, size in scales.items()}
    return drawn | {f"init_{name}": rng.normal(size=(4, 5)).astype(np.float32) for name in scales}


@pytest.fixture(scope="module")
def tensorflow(gradients, run_tensorflow):
    """TensorFlow's values after every step."""
    return run_tensorflow("tensorflow_optimizer.py", gradients)


def test_twenty_steps_are_tensorflows(gradients, tensorflow):
    config = default_config()
    rule = config.optimizer
    rule.name, rule.schedule, rule.learning_rate = "rmsprop", "exponential", 0.045
    rule.momentum = rule.rmsprop_decay = 0.9
    rule.epsilon, rule.decay_rate, rule.decay_every_steps, rule.weight_decay = 1.0, 0.98, 6, 0.0
    config.ema.decay, config.ema.ramp = 0.9, True
    schedule = make_schedule(rule, STEPS)
    optimizer = make_optimizer(rule, schedule)
    names = ("kernel", "scale", "bias")
    params = {name: jnp.asarray(gradients[f"init_{name}"]) for name in names}
    state, average = optimizer.init(params), params

    @jax.jit
    def update(params, state, average, grads, step):
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return params, state, update_ema(average, params, step + 1, config.ema)

    for step in range(STEPS):
        grads = {name: jnp.asarray(gradients[name][step]) for name in names}
        params, state, average = update(params, state, average, grads, jnp.int32(step))
        np.testing.assert_allclose(schedule(step), tensorflow["rate"][step], rtol=1e-6)
        for name in names:
            np.testing.assert_allclose(params[name], tensorflow[name][step], atol=2e-6, err_msg=f"{name}, step {step}")
            np.testing.assert_allclose(
                average[name], tensorflow[f"ema_{name}"][step], atol=2e-6, err_msg=f"average of {name}, step {step}"
            )
    assert np.abs(np.asarray(params["scale"]) - gradients["init_scale"]).max() > 0.1
