"""MobileNetV2 on ImageNet (ILSVRC 2012): every published size, five recipes.

Command:
  python train.py --config configs/cls_imagenet.py:1.0_224,paper --workdir runs/imagenet \\
    --config.data.archive=FOLDER
  python eval.py --config configs/cls_imagenet.py --pretrained google/mobilenet_v2_1.0_224 \\
    --config.data.archive=FOLDER

FOLDER holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (for an evaluation the latter is enough), from
image-net.org, where an account is needed. Or build the data set beforehand, or convert a TFRecord copy of TFDS's:
python -m flax_mnv2.data.prepare imagenet2012 --help. eval.py prepares the images of --pretrained weights as their own
preprocessor_config.json says.

The argument is SIZE,RECIPE, either of which may be left out. SIZE is one of variants.VARIANTS without
"mobilenet_v2_": α 1.4, 1.3, 1.0, 0.75, 0.5 or 0.35 and 224, 192, 160, 128 or 96 pixels. Batch sizes are global; but in
tiny the learning rate follows in proportion when --config.batch_size changes. RECIPE is one of

  paper           arXiv 1801.04381 and TF-slim's README of it: RMSProp as TensorFlow has it (epsilon 1 inside the root),
                  learning rate 0.045 for each 96 images of a batch of 1536, times 0.98 every 2.5 epochs in stairs (the
                  paper: every epoch, on 16 asynchronous workers), 412 epochs, weight decay 4e-5 (depthwise kernels
                  spared), moving average 0.9999, label smoothing 0.1, dropout 0.2, Inception crop and colours (slim
                  adds to the brightness, we multiply). Expected: top-1 71.8 for 1.0_224, 75.0 for 1.4_224.
  torchvision_v2  the weights IMAGENET1K_V2 (github.com/pytorch/vision, pull request 5560): batch 1024, SGD 0.5, cosine
                  over 600 epochs with 5 of warm-up, TrivialAugmentWide, random erasing 0.1, label smoothing 0.1, MixUp
                  0.2 and CutMix 1, weight decay 2e-5 (norms spared, here the classifier's bias too), each image four
                  times in a batch, crop 176, evaluation 232 -> 224, moving average. Expected: 72.15 for 1.0_224.
  timm_rmsprop    the RA weights of timm (github.com/huggingface/pytorch-image-models): batch 768, RMSProp 0.048 with
                  epsilon 1e-3, times 0.97 every 2.4 epochs, 450 epochs with 3 of warm-up, weight decay 1e-5,
                  RandAugment m9-mstd0.5, random erasing 0.2 with noise, dropout 0.2, drop path 0.2, moving average
                  0.9999. Expected: top-1 72.9 for 1.0_224, 76.5 for 1.4_224 (bicubic, crop 0.875).
  sgd_cosine      github.com/d-li14/mobilenetv2.pytorch: batch 256, SGD 0.05, cosine over 150 epochs, weight decay 4e-5,
                  crop and flip alone, no dropout. Expected: top-1 72.19 for 1.0_224.
  tiny            none of these: minutes on a CPU, to try a machine or a small copy of the data: 96 pixels, 40 steps.

Expected figures are the sources'; training on all of ImageNet was not run by us. RECIPE smoke shrinks the paper's for
tests. On 200 training and 100 validation images kept for tests, weights recovered from a quantised release are
right on 176 and 77, the same images as with transformers.
"""

import ml_collections

from flax_mnv2.errors import ConfigError
from flax_mnv2.models.variants import VARIANTS, variant_config
from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.weights.formats.pytorch import IMAGENET_MEAN, IMAGENET_STD


def get_config(argument: str = ""):
    """The config; ``argument`` is ``SIZE,RECIPE``, by default ``1.0_224,paper``."""
    parts = [part for part in argument.split(",") if part]
    recipes = [part for part in parts if part in RECIPES]
    sizes = [part for part in parts if f"mobilenet_v2_{part}" in VARIANTS]
    if len(recipes) > 1 or len(sizes) > 1 or len(recipes) + len(sizes) < len(parts):
        raise ConfigError(
            f"configs/cls_imagenet.py takes SIZE,RECIPE, such as 1.0_224,paper; found {argument!r}. SIZE is one of "
            f"{', '.join(name.removeprefix('mobilenet_v2_') for name in VARIANTS)}; RECIPE one of {', '.join(RECIPES)}."
        )
    config = _imagenet(*(sizes or ["1.0_224"]))
    RECIPES[recipes[0] if recipes else "paper"](config)
    return config


def _imagenet(size: str) -> ml_collections.ConfigDict:
    """What all recipes share."""
    variant = variant_config(f"mobilenet_v2_{size}", num_labels=1000)
    config = default_config("classification")
    config.data.dataset = "imagenet2012"
    config.data.eval_split = "validation"
    config.model.depth_multiplier = variant.depth_multiplier
    config.model.finegrained_output = variant.finegrained_output
    config.model.output_stride = 32
    config.model.classifier_dropout_prob = 0.2  # TF-slim keeps 0.8; Hugging Face's config has that as a drop rate
    config.data.train_size = config.data.eval_crop = variant.image_size
    config.data.eval_resize = round(variant.image_size / 0.875)
    config.data.num_threads = config.data.prefetch_buffer_size = 16  # batches in memory
    config.eval.batch_size = 32
    config.log_every_steps = 100
    config.eval_every_epochs = config.checkpoint.every_epochs = 1.0
    return config


