"""Every setting of a run, with its default and meaning.

A recipe in ``configs/`` starts from ``default_config(TASK)`` and changes what it needs; a misspelt field fails there,
and on the command line, because a ``ConfigDict`` refuses fields that it does not have. What one job alone has stands
in ``tasks/JOB/config.py``.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.tasks.base import Task
from flax_mnv2.tasks.registry import TASKS, get_task
from flax_mnv2.tasks.rules import flatten, jsonable

# A run may be continued with other values of these; anything else would make it another run.
CHANGEABLE = (
    "parallel",
    "shard_optimizer_state",
    "compilation_cache",
    "log_every_steps",
    "eval_every_steps",
    "eval_every_epochs",
    "checkpoint",
    "early_stopping",
    "eval",
    "report",
    "non_finite",
    "data.bad_examples",
    "data.max_bad_examples",
    "data.timeout",
    "data.data_dir",
    "data.num_workers",
    "data.num_threads",
    "data.prefetch_buffer_size",
)

# What a run reads. Its content must be that which the run began with, wherever it lies (training/inputs.py).
INPUTS = ("data.archive", "data.sbd_archive", "data.table", "data.labels", "init_from")

TWINS = (  # durations in epochs, in steps, and the fewest steps
    ("num_epochs", "num_steps", 1),
    ("optimizer.warmup_epochs", "optimizer.warmup_steps", 0),
    ("optimizer.decay_every_epochs", "optimizer.decay_every_steps", 1),
    ("ema.start_epochs", "ema.start_steps", 0),
    ("eval_every_epochs", "eval_every_steps", 1),
    ("checkpoint.every_epochs", "checkpoint.every_steps", 1),
)

# Fields of MobileNetV2Config that follow from the data of a run, that its input pipelines fix, that one job alone has,
# or that are for callers.
_OF_THE_DATA = (
    *("num_labels", "id2label", "label2id", "image_size", "semantic_loss_ignore_index", "num_channels"),
    *("problem_type", "output_hidden_states", "return_dict", "deeplab", "detection", "quantization", "extra"),
)


def default_config(task: str = "segmentation") -> ml_collections.ConfigDict:
    """Returns all fields of a run. Sizes are in pixels, durations in steps (updates of the weights).

    A field in epochs (passes over the training split) that is above 0 goes before its twin in steps. The config has
    the fields of ``task`` only, a name in ``tasks.registry.TASKS``; another is a ConfigError.
    """
    job = get_task(task)
    config = ml_collections.ConfigDict()
    config.task = task  # the job: a name in tasks.registry.TASKS
    config.seed = 0  # of weights, order, augmentation and dropout
    config.num_steps = 30_000  # updates of the weights
    config.num_epochs = 0.0  # passes over the training split
    config.batch_size = 16  # over all devices and hosts
    config.gradient_accumulation_steps = 1  # parts that a batch is worked through in, to save memory
    config.dtype = "float32"  # of the computation: float32, or bfloat16 for mixed precision
    config.parallel = "jit"  # jit over a mesh, or pmap
    config.shard_optimizer_state = False  # split it over the devices, which saves memory (jit, and batch_norm.sync)
    config.compilation_cache = "auto"  # folder for compiled programs; auto: in the user's cache; empty: none
    # Where the weights come from: a folder, file or hub id of any format; empty starts from random ones.
    config.init_from = ""
    config.init_scope = "backbone"  # backbone: the head starts fresh; all: the labels must match
    _add_model(config, job)
    _add_data(config)
    _add_optimizer(config)
    _add_evaluation_and_checkpoints(config)
    job.add_defaults(config)
    return config.lock()  # a misspelt field in a recipe fails where it stands


def _add_model(config: ml_collections.ConfigDict, job: type[Task]) -> None:
    config.initializer = "normal"  # of convolutions: model.initializer_range; or fan_out: He's, as torchvision's
    config.model = ml_collections.ConfigDict()  # fields of MobileNetV2Config; labels come from the data
    types = typing.get_type_hints(MobileNetV2Config)
    for field in dataclasses.fields(MobileNetV2Config):
        if field.name in (*_OF_THE_DATA, *job.model_ignores):
            continue
        value = job.model_defaults.get(field.name, field.default)
        if value is None:  # the command line needs to know the type
            [kind] = (option for option in typing.get_args(types[field.name]) if option is not type(None))
            value = ml_collections.config_dict.placeholder(kind)
        config.model[field.name] = value
    _add_quantization(config)
    config.batch_norm = ml_collections.ConfigDict()
    config.batch_norm.sync = True  # statistics over all devices; False: of each device, averaged for evaluation
    config.freeze_batch_norm = False  # use and keep the running statistics; scale and bias still learn
    config.freeze_until = ""  # name of a layer, such as layer_10: it and all before it keep weights and statistics
    config.drop_path_rate = 0.0  # stochastic depth, growing linearly with a block's depth to this


def _add_quantization(config: ml_collections.ConfigDict) -> None:
    section = config.model.quantization = ml_collections.ConfigDict()  # fields of QuantizationSpec
    section.scheme = ""  # int8 or uint8: train with weights and activations rounded to 8 bits; empty: do not
    section.start_step = 0  # steps before anything is rounded, in which ranges are taken already
    section.freeze_range_step = ml_collections.config_dict.placeholder(int)  # steps after which ranges stay
    section.range_decay = 0.999  # of their moving average


def _add_data(config: ml_collections.ConfigDict) -> None:
    config.data = ml_collections.ConfigDict()
    config.data.dataset = ""  # a name in data.datasets
    config.data.data_dir = ""  # prepared data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.archive = ""  # folder, .tar, .tar.gz or .zip; of imagenet2012 the folder of its two tars
    config.data.labels = ""  # of voc_segmentation/custom: a file with a name per line, or names with commas
    config.data.num_classes = 0  # 0: as many as labels
    config.data.train_split = "train"  # split to train on
    config.data.eval_split = "val"  # split to evaluate on
    config.data.flip = True  # mirror half of the training images
    config.data.num_workers = 0  # processes that prepare batches; 0: threads of this process
    config.data.num_threads = 4  # each makes a batch of its own
    config.data.prefetch_buffer_size = 8  # batches that wait, ready; at least as many as threads
    config.data.timeout = 600.0  # seconds that a batch may take before the run stops and says what it waits for
    config.data.bad_examples = "fail"  # what cannot be read or decoded stops the run; or skip: others take its place
    config.data.max_bad_examples = 100  # of skip: different ones in a run; one more stops it


def _add_optimizer(config: ml_collections.ConfigDict) -> None:
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # adam or rmsprop (TensorFlow's)
    config.optimizer.momentum = 0.9  # of sgd and rmsprop, and the first moment of adam
    config.optimizer.nesterov = False  # of sgd and rmsprop: look ahead
    config.optimizer.rmsprop_decay = 0.9  # of the mean square, of rmsprop
    config.optimizer.epsilon = 1e-8  # of adam and rmsprop
    config.optimizer.learning_rate = 0.007  # at its peak, after the warm-up
    config.optimizer.base_batch_size = 0  # the rate is for this batch size and scaled to ours; 0: as it stands
    config.optimizer.schedule = "poly"  # poly, cosine, exponential or constant
    config.optimizer.poly_power = 0.9  # of poly
    config.optimizer.end_learning_rate = 0.0  # at the end of poly and cosine; of exponential the least
    config.optimizer.decay_rate = 0.98  # of exponential: factor every decay_every
    config.optimizer.decay_every_steps = 0  # of exponential
    config.optimizer.decay_every_epochs = 0.0  # of exponential
    config.optimizer.staircase = True  # of exponential: in steps, not continuously
    config.optimizer.warmup_steps = 0  # in which the rate grows linearly
    config.optimizer.warmup_epochs = 0.0  # the same in epochs
    config.optimizer.warmup_start = 0.0  # fraction of the rate that the first step has
    config.optimizer.weight_decay = 4e-5  # of gradients, as an L2 term; of adam decoupled (AdamW)
    # dense_kernels: convolutions but depthwise ones (TF-slim's rule); kernels: all of them; all: norms and biases too
    config.optimizer.weight_decay_on = "dense_kernels"
    config.optimizer.head_lr_multiplier = 1.0  # of the rate, for the head
    config.optimizer.layer_lr_decay = 1.0  # rate of a layer relative to the one after it
    config.optimizer.clip_norm = 0.0  # of the global gradient; 0: off

    config.ema = ml_collections.ConfigDict()  # moving average of weights and statistics, evaluated beside them
    config.ema.decay = 0.0  # 0: none
    config.ema.every_steps = 1  # between two updates of it
    config.ema.ramp = False  # smaller decay at first, (1 + step) / (10 + step), as TensorFlow's num_updates
    config.ema.start_steps = 0  # a copy of the weights until then
    config.ema.start_epochs = 0.0  # the same in epochs


def _add_evaluation_and_checkpoints(config: ml_collections.ConfigDict) -> None:
    config.non_finite = ml_collections.ConfigDict()  # a loss or gradient that is NaN or infinite
    config.non_finite.action = "stop"  # or skip: the update is left out, and the run goes on with the next batch
    config.non_finite.max_skips = 100  # of skip: one more stops the run

    config.report = True  # train.py writes WORKDIR/report.html when it ends
    config.log_every_steps = 20  # between two lines of metrics
    config.eval_every_steps = 1000  # between two evaluations
    config.eval_every_epochs = 0.0  # the same in epochs
    config.early_stopping = ml_collections.ConfigDict()
    config.early_stopping.patience = 0  # evaluations without a better one that end the run; 0: never
    config.early_stopping.threshold = 0.0  # of the task's best metric: what a better one has more than the best
    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 1000  # between two saves
    config.checkpoint.every_epochs = 0.0  # the same in epochs
    config.checkpoint.keep_last = 2  # newest checkpoints that stay on disk
    config.checkpoint.keep_best = 1  # by the task's best metric; 0: none
    config.checkpoint.on_error = "stop"  # what a full disk or lost permission does; or continue: train on, try again
    config.checkpoint.timeout = 1200.0  # seconds that storage may take for a save before the run ends

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 8  # over all devices and hosts


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


def check_same_run(config: ml_collections.ConfigDict, stored: Mapping[str, Any], workdir: str) -> None:
    """Raises a ConfigError where a run in ``workdir`` was started with other settings, naming each.

    Where its inputs lie makes no difference; what they hold is compared once they are open.
    """
    ours = jsonable(flatten(config))
    # An older version's run may lack some fields, and had those of all tasks.
    theirs = jsonable(flatten(default_config(config.task))) | jsonable(flatten(stored))
    foreign = fields_of_other_tasks(config.task)
    different = [
        f"  {name}: {theirs.get(name, '(absent)')!r} there, {ours.get(name, '(absent)')!r} now"
        for name in sorted((ours.keys() | theirs.keys()) - foreign)
        if ours.get(name) != theirs.get(name) and not name.startswith(CHANGEABLE) and name not in INPUTS
    ]
    if different:
        raise ConfigError(
            f"{workdir} holds a run with another config:\n"
            + "\n".join(different)
            + "\nContinue it with its own settings, or choose another --workdir for this one."
        )


def fields_of_other_tasks(task: str) -> set[str]:
    """Returns the dotted names of fields that some task has and this one has not."""
    everything = set().union(*(flatten(default_config(name)) for name in TASKS))
    return everything - flatten(default_config(task)).keys()
