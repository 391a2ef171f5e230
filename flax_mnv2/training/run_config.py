"""Every setting of a run, with its default and meaning, and the checks that make a mistake readable.

A recipe in ``configs/`` starts from ``default_config()`` and changes what it needs; a misspelt field fails
there, and on the command line, because a ``ConfigDict`` refuses fields that it does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from flax_mnv2.errors import ConfigError

# A run may be continued with other values of these; anything else would make it another run.
CHANGEABLE = (
    "parallel",
    "log_every_steps",
    "eval_every_steps",
    "checkpoint",
    "eval",
    "data.data_dir",
    "data.num_workers",
    "data.num_threads",
    "data.prefetch_buffer_size",
)


def default_config() -> ml_collections.ConfigDict:
    """All fields. Sizes are in pixels, durations in steps (updates of the weights)."""
    config = ml_collections.ConfigDict()
    config.task = "segmentation"  # or classification, which this version evaluates and does not train
    config.seed = 0
    config.num_steps = 30_000
    config.batch_size = 16  # over all devices and hosts
    config.dtype = "float32"  # of the computation: float32, or bfloat16 for mixed precision
    config.parallel = "jit"  # jit over a mesh, or pmap

    # Where the weights come from: a local Hugging Face folder or a hub id; empty starts from random ones.
    config.init_from = ""
    config.init_scope = "backbone"  # backbone: the head starts fresh; all: the labels must match

    config.model = ml_collections.ConfigDict()  # fields of MobileNetV2Config; labels come from the data
    config.model.depth_multiplier = 1.0
    config.model.depth_divisible_by = 8
    config.model.min_depth = 8
    config.model.expand_ratio = 6.0
    config.model.output_stride = 16
    config.model.first_layer_is_expansion = True
    config.model.finegrained_output = True
    config.model.hidden_act = "relu6"
    config.model.tf_padding = True
    config.model.layer_norm_eps = 1e-3
    config.model.initializer_range = 0.02
    config.model.classifier_initializer_range = 0.01
    config.model.classifier_dropout_prob = 0.1
    config.model.batch_norm_momentum = 0.997  # share of the old statistics that is kept
    config.model.head_batch_norm_momentum = 0.9997
    config.batch_norm = ml_collections.ConfigDict()
    config.batch_norm.sync = True  # statistics over all devices; False: of each device, averaged for evaluation
    config.freeze_batch_norm = False  # use and keep the running statistics; scale and bias still learn

    config.data = ml_collections.ConfigDict()
    config.data.dataset = "voc_segmentation/2012"
    config.data.data_dir = ""  # prepared data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.archive = ""  # VOC-layout folder, .tar, .tar.gz or .zip; of imagenet2012 the folder of its two tars
    config.data.sbd_archive = ""  # Semantic Boundaries Dataset, for voc_segmentation/2012_aug
    config.data.labels = ""  # of voc_segmentation/custom: a file with a name per line, or names with commas
    config.data.num_classes = 0  # 0: as many as labels
    config.data.ignore_label = 255
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.crop_size = (513, 513)  # height, width
    config.data.min_scale = 0.5
    config.data.max_scale = 2.0
    config.data.scale_step = 0.25  # 0: any scale between
    config.data.flip = True
    config.data.eval_size = (0, 0)  # images are padded to this; (0, 0): the largest image of the split
    config.data.num_workers = 0  # processes that prepare batches; 0: threads of this process
    config.data.num_threads = 4
    config.data.prefetch_buffer_size = 8  # examples that wait, ready

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # or adam
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.learning_rate = 0.007
    config.optimizer.schedule = "poly"  # poly, cosine or constant
    config.optimizer.poly_power = 0.9
    config.optimizer.end_learning_rate = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 4e-5  # on convolution kernels, but not depthwise ones (TF-slim's rule)
    config.optimizer.head_lr_multiplier = 1.0
    config.optimizer.clip_norm = 0.0  # of the global gradient; 0: off

    config.log_every_steps = 20
    config.eval_every_steps = 1000
    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1  # by mean IoU (segmentation) or top-1 accuracy; 0: none

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 8  # over all devices and hosts
    # Of segmentation alone:
    config.eval.output_stride = 0  # 0: as in training
    config.eval.scales = (1.0,)  # several: softmax averaged over them, as in the DeepLab papers
    config.eval.flip = False  # average with the mirrored image
    config.eval.num_pictures = 8
    return config.lock()  # a misspelt field in a recipe fails where it stands


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError for fields that are missing, unknown, or out of range."""
    known, given = flatten(default_config()), flatten(config)
    for title, names in (
        ("lacks", known.keys() - given.keys()),
        ("has unknown", given.keys() - known.keys()),
    ):
        if names:
            raise ConfigError(f"The config {title} {', '.join(sorted(names))}; start from default_config().")
    _check(config, "task", _one_of("segmentation", "classification"))
    _check(config, "parallel", _one_of("jit", "pmap"))
    _check(config, "dtype", _one_of("float32", "bfloat16"))
    _check(config, "init_scope", _one_of("backbone", "all"))
    _check(config, "optimizer.name", _one_of("sgd", "adam"))
    _check(config, "optimizer.schedule", _one_of("poly", "cosine", "constant"))
    _check(config, "data.crop_size", _pair_from(32))
    _check(config, "data.eval_size", _pair_from(0))
    for name in ("num_steps", "batch_size", "eval.batch_size", "data.num_threads", "log_every_steps"):
        _check(config, name, _at_least(1))
    for name in ("eval_every_steps", "checkpoint.every_steps", "checkpoint.keep_last"):
        _check(config, name, _at_least(1))
    for name in (
        "data.num_workers",
        "data.prefetch_buffer_size",
        "checkpoint.keep_best",
        "eval.num_pictures",
    ):
        _check(config, name, _at_least(0))
    for name in ("optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.clip_norm", "seed"):
        _check(config, name, _at_least(0))
    for name in ("optimizer.learning_rate", "optimizer.head_lr_multiplier", "data.min_scale"):
        _check(config, name, (lambda value: value > 0, "above 0"))
    _check(config, "optimizer.momentum", (lambda value: 0 <= value < 1, "from 0 to below 1"))
    low = config.data.min_scale
    _check(config, "data.max_scale", (lambda value: value >= low, f"at least data.min_scale = {low}"))
    if config.task == "segmentation":
        _check(config, "eval.scales", (lambda value: value and all(s > 0 for s in value), "positive numbers"))
    else:
        for name, default in (("eval.output_stride", 0), ("eval.scales", (1.0,)), ("eval.flip", False)):
            _check(config, name, _left_at(default, config.task))
    steps = config.num_steps
    _check(config, "optimizer.warmup_steps", (lambda value: value < steps, f"below num_steps = {steps}"))


