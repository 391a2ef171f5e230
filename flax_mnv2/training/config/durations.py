"""Durations of a run: epochs become steps once the size of the training split is known."""

import ml_collections

from flax_mnv2.errors import ConfigError

TWINS = (  # epochs, steps, and the fewest steps
    ("num_epochs", "num_steps", 1),
    ("optimizer.warmup_epochs", "optimizer.warmup_steps", 0),
    ("optimizer.decay_every_epochs", "optimizer.decay_every_steps", 1),
    ("ema.start_epochs", "ema.start_steps", 0),
    ("eval_every_epochs", "eval_every_steps", 1),
    ("checkpoint.every_epochs", "checkpoint.every_steps", 1),
)


def in_steps(config: ml_collections.ConfigDict, num_examples: int) -> ml_collections.ConfigDict:
    """Returns a copy of a run's config with every duration in whole steps, for a training split of ``num_examples``.

    A duration in epochs that is above 0 goes before its twin in steps.
    """
    config = config.copy_and_resolve_references()
    for epochs_field, steps_field, least in TWINS:
        group, _, name = epochs_field.rpartition(".")
        holder = config[group] if group else config
        if holder[name]:
            steps = round(holder[name] * num_examples / config.batch_size)
            holder[steps_field.rpartition(".")[2]] = max(least, steps)
    if config.ema.decay and config.ema.start_steps >= config.num_steps:
        raise ConfigError(
            f"The moving average begins at step {config.ema.start_steps} and the run has {config.num_steps}; shorten "
            "config.ema.start_epochs or start_steps, or set config.ema.decay=0."
        )
    if config.optimizer.warmup_steps >= config.num_steps:
        raise ConfigError(
            f"The warm-up takes {config.optimizer.warmup_steps} steps of batch {config.batch_size} and the run has "
            f"{config.num_steps}; shorten config.optimizer.warmup_epochs or lengthen config.num_epochs."
        )
    return config
