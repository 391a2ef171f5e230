"""A run's training step from shapes alone: the real one, lowered for devices that need not be there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from flax_mnv2.data.datasets import registry
from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks.registry import get_task
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.config.defaults import in_steps
from flax_mnv2.training.optimizer import configured_optimizer
from flax_mnv2.training.parallel import make_parallel
from flax_mnv2.training.run import check_batches
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import configured_train_step

IMAGENET_EXAMPLES = 1_281_167  # stands for any data set: only constants of schedules follow from the length of an epoch


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """A training step, lowered and not yet compiled, with the shapes of its state and of the global batch."""

    lowered: jax.stages.Lowered
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    num_labels: int
    parts: int  # in which the batch is worked through, one after the other


def lower_train_step(
    config: ml_collections.ConfigDict, devices: Sequence[Any], *, num_classes: int = 0
) -> AbstractStep:
    """Lowers the step that ``loop.train`` would compile on ``devices``. Reads no data, loads no weights.

    With ``num_classes=0`` that of the data set is taken where it is known, else ``config.data.num_classes``. A
    ConfigError says what is wrong with the config, the batch size or the number of classes.
    """
    check_config(config)
    config = in_steps(config, IMAGENET_EXAMPLES)
    # jax.pmap takes only devices of this process, which a slice's are not. It is jit and shard_map underneath.
    per_device = config.parallel == "pmap" or not config.batch_norm.sync
    parallel = make_parallel("jit", devices, per_device=per_device, shard_optimizer=config.shard_optimizer_state)
    check_batches(config, parallel)

    config.data.num_classes = num_classes = num_classes or known_num_classes(config)
    labels = tuple(f"class_{index}" for index in range(num_classes))
    job = get_task(config.task)
    task = job.for_training(config, labels, axis_name=parallel.axis_name)
    schedule, optimizer = configured_optimizer(config)
    step = configured_train_step(config, task, schedule, optimizer, parallel)
    keeps_ema = config.ema.decay > 0
    state = jax.eval_shape(lambda: TrainState.create(task.init_variables(config.seed), optimizer, ema=keeps_ema))
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        parallel.state_sharding(state),
    )
    batch = job.batch_shapes(config)
    lowered = parallel.compile_train_step(step).lower(state, batch)
    return AbstractStep(lowered, state, batch, task.eval_model.config.num_labels, config.gradient_accumulation_steps)


def known_num_classes(config: ml_collections.ConfigDict) -> int:
    """Returns how many classes the data has; raises a ConfigError where only the data itself would tell."""
    name = config.data.dataset
    count = config.data.num_classes or registry.known_num_classes(name)
    if count < 1:
        raise ConfigError(
            f"How many classes {name} has is known only from its data, which is not read here. Give --num_classes=N."
        )
    return count
