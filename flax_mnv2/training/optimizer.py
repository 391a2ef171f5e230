"""Optimizers and learning-rate schedules from a config."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from flax_mnv2.errors import ConfigError
from flax_mnv2.models.endpoints import LAST_CONV

DEPTHWISE, BACKBONE = "conv_3x3", "mobilenet_v2"


def configured_optimizer(config: ml_collections.ConfigDict) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns learning rate by step, and the optimizer of a run, whose durations are in steps."""
    schedule = make_schedule(config.optimizer, config.num_steps, batch_size=config.batch_size)
    return schedule, make_optimizer(config.optimizer, schedule, freeze_until=config.freeze_until)


def make_schedule(config: Any, num_steps: int, *, batch_size: int = 0) -> optax.Schedule:
    """Returns step → learning rate, by ``config.optimizer`` with durations in steps.

    ``num_steps`` includes the warm-up; a rate with ``base_batch_size`` is scaled in proportion to ``batch_size``.
    """
    scale = batch_size / config.base_batch_size if config.base_batch_size else 1.0
    peak, end, warmup = config.learning_rate * scale, config.end_learning_rate * scale, config.warmup_steps
    decay_steps = num_steps - warmup
    if config.schedule == "poly":
        decay = optax.polynomial_schedule(peak, end, config.poly_power, decay_steps)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=end / peak)
    elif config.schedule == "exponential":
        decay = _exponential(peak, end, config, begin=warmup)
    else:
        decay = optax.constant_schedule(peak)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(peak * config.warmup_start, peak, warmup), decay], [warmup])


def _exponential(peak: float, end: float, config: Any, *, begin: int) -> optax.Schedule:
    """Decay counted from the first step of the run, warm-up included, as timm and TF-slim count."""

    def schedule(step: jax.Array) -> jax.Array:
        periods = (step + begin) / config.decay_every_steps
        periods = jnp.floor(periods) if config.staircase else periods
        return jnp.maximum(peak * config.decay_rate**periods, end)

    return schedule


def make_optimizer(config: Any, schedule: optax.Schedule, *, freeze_until: str = "") -> optax.GradientTransformation:
    """Returns the optimizer of ``config.optimizer``; layers up to ``freeze_until`` stay as they are.

    Weight decay joins the gradient before the rest, as an L2 term in the loss would (TF-slim); with Adam it is
    decoupled (AdamW). RMSProp is TensorFlow's: mean squares start at 1, epsilon stands inside the root, and the
    momentum gathers steps that the learning rate has already scaled.
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=lambda params: decay_mask(params, config))
    rate = optax.scale_by_learning_rate(schedule)
    if config.name == "sgd":
        rule = [decay, optax.trace(config.momentum, config.nesterov), rate]
    elif config.name == "rmsprop":
        mean_square = optax.scale_by_rms(config.rmsprop_decay, config.epsilon, initial_scale=1.0, eps_in_sqrt=True)
        rule = [decay, mean_square, rate, optax.trace(config.momentum, config.nesterov)]
    else:
        rule = [optax.scale_by_adam(b1=config.momentum, eps=config.epsilon), decay, rate]
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    multiplies = bool(freeze_until) or config.head_lr_multiplier != 1.0 or config.layer_lr_decay != 1.0
    return optax.chain(*clip, *rule, *([scale_layers(config, freeze_until)] if multiplies else []))


def decay_mask(params: Any, config: Any) -> Any:
    """Returns which parameters decay, by ``config.weight_decay_on``: depthwise kernels with ``kernels``, not with
    ``dense_kernels``; biases and normalisation with ``all`` only.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [entry.key for entry in path]
        if config.weight_decay_on == "all":
            return True
        return names[-1] == "kernel" and (config.weight_decay_on == "kernels" or DEPTHWISE not in names)

    return jax.tree.map_with_path(decays, params)


def scale_layers(config: Any, freeze_until: str = "") -> optax.GradientTransformation:
    """Multiplies the updates of each layer: 0 where frozen, ``layer_lr_decay`` to the power of its distance from the
    head, and ``head_lr_multiplier`` for everything outside the backbone.
    """

    def update(updates: Any, params: Any = None) -> Any:
        del params
        factors = layer_factors(updates, config, freeze_until)

        def scaled(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
            factor = factors[path[1].key if path[0].key == BACKBONE else path[0].key]
            return value if factor == 1.0 else value * factor

        return jax.tree.map_with_path(scaled, updates)

    return optax.stateless(update)


def layer_factors(params: Any, config: Any, freeze_until: str = "") -> dict[str, float]:
    """Returns the factor of each layer's updates by name: layers of the backbone in their order, then the heads."""
    layers = sorted(params[BACKBONE], key=_depth)
    if freeze_until and freeze_until not in layers:
        raise ConfigError(f"config.freeze_until must be one of {', '.join(layers)}; found {freeze_until!r}.")
    frozen = layers.index(freeze_until) + 1 if freeze_until else 0
    factors = {
        name: 0.0 if at < frozen else config.layer_lr_decay ** (len(layers) - at) for at, name in enumerate(layers)
    }
    return factors | {name: config.head_lr_multiplier for name in params if name != BACKBONE}


def _depth(name: str) -> tuple[int, str]:
    """Sorts layers of the backbone by depth: the stem, numbered blocks, the last convolution."""
    return ("conv_stem", "layer", LAST_CONV).index(name.rpartition("_")[0] if name.startswith("layer_") else name), name
