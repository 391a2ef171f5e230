"""Fine-tuning an ImageNet classifier on a folder of one's own photos: train/CLASS/*.jpg and val/CLASS/*.jpg.

Command:
  python train.py --config configs/cls_image_folder.py --workdir runs/photos \\
    --config.data.archive=FOLDER_OR_ARCHIVE --config.init_from=google/mobilenet_v2_1.0_224

The folder may be a .tar, .tgz or .zip; without val (or test) a tenth of each class is held out, always the same. The
backbone comes from config.init_from, the classifier starts afresh. With few photos --config.freeze_until=layer_12 keeps
the first layers as they are, --config.optimizer.layer_lr_decay=0.9 lets earlier ones learn slower, and
--config.optimizer.head_lr_multiplier=10 the new classifier faster.

configs/cls_image_folder.py:cifar10 is the recipe for CIFAR-10 as JPEG files: 96 pixels, batch 64, 600 steps. With
:int8, or :cifar10,int8, a run that has ended is trained on for 8-bit integers:
  python train.py --config configs/cls_image_folder.py:int8 --workdir runs/photos_int8 \\
    --config.data.archive=FOLDER_OR_ARCHIVE --config.init_from=runs/photos/checkpoints/step_N

Expected: of cifar10 from mobilenet_v2_1.0_224, top-1 0.733 on the 10,000 test images and 0.732 on the first 200 of each
class (seed 0), where the same recipe in PyTorch with transformers reached 0.692. 13 minutes on two busy CPU cores. On
another day's machine 0.7224; from there cifar10,int8 reached 0.7316 in integers by eval.py, 0.7315 as exported in
LiteRT and 0.7316 in ONNX Runtime, with the same first class on 99.99 % and 99.6 % of the images.
"""

from flax_mnv2.training.config.defaults import default_config
from flax_mnv2.training.config.quantized import fine_tune, split_int8


def get_config(variant: str = ""):
    """The config; ``variant`` is empty, ``"cifar10"``, either with ``"int8"``, or ``"smoke"``, which shrinks it."""
    config = default_config("classification")
    config.init_from = "google/mobilenet_v2_1.0_224"
    config.data.dataset = "image_folder"
    config.batch_size = 64
    config.num_epochs = 10.0
    config.eval_every_epochs = config.checkpoint.every_epochs = 1.0
    config.eval.batch_size = 64

    config.model.output_stride = 32
    config.model.classifier_dropout_prob = 0.2
    config.model.batch_norm_momentum = 0.95  # few steps: the statistics must follow the weights soon
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 4e-5

    variant, quantized = split_int8(variant)
    if variant == "cifar10":
        config.data.eval_split = "test"
        config.data.train_size = config.data.eval_resize = config.data.eval_crop = 96
        config.data.train_crop, config.data.crop_padding = "pad", 8
        config.num_epochs, config.num_steps = 0.0, 600
        config.eval_every_epochs = config.checkpoint.every_epochs = 0.0
        config.eval_every_steps = config.checkpoint.every_steps = 300
    elif variant == "smoke":
        shrink(config)
    elif variant:
        raise ValueError(f"configs/cls_image_folder.py has the variants cifar10, int8 and smoke; found {variant!r}.")
    return fine_tune(config, num_steps=200, learning_rate=1e-3) if quantized else config


def shrink(config):
    """Makes any run on photos of one's own one for tests: four steps of a narrow network from random weights."""
    config.init_from = ""
    config.model.depth_multiplier = 0.35
    config.data.train_size, config.data.eval_resize, config.data.eval_crop = 32, 36, 32
    config.batch_size = config.eval.batch_size = 4
    config.num_epochs, config.num_steps = 0.0, 4
    config.eval_every_epochs = config.checkpoint.every_epochs = 0.0
    config.eval_every_steps = config.checkpoint.every_steps = 4
    config.log_every_steps = 2
