"""The update rule and the training step that a run's config describes."""

from __future__ import annotations

from collections.abc import Callable

import ml_collections
import optax

from flax_mnv2.tasks.registry import Task
from flax_mnv2.training.optimizer import make_optimizer, make_schedule
from flax_mnv2.training.parallel import Parallel
from flax_mnv2.training.step import make_train_step


def make_update_rule(config: ml_collections.ConfigDict) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Learning rate by step, and the optimizer; ``config`` has its durations in steps (``durations.in_steps``)."""
    schedule = make_schedule(config.optimizer, config.num_steps, batch_size=config.batch_size)
    return schedule, make_optimizer(config.optimizer, schedule, freeze_until=config.freeze_until)


def configured_train_step(
    config: ml_collections.ConfigDict,
    task: Task,
    schedule: optax.Schedule,
    optimizer: optax.GradientTransformation,
    parallel: Parallel,
) -> Callable:
    """The pure step of a run, to be compiled by ``parallel``; for the arguments see ``steps.make_train_step``."""
    return make_train_step(
        task,
        optimizer,
        schedule,
        seed=config.seed,
        axis_name=parallel.axis_name,
        replicate=parallel.replicate,
        accumulate=config.gradient_accumulation_steps,
        ema=config.ema,
    )
