"""The checks that make a mistake in a run's config readable, before anything expensive begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_collections

from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks.initializers import INITIALIZERS
from flax_mnv2.training.config.defaults import default_config, flatten, jsonable
from flax_mnv2.training.config.durations import TWINS
from flax_mnv2.training.parallel import nearest_multiples

Rule = tuple[Callable[[Any], bool], str]  # what a value must satisfy, and the words for it

# What one task alone reads.
SEGMENTATION_ONLY = (
    *(f"data.{name}" for name in ("crop_size", "min_scale", "max_scale", "scale_step", "eval_size", "ignore_label")),
    *("data.sbd_archive", "model.head_batch_norm_momentum"),
    *(f"eval.{name}" for name in ("output_stride", "scales", "flip", "num_pictures")),
)
CLASSIFICATION_ONLY = (
    "label_smoothing",
    *(f"data.{name}" for name in ("holdout", "image_mean", "image_std", "train_size", "train_crop", "crop_area")),
    *(f"data.{name}" for name in ("crop_aspect", "crop_padding", "color_jitter", "auto_augment", "randaugment_ops")),
    *(f"data.randaugment_{name}" for name in ("magnitude", "magnitude_std")),
    *(f"data.{name}" for name in ("random_erasing", "random_erasing_fill", "mixup_alpha", "cutmix_alpha")),
    *(f"data.{name}" for name in ("augment_repeats", "eval_preparation", "eval_resize", "eval_crop")),
    "data.eval_interpolation",
)


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError for fields that are missing, unknown, out of range, or that contradict each other."""
    defaults, given = flatten(default_config()), flatten(config)
    for title, names in (
        ("lacks", defaults.keys() - given.keys()),
        ("has unknown", given.keys() - defaults.keys()),
    ):
        if names:
            raise ConfigError(f"The config {title} {', '.join(sorted(names))}; start from default_config().")
    for name, rule in _RULES.items():
        _check(given, name, rule)
    _check(given, "data.max_scale", _at_least(config.data.min_scale, name="data.min_scale"))
    for epochs, steps, _ in TWINS:
        if given[epochs] and given[steps] != defaults[steps]:
            raise ConfigError(
                f"config.{epochs} = {given[epochs]:g} goes before config.{steps} = {given[steps]}, so only one may be "
                f"set. To count in steps: --config.{epochs}=0."
            )
    if not config.num_epochs and not config.optimizer.warmup_epochs:
        _check(given, "optimizer.warmup_steps", _below(config.num_steps, name="num_steps"))
    rule = config.optimizer
    if rule.schedule == "exponential" and not (rule.decay_every_steps or rule.decay_every_epochs):
        raise ConfigError(
            "config.optimizer.schedule is 'exponential', which needs decay_every_steps or decay_every_epochs above 0."
        )
    if config.shard_optimizer_state and (config.parallel != "jit" or not config.batch_norm.sync):
        raise ConfigError(
            "config.shard_optimizer_state needs config.parallel='jit' and config.batch_norm.sync=True; found "
            f"{config.parallel!r} and {config.batch_norm.sync}. Elsewhere a step sees one device alone."
        )
    _check(given, "optimizer.end_learning_rate", _at_most(rule.learning_rate, name="optimizer.learning_rate"))
    if rule.nesterov and rule.name == "adam":
        raise ConfigError("config.optimizer.nesterov is for sgd and rmsprop; found optimizer.name='adam'.")
    _check_task(config, given, defaults)


