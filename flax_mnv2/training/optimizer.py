"""Optimizers and learning-rate schedules from a config."""

from __future__ import annotations

from typing import Any

import jax
import optax

DEPTHWISE, BACKBONE = "conv_3x3", "mobilenet_v2"


def make_schedule(config: Any, num_steps: int) -> optax.Schedule:
    """Step → learning rate.

    Args:
      config: ``config.optimizer`` of a run.
      num_steps: length of the run, warm-up included.
    """
    peak, end, warmup = config.learning_rate, config.end_learning_rate, config.warmup_steps
    decay_steps = num_steps - warmup
    if config.schedule == "poly":
        decay = optax.polynomial_schedule(peak, end, config.poly_power, decay_steps)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=end / peak)
    else:
        decay = optax.constant_schedule(peak)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The update rule.

    Weight decay joins the gradient before the momentum, as an L2 term in the loss would (TF-slim); with Adam
    it is decoupled (AdamW).

    Args:
      config: ``config.optimizer`` of a run.
      schedule: step → learning rate.
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "sgd":
        rule = [decay, optax.trace(config.momentum, config.nesterov)]
    else:
        rule = [optax.scale_by_adam(b1=config.momentum), decay]
    head = [scale_head(config.head_lr_multiplier)] if config.head_lr_multiplier != 1.0 else []
    return optax.chain(*clip, *rule, *head, optax.scale_by_learning_rate(schedule))


def decay_mask(params: Any) -> Any:
    """True for convolution and classifier kernels, False for depthwise kernels, biases and batch norm."""
    return jax.tree.map_with_path(
        lambda path, _: path[-1].key == "kernel" and DEPTHWISE not in {entry.key for entry in path}, params
    )


def scale_head(factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of everything outside the backbone."""

    def update(updates, params=None):
        del params
        return jax.tree.map_with_path(lambda path, value: value if path[0].key == BACKBONE else value * factor, updates)

    return optax.stateless(update)
