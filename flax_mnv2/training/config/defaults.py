"""Every setting of a run, with its default and meaning.

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
    "shard_optimizer_state",
    "log_every_steps",
    "eval_every_steps",
    "eval_every_epochs",
    "checkpoint",
    "eval",
    "non_finite",
    "data.bad_examples",
    "data.max_bad_examples",
    "data.timeout",
    "data.data_dir",
    "data.num_workers",
    "data.num_threads",
    "data.prefetch_buffer_size",
)


def default_config() -> ml_collections.ConfigDict:
    """All fields. Sizes are in pixels, durations in steps (updates of the weights).

    A field in epochs (passes over the training split) that is above 0 goes before its twin in steps.
    """
    config = ml_collections.ConfigDict()
    config.task = "segmentation"  # or classification
    config.seed = 0
    config.num_steps = 30_000
    config.num_epochs = 0.0
    config.batch_size = 16  # over all devices and hosts
    config.gradient_accumulation_steps = 1  # parts that a batch is worked through in, to save memory
    config.dtype = "float32"  # of the computation: float32, or bfloat16 for mixed precision
    config.parallel = "jit"  # jit over a mesh, or pmap
    config.shard_optimizer_state = False  # split it over the devices, which saves memory (jit, and batch_norm.sync)

    # Weights to start from: a folder or file of any library, a run's checkpoint or a hub id; empty: random ones.
    config.init_from = ""
    config.init_scope = "backbone"  # backbone: the head starts fresh; all: the labels must match

    config.initializer = "normal"  # of convolutions: model.initializer_range; or fan_out: He's, as torchvision's
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
    config.freeze_until = ""  # name of a layer, such as layer_10: it and all before it keep weights and statistics
    config.drop_path_rate = 0.0  # stochastic depth, growing linearly with a block's depth to this
    config.label_smoothing = 0.0

    config.data = ml_collections.ConfigDict()
    config.data.dataset = "voc_segmentation/2012"
    config.data.data_dir = ""  # prepared data; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.archive = ""  # folder, .tar, .tar.gz or .zip; of imagenet2012 the folder of its two tars
    config.data.sbd_archive = ""  # Semantic Boundaries Dataset, for voc_segmentation/2012_aug
    config.data.labels = ""  # of voc_segmentation/custom: a file with a name per line, or names with commas
    config.data.num_classes = 0  # 0: as many as labels
    config.data.holdout = 0.1  # of image_folder: share of the training images kept as val where there is no such folder
    config.data.ignore_label = 255
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.flip = True
    config.data.num_workers = 0  # processes that prepare batches; 0: threads of this process
    config.data.num_threads = 4  # each makes a batch of its own
    config.data.prefetch_buffer_size = 8  # batches that wait, ready; at least as many as threads
    config.data.timeout = 600.0  # seconds that a batch may take before the run stops and says what it waits for
    config.data.bad_examples = "fail"  # what cannot be read or decoded stops the run; or skip: others take its place
    config.data.max_bad_examples = 100  # of skip: different ones in a run; one more stops it
    # Of segmentation alone:
    config.data.crop_size = (513, 513)  # height, width
    config.data.min_scale = 0.5
    config.data.max_scale = 2.0
    config.data.scale_step = 0.25  # 0: any scale between
    config.data.eval_size = (0, 0)  # images are padded to this; (0, 0): the largest image of the split
    # Of classification alone:
    config.data.image_mean = (0.5, 0.5, 0.5)  # pixels are normalised by these shares of 255; TF's and the reference's
    config.data.image_std = (0.5, 0.5, 0.5)
    config.data.train_size = 224
    config.data.train_crop = "inception"  # a random area and aspect; or pad: resize, pad, crop anywhere
    config.data.crop_area = (0.08, 1.0)  # of inception: smallest and largest share of the image
    config.data.crop_aspect = (3 / 4, 4 / 3)  # of inception: width / height
    config.data.crop_padding = 0  # of pad: black pixels on each side of the resized image
    config.data.color_jitter = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue, as in torchvision
    config.data.auto_augment = ""  # trivial_augment_wide, randaugment (torchvision's) or timm_randaugment
    config.data.randaugment_ops = 2
    config.data.randaugment_magnitude = 9.0
    config.data.randaugment_magnitude_std = 0.5  # of timm_randaugment
    config.data.random_erasing = 0.0  # probability
    config.data.random_erasing_fill = "constant"  # the mean colour, or pixel: noise
    config.data.mixup_alpha = 0.0  # 0: no MixUp
    config.data.cutmix_alpha = 0.0  # 0: no CutMix; with both, each batch takes one of them
    config.data.augment_repeats = 1  # times that a batch holds each of its images, augmented anew (arXiv 1901.09335)
    config.data.eval_preparation = "processor"  # as below, or as the weights' processor says; or slim: TF-slim's crop
    config.data.eval_resize = 256  # shorter side
    config.data.eval_crop = 224
    config.data.eval_interpolation = "bilinear"  # or bicubic

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # adam or rmsprop (TensorFlow's)
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.rmsprop_decay = 0.9
    config.optimizer.epsilon = 1e-8  # of adam and rmsprop
    config.optimizer.learning_rate = 0.007
    config.optimizer.base_batch_size = 0  # the rate is for this batch size and scaled to ours; 0: as it stands
    config.optimizer.schedule = "poly"  # poly, cosine, exponential or constant
    config.optimizer.poly_power = 0.9
    config.optimizer.end_learning_rate = 0.0
    config.optimizer.decay_rate = 0.98  # of exponential: factor every decay_every
    config.optimizer.decay_every_steps = 0
    config.optimizer.decay_every_epochs = 0.0
    config.optimizer.staircase = True  # of exponential: in steps, not continuously
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.warmup_start = 0.0  # share of the rate that the first step has
    config.optimizer.weight_decay = 4e-5
    # dense_kernels: convolutions but depthwise ones (TF-slim's rule); kernels: all of them; all: norms and biases too
    config.optimizer.weight_decay_on = "dense_kernels"
    config.optimizer.head_lr_multiplier = 1.0
    config.optimizer.layer_lr_decay = 1.0  # rate of a layer relative to the one after it
    config.optimizer.clip_norm = 0.0  # of the global gradient; 0: off

    config.ema = ml_collections.ConfigDict()  # moving average of weights and statistics, evaluated beside them
    config.ema.decay = 0.0  # 0: none
    config.ema.every_steps = 1
    config.ema.ramp = False  # smaller decay at first, (1 + step) / (10 + step), as TensorFlow's num_updates
    config.ema.start_steps = 0  # a copy of the weights until then
    config.ema.start_epochs = 0.0

    config.non_finite = ml_collections.ConfigDict()  # a loss or gradient that is NaN or infinite
    config.non_finite.action = "stop"  # or skip: the update is left out, and the run goes on with the next batch
    config.non_finite.max_skips = 100  # of skip: one more stops the run

    config.log_every_steps = 20
    config.eval_every_steps = 1000
    config.eval_every_epochs = 0.0
    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.every_epochs = 0.0
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1  # by mean IoU (segmentation) or top-1 accuracy; 0: none
    config.checkpoint.on_error = "stop"  # what a full disk or lost permission does; or continue: train on, try again
    config.checkpoint.timeout = 1200.0  # seconds that storage may take for a save before the run ends

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 8  # over all devices and hosts
    # Of segmentation alone:
    config.eval.output_stride = 0  # 0: as in training
    config.eval.scales = (1.0,)  # several: softmax averaged over them, as in the DeepLab papers
    config.eval.flip = False  # average with the mirrored image
    config.eval.num_pictures = 8
    return config.lock()  # a misspelt field in a recipe fails where it stands


def check_same_run(config: ml_collections.ConfigDict, stored: Mapping[str, Any], workdir: str) -> None:
    """Raises a ConfigError where a run in ``workdir`` was started with other settings, naming each."""
    ours = jsonable(flatten(config))
    theirs = jsonable(flatten(default_config())) | jsonable(flatten(stored))  # it may be older than some of the fields
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