def check_parts(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Raises a ConfigError unless a device's share of the batch splits into parts, and parts into pairs to mix."""
    parts = config.gradient_accumulation_steps
    mixes = config.data.mixup_alpha or config.data.cutmix_alpha
    distinct = config.batch_size // config.data.augment_repeats
    if mixes and config.data.augment_repeats > 1 and parts % distinct == 0:
        raise ConfigError(
            f"With config.data.augment_repeats = {config.data.augment_repeats} and gradient_accumulation_steps = "
            f"{parts} MixUp and CutMix would pair an image with itself. Use fewer of either, or a larger batch."
        )
    unit = num_devices * parts * (2 if mixes else 1)
    if config.batch_size % unit:
        reasons = [f"{num_devices} device(s)", f"config.gradient_accumulation_steps = {parts}"]
        reasons += ["the pairs of MixUp and CutMix"] if mixes else []
        raise ConfigError(
            f"config.batch_size must be divisible by {unit}, for {', '.join(reasons)}; found {config.batch_size}. "
            f"Use {nearest_multiples(config.batch_size, unit)}."
        )


def _check_task(config: ml_collections.ConfigDict, given: dict[str, Any], defaults: dict[str, Any]) -> None:
    """What one task has and the other would silently ignore."""
    if config.task == "segmentation":
        _check(given, "eval.scales", (lambda value: value and all(s > 0 for s in value), "positive numbers"))
        ignored = CLASSIFICATION_ONLY
    else:
        ignored = SEGMENTATION_ONLY
        _check(given, "data.randaugment_magnitude", _magnitude(config.data.auto_augment))
        if config.data.eval_crop > config.data.eval_resize:
            raise ConfigError(
                f"config.data.eval_crop must be at most data.eval_resize = {config.data.eval_resize}; found "
                f"{config.data.eval_crop}."
            )
        if config.data.crop_padding and config.data.train_crop != "pad":
            raise ConfigError("config.data.crop_padding is for config.data.train_crop='pad'; found 'inception'.")
        _check(given, "data.augment_repeats", _divisor_of(config.batch_size, name="batch_size"))
    for name in ignored:
        _check(given, name, _left_at(defaults[name], config.task))


def _check(given: dict[str, Any], name: str, rule: Rule) -> None:
    holds, expected = rule
    try:
        right = holds(given[name])
    except TypeError:  # a word among numbers
        right = False
    if not right:
        raise ConfigError(f"config.{name} must be {expected}; found {given[name]!r}.")


def _one_of(*choices: str) -> Rule:
    return (lambda value: value in choices), "one of " + ", ".join(map(repr, choices))


def _left_at(default: Any, task: str) -> Rule:
    return (lambda value: jsonable({"": value}) == jsonable({"": default})), f"left at {default!r} for {task}"


def _at_least(low: float, *, name: str = "") -> Rule:
    return (lambda value: low <= value < math.inf), f"at least {f'{name} = ' if name else ''}{low}"


def _at_most(high: float, *, name: str) -> Rule:
    return (lambda value: 0 <= value <= high), f"from 0 to {name} = {high}"


def _magnitude(policy: str) -> Rule:
    high = 10 if policy == "timm_randaugment" else 30
    whole = policy == "randaugment"
    words = f"{'a whole number ' if whole else ''}from 0 to {high}{f' for {policy}' if policy else ''}"
    return (lambda value: 0 <= value <= high and (not whole or value == round(value))), words


def _below(high: float, *, name: str) -> Rule:
    return (lambda value: value < high), f"below {name} = {high}"


def _divisor_of(number: int, *, name: str) -> Rule:
    return (lambda value: number % value == 0), f"a divisor of {name} = {number}"


_POSITIVE: Rule = (lambda value: 0 < value < math.inf, "above 0")


def _from_to_below(low: float, high: float) -> Rule:
    return (lambda value: low <= value < high), f"from {low} to below {high}"


def _share(low: float = 0.0) -> Rule:
    return (lambda value: low <= value <= 1), f"from {low:g} to 1"


def _pair_from(low: int) -> Rule:
    def holds(value: Any) -> bool:
        return len(value) == 2 and all(isinstance(side, int) and side >= low for side in value)

    return holds, f"a pair of integers (height, width), each at least {low}"


def _range_within(high: float) -> Rule:
    def holds(value: Any) -> bool:
        return len(value) == 2 and 0 < value[0] <= value[1] <= high and value[1] < math.inf

    return holds, f"a pair (smallest, largest) above 0{'' if high == float('inf') else f', at most {high:g}'}"


def _numbers(count: int, rule: Callable[[float], bool], words: str) -> Rule:
    return (lambda value: len(value) == count and all(map(rule, value))), f"{count} numbers {words}"


def _color_jitter(value: Any) -> bool:
    return len(value) == 4 and all(each >= 0 for each in value) and value[3] <= 0.5


_RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 1 << 32, "from 0 to below 2**32"),
    "initializer": _one_of(*INITIALIZERS),
    "optimizer.poly_power": _POSITIVE,
    "model.classifier_dropout_prob": _from_to_below(0, 1),
    "task": _one_of("segmentation", "classification"),
    "parallel": _one_of("jit", "pmap"),
    "dtype": _one_of("float32", "bfloat16"),
    "init_scope": _one_of("backbone", "all"),
    "optimizer.name": _one_of("sgd", "adam", "rmsprop"),
    "optimizer.schedule": _one_of("poly", "cosine", "exponential", "constant"),
    "optimizer.weight_decay_on": _one_of("dense_kernels", "kernels", "all"),
    "data.train_crop": _one_of("inception", "pad"),
    "data.auto_augment": _one_of("", "trivial_augment_wide", "randaugment", "timm_randaugment"),
    "data.random_erasing_fill": _one_of("constant", "pixel"),
    "data.eval_preparation": _one_of("processor", "slim"),
    "data.eval_interpolation": _one_of("bilinear", "bicubic"),
    "data.bad_examples": _one_of("fail", "skip"),
    "data.timeout": _POSITIVE,
    "checkpoint.timeout": _POSITIVE,
    "checkpoint.on_error": _one_of("stop", "continue"),
    "non_finite.action": _one_of("stop", "skip"),
    "data.crop_size": _pair_from(32),
    "data.eval_size": _pair_from(0),
    "data.crop_area": _range_within(1.0),
    "data.crop_aspect": _range_within(float("inf")),
    "data.color_jitter": (
        _color_jitter,
        "4 numbers of at least 0 (brightness, contrast, saturation, hue), the last at most 0.5",
    ),
    "data.image_mean": _numbers(3, lambda value: 0 <= value <= 1, "from 0 to 1"),
    "data.image_std": _numbers(3, lambda value: value > 0, "above 0"),
    "optimizer.momentum": _from_to_below(0, 1),
    "optimizer.rmsprop_decay": _from_to_below(0, 1),
    "optimizer.epsilon": _POSITIVE,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.head_lr_multiplier": _POSITIVE,
    "optimizer.layer_lr_decay": (lambda value: 0 < value <= 1, "above 0, at most 1"),
    "optimizer.decay_rate": (lambda value: 0 < value <= 1, "above 0, at most 1"),
    "optimizer.warmup_start": _share(),
    "data.min_scale": _POSITIVE,
    "data.random_erasing": _share(),
    "data.holdout": _from_to_below(0, 1),
    "label_smoothing": _from_to_below(0, 1),
    "drop_path_rate": _from_to_below(0, 1),
    "ema.decay": _from_to_below(0, 1),
    **dict.fromkeys(("data.train_size", "data.eval_resize", "data.eval_crop"), _at_least(32)),
    **dict.fromkeys(
        (
            "num_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "data.num_threads",
            "data.randaugment_ops",
            "data.augment_repeats",
            "log_every_steps",
            "eval_every_steps",
            "checkpoint.every_steps",
            "checkpoint.keep_last",
            "ema.every_steps",
            "eval.batch_size",
        ),
        _at_least(1),
    ),
    **dict.fromkeys(
        (
            "num_epochs",
            "data.num_workers",
            "data.prefetch_buffer_size",
            "data.max_bad_examples",
            "data.crop_padding",
            "data.mixup_alpha",
            "data.cutmix_alpha",
            "data.randaugment_magnitude_std",
            "optimizer.base_batch_size",
            "optimizer.decay_every_steps",
            "optimizer.decay_every_epochs",
            "optimizer.warmup_steps",
            "optimizer.warmup_epochs",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
            "ema.start_steps",
            "ema.start_epochs",
            "eval_every_epochs",
            "checkpoint.every_epochs",
            "checkpoint.keep_best",
            "non_finite.max_skips",
            "eval.num_pictures",
        ),
        _at_least(0),
    ),
}
