"""Epochs become steps."""

import pytest

from flax_mnv2 import ConfigError
from flax_mnv2.training.config.defaults import default_config, in_steps


def test_epochs_go_before_steps():
    config = default_config()
    config.batch_size = 32
    config.num_epochs, config.eval_every_epochs = 3.0, 0.5
    config.optimizer.warmup_epochs, config.optimizer.decay_every_epochs = 1.0, 2.4
    config.ema.start_epochs, config.checkpoint.every_steps = 0.25, 77
    steps = in_steps(config, 1000)
    assert (steps.num_steps, steps.eval_every_steps) == (94, 16)
    assert (steps.optimizer.warmup_steps, steps.optimizer.decay_every_steps) == (31, 75)
    assert (steps.ema.start_steps, steps.checkpoint.every_steps) == (8, 77)
    assert config.num_steps == 30_000  # the run's own config stays as it was recorded


def test_tiny_durations_are_at_least_a_step():
    config = default_config()
    config.num_epochs, config.eval_every_epochs = 1.0, 0.001
    assert in_steps(config, 100).eval_every_steps == 1


def test_a_warm_up_as_long_as_the_run_is_refused():
    config = default_config()
    config.num_epochs = config.optimizer.warmup_epochs = 2.0
    with pytest.raises(ConfigError, match="warm-up takes 125 steps of batch 16 and the run has 125"):
        in_steps(config, 1000)