def check_same_run(config: ml_collections.ConfigDict, stored: Mapping[str, Any], workdir: str) -> None:
    """Raises a ConfigError where a run in ``workdir`` was started with other settings, naming each."""
    ours, theirs = jsonable(flatten(config)), jsonable(flatten(stored))
    different = [
        f"  {name}: {theirs.get(name, '(absent)')!r} there, {ours.get(name, '(absent)')!r} now"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name) and not name.startswith(CHANGEABLE)
    ]
    if different:
        raise ConfigError(
            f"{workdir} holds a run with another config:\n"
            + "\n".join(different)
            + "\nContinue it with its own settings, or choose another --workdir for this one."
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, (Mapping, ml_collections.ConfigDict)):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def jsonable(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples become lists, as JSON gives them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}


def _check(config, name: str, rule) -> None:
    holds, expected = rule
    value = flatten(config)[name]
    if not holds(value):
        raise ConfigError(f"config.{name} must be {expected}; found {value!r}.")


def _one_of(*choices: str):
    return (lambda value: value in choices), "one of " + ", ".join(map(repr, choices))


def _left_at(default: Any, task: str):
    return (lambda value: jsonable({"": value}) == jsonable({"": default})), f"left at {default!r} for {task}"


def _at_least(low: int):
    return (lambda value: value >= low), f"at least {low}"


def _pair_from(low: int):
    def holds(value):
        return len(value) == 2 and all(isinstance(side, int) and side >= low for side in value)

    return holds, f"a pair of integers (height, width), each at least {low}"