def _paper(config: ml_collections.ConfigDict) -> None:
    config.batch_size = 96 * 16
    config.num_epochs = 412.0
    config.model.initializer_range = 0.09
    config.optimizer.name = "rmsprop"
    config.optimizer.rmsprop_decay = config.optimizer.momentum = 0.9
    config.optimizer.epsilon = 1.0
    config.optimizer.learning_rate, config.optimizer.base_batch_size = 0.045, 96
    config.optimizer.schedule = "exponential"
    config.optimizer.decay_rate, config.optimizer.decay_every_epochs = 0.98, 2.5
    config.optimizer.weight_decay = 4e-5
    config.label_smoothing = 0.1
    config.ema.decay, config.ema.ramp = 0.9999, True
    config.data.crop_area = (0.05, 1.0)
    config.data.color_jitter = (32 / 255, 0.5, 0.5, 0.2)


def _torchvision_v2(config: ml_collections.ConfigDict) -> None:
    _torch_model(config)
    config.batch_size = 1024
    config.num_epochs = 600.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate, config.optimizer.base_batch_size = 0.5, 1024
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs, config.optimizer.warmup_start = 5.0, 0.01
    config.optimizer.weight_decay, config.optimizer.weight_decay_on = 2e-5, "kernels"
    config.label_smoothing = 0.1
    # torchvision's 0.99998 is per image of an epoch: 1 - 2e-5 * 1024 * 32 / 600 for every 32nd step.
    config.ema.decay, config.ema.every_steps, config.ema.start_epochs = 1 - 2e-5 * 1024 * 32 / 600, 32, 5.0
    data = config.data
    data.train_size = round(data.eval_crop * 176 / 224)
    data.auto_augment = "trivial_augment_wide"
    data.random_erasing = 0.1
    data.mixup_alpha, data.cutmix_alpha = 0.2, 1.0
    data.augment_repeats = 4
    data.eval_resize = round(data.eval_crop * 232 / 224)


def _timm_rmsprop(config: ml_collections.ConfigDict) -> None:
    _torch_model(config)
    config.batch_size = 768
    config.num_epochs = 450.0
    config.optimizer.name = "rmsprop"
    config.optimizer.rmsprop_decay = config.optimizer.momentum = 0.9
    config.optimizer.epsilon = 1e-3
    config.optimizer.learning_rate, config.optimizer.base_batch_size = 0.048, 768
    config.optimizer.schedule = "exponential"
    config.optimizer.decay_rate, config.optimizer.decay_every_epochs = 0.97, 2.4
    config.optimizer.warmup_epochs, config.optimizer.warmup_start = 3.0, 1e-6 / 0.048
    config.optimizer.weight_decay, config.optimizer.weight_decay_on = 1e-5, "kernels"
    config.label_smoothing = 0.1
    config.drop_path_rate = 0.2
    config.ema.decay = 0.9999
    data = config.data
    data.auto_augment = "timm_randaugment"
    data.randaugment_ops, data.randaugment_magnitude, data.randaugment_magnitude_std = 2, 9.0, 0.5
    data.random_erasing, data.random_erasing_fill = 0.2, "pixel"
    data.eval_interpolation = "bicubic"


def _sgd_cosine(config: ml_collections.ConfigDict) -> None:
    _torch_model(config)
    config.batch_size = 256
    config.num_epochs = 150.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate, config.optimizer.base_batch_size = 0.05, 256
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay, config.optimizer.weight_decay_on = 4e-5, "all"
    config.model.classifier_dropout_prob = 0.0


def _torch_model(config: ml_collections.ConfigDict) -> None:
    """The network as torchvision and timm have it at α = 1.0; other widths they round otherwise."""
    config.model.tf_padding = False
    config.model.layer_norm_eps = 1e-5
    config.model.batch_norm_momentum = 0.9
    config.model.finegrained_output = True
    config.initializer = "fan_out"
    config.data.image_mean, config.data.image_std = IMAGENET_MEAN, IMAGENET_STD


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.batch_size = config.eval.batch_size = 16
    config.num_epochs, config.num_steps = 0.0, 40
    config.eval_every_epochs = config.checkpoint.every_epochs = 0.0
    config.eval_every_steps = config.checkpoint.every_steps = 20
    config.log_every_steps = 5
    config.data.train_size, config.data.eval_resize, config.data.eval_crop = 96, 110, 96
    config.data.num_threads, config.data.prefetch_buffer_size = 4, 8
    config.model.batch_norm_momentum = 0.9  # so few steps: the statistics must follow the weights sooner
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"


def _smoke(config: ml_collections.ConfigDict) -> None:
    _paper(config)
    _tiny(config)
    config.optimizer.name = "rmsprop"
    config.model.depth_multiplier = 0.35
    config.data.train_size, config.data.eval_resize, config.data.eval_crop = 32, 36, 32
    config.optimizer.schedule, config.optimizer.base_batch_size = "exponential", 0
    config.batch_size = config.eval.batch_size = 4
    config.num_steps = config.eval_every_steps = config.checkpoint.every_steps = 4
    config.log_every_steps = 2


RECIPES = {
    "paper": _paper,
    "torchvision_v2": _torchvision_v2,
    "timm_rmsprop": _timm_rmsprop,
    "sgd_cosine": _sgd_cosine,
    "tiny": _tiny,
    "smoke": _smoke,
}
