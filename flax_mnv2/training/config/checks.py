"""The checks that make a mistake in a run's config readable, before anything expensive begins."""

import ml_collections

from flax_mnv2.config.checks import OUTPUT_STRIDES
from flax_mnv2.config.quantization import as_quantization
from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks import rules
from flax_mnv2.tasks.base import INITIALIZERS
from flax_mnv2.tasks.registry import TASKS, get_task
from flax_mnv2.tasks.rules import Rule, check_field, flatten
from flax_mnv2.training.config.defaults import TWINS, default_config
from flax_mnv2.training.parallel import nearest_multiples


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError for fields that are missing, unknown, out of range, or that contradict each other."""
    fields = flatten(config)
    check_field({"task": None, **fields}, "task", rules.one_of(*TASKS))
    job, defaults = get_task(config.task), flatten(default_config(config.task))
    missing, unknown = defaults.keys() - fields.keys(), fields.keys() - defaults.keys()
    for title, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            raise ConfigError(
                f"The config {title} {', '.join(sorted(names))}; start from default_config({config.task!r})."
            )
    ignored = {f"model.{name}" for name in job.model_ignores}
    for name, rule in {**_RULES, **job.rules}.items():
        if name not in ignored:
            check_field(fields, name, rule)
    for epochs, steps, _ in TWINS:
        if fields[epochs] and fields[steps] != defaults[steps]:
            raise ConfigError(
                f"config.{epochs} = {fields[epochs]:g} goes before config.{steps} = {fields[steps]}, so only one may "
                f"be set. To count in steps: --config.{epochs}=0."
            )
    as_quantization(config.model.quantization.to_dict())
    _check_optimizer(config)
    job.check_config(config, fields)


def _check_optimizer(config: ml_collections.ConfigDict) -> None:
    fields, optimizer = flatten(config), config.optimizer
    if not config.num_epochs and not optimizer.warmup_epochs:
        shorter = (lambda value: value < config.num_steps), f"below num_steps = {config.num_steps}"
        check_field(fields, "optimizer.warmup_steps", shorter)
    if optimizer.schedule == "exponential" and not (optimizer.decay_every_steps or optimizer.decay_every_epochs):
        raise ConfigError(
            "config.optimizer.schedule is 'exponential', which needs decay_every_steps or decay_every_epochs above 0."
        )
    if config.shard_optimizer_state and (config.parallel != "jit" or not config.batch_norm.sync):
        raise ConfigError(
            "config.shard_optimizer_state needs config.parallel='jit' and config.batch_norm.sync=True; found "
            f"{config.parallel!r} and {config.batch_norm.sync}. Elsewhere a step sees one device alone."
        )
    highest = optimizer.learning_rate
    lower = (lambda value: 0 <= value <= highest), f"from 0 to optimizer.learning_rate = {highest}"
    check_field(fields, "optimizer.end_learning_rate", lower)
    if optimizer.nesterov and optimizer.name == "adam":
        raise ConfigError("config.optimizer.nesterov is for sgd and rmsprop; found optimizer.name='adam'.")


def check_parts(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Raises a ConfigError unless the batch divides by devices, parts of an accumulation, and pairs to mix."""
    parts = config.gradient_accumulation_steps
    job = get_task(config.task)
    mixes, repeats = job.mixes_pairs(config), job.augment_repeats(config)
    if mixes and repeats > 1 and parts % (config.batch_size // repeats) == 0:
        raise ConfigError(
            f"With config.data.augment_repeats = {repeats} and gradient_accumulation_steps = "
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


_AT_LEAST_1 = (
    *("num_steps", "batch_size", "gradient_accumulation_steps", "data.num_threads", "log_every_steps"),
    *("eval_every_steps", "checkpoint.every_steps", "checkpoint.keep_last", "ema.every_steps", "eval.batch_size"),
)
_AT_LEAST_0 = (
    *("num_epochs", "data.num_workers", "data.prefetch_buffer_size", "data.max_bad_examples"),
    *("optimizer.base_batch_size", "optimizer.decay_every_steps", "optimizer.decay_every_epochs"),
    *("optimizer.warmup_steps", "optimizer.warmup_epochs", "optimizer.weight_decay", "optimizer.clip_norm"),
    *("ema.start_steps", "ema.start_epochs", "eval_every_epochs", "checkpoint.every_epochs", "checkpoint.keep_best"),
    *("non_finite.max_skips", "early_stopping.patience", "early_stopping.threshold"),
)
_UP_TO_1: Rule = (lambda value: 0 < value <= 1, "above 0, at most 1")
_RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 1 << 32, "from 0 to below 2**32"),
    "parallel": rules.one_of("jit", "pmap"),
    "dtype": rules.one_of("float32", "bfloat16"),
    "init_scope": rules.one_of("backbone", "all"),
    "initializer": rules.one_of(*INITIALIZERS),
    "model.classifier_dropout_prob": rules.BELOW_1,
    "model.output_stride": rules.one_of(*OUTPUT_STRIDES),
    "drop_path_rate": rules.BELOW_1,
    "data.bad_examples": rules.one_of("fail", "skip"),
    "data.timeout": rules.POSITIVE,
    "optimizer.name": rules.one_of("sgd", "adam", "rmsprop"),
    "optimizer.schedule": rules.one_of("poly", "cosine", "exponential", "constant"),
    "optimizer.weight_decay_on": rules.one_of("dense_kernels", "kernels", "all"),
    "optimizer.momentum": rules.BELOW_1,
    "optimizer.rmsprop_decay": rules.BELOW_1,
    "optimizer.epsilon": rules.POSITIVE,
    "optimizer.learning_rate": rules.POSITIVE,
    "optimizer.head_lr_multiplier": rules.POSITIVE,
    "optimizer.layer_lr_decay": _UP_TO_1,
    "optimizer.decay_rate": _UP_TO_1,
    "optimizer.poly_power": rules.POSITIVE,
    "optimizer.warmup_start": rules.FRACTION,
    "ema.decay": rules.BELOW_1,
    "non_finite.action": rules.one_of("stop", "skip"),
    "checkpoint.on_error": rules.one_of("stop", "continue"),
    "checkpoint.timeout": rules.POSITIVE,
    **dict.fromkeys(_AT_LEAST_1, rules.at_least(1)),
    **dict.fromkeys(_AT_LEAST_0, rules.at_least(0)),
}
