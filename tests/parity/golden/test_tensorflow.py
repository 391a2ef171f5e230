"""RMSProp, staircase decay, the moving average and TF-slim's evaluation crop against TensorFlow's own.

TensorFlow is not installed for this: tensorflow.npz holds what it makes of the arrays in
tensorflow_inputs.py; make_tensorflow.py writes it, and says what to install for that.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_inputs as given
from PIL import Image

from flax_mnv2.data.augment.central_crop import CentralCrop
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.optimizer import make_optimizer, make_schedule
from flax_mnv2.training.state import update_ema

GOLDEN = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def tensorflow():
    """TensorFlow's results by name."""
    with np.load(GOLDEN / "tensorflow.npz") as file:
        return dict(file)


@pytest.mark.parametrize("side", [224, 96])
def test_central_crop_is_tensorflows(tensorflow, side):
    images = given.images(side)
    assert len(images) == 5
    for name, image in images.items():
        ours = CentralCrop(side)(Image.fromarray(image))
        assert (ours.shape, ours.dtype) == ((side, side, 3), np.uint8)
        difference = np.abs(ours[:: given.ROW_STEP] - tensorflow[f"crop/{side}/{name}"])
        assert difference.max() <= 0.5 + 2e-2, f"{name}: {difference.max()}"  # ours is rounded to whole levels


def test_twenty_steps_are_tensorflows(tensorflow):
    config = default_config()
    rule = config.optimizer
    rule.name, rule.schedule, rule.learning_rate = "rmsprop", "exponential", given.LEARNING_RATE
    rule.momentum = rule.rmsprop_decay = 0.9
    rule.epsilon, rule.weight_decay = 1.0, 0.0
    rule.decay_rate, rule.decay_every_steps = given.DECAY_RATE, given.DECAY_EVERY
    config.ema.decay, config.ema.ramp = given.EMA, True
    schedule = make_schedule(rule, given.STEPS)
    optimizer = make_optimizer(rule, schedule)
    gradients, first = given.gradients()
    params = jax.tree.map(jnp.asarray, first)
    state, average = optimizer.init(params), params

    @jax.jit
    def update(params, state, average, grads, step):
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return params, state, update_ema(average, params, step + 1, config.ema)

    theirs = {name.removeprefix("optimizer/"): value for name, value in tensorflow.items()}
    for step in range(given.STEPS):
        grads = {name: jnp.asarray(value[step]) for name, value in gradients.items()}
        params, state, average = update(params, state, average, grads, jnp.int32(step))
        np.testing.assert_allclose(schedule(step), theirs["rate"][step], rtol=1e-6)
        for name in first:
            message = f"{name}, step {step}"
            np.testing.assert_allclose(params[name], theirs[name][step], atol=2e-6, err_msg=message)
            np.testing.assert_allclose(average[name], theirs[f"ema_{name}"][step], atol=2e-6, err_msg=message)
    assert np.abs(np.asarray(params["scale"]) - first["scale"]).max() > 0.1
