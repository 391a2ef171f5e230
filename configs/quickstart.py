"""A small DeepLabV3-MobileNetV2 from random weights on drawn shapes, with no download: make quickstart

Command:
  python train.py --config configs/quickstart.py --workdir runs/quickstart

Expected: mean IoU above 0.80 on the 80 validation images, in about two minutes on two CPU cores (0.89 in our run).
"""

from flax_mnv2.training.config.defaults import default_config


def get_config(variant: str = ""):
    """The config; ``variant`` is empty or ``"smoke"``, which shrinks it for tests."""
    config = default_config("segmentation")
    config.data.dataset = "shapes_segmentation"
    config.data.crop_size = (96, 96)
    config.data.min_scale, config.data.max_scale, config.data.scale_step = 0.75, 1.25, 0.0

    config.model.depth_multiplier = 0.35
    config.model.output_stride = 8
    config.model.batch_norm_momentum = config.model.head_batch_norm_momentum = 0.95
    config.model.initializer_range = 0.1

    config.batch_size = 16
    config.num_steps = 300
    config.eval_every_steps = config.checkpoint.every_steps = 150
    config.optimizer.name = "adam"  # SGD needs three times the steps from random weights
    config.optimizer.learning_rate = 0.004
    config.optimizer.weight_decay = 1e-4
    config.eval.batch_size = 16
    config.eval.num_pictures = 6

    if variant == "smoke":
        config.batch_size = config.eval.batch_size = 8
        config.data.crop_size = (64, 64)
        config.num_steps = 8
        config.eval_every_steps = config.checkpoint.every_steps = 4
        config.log_every_steps = 2
    elif variant:
        raise ValueError(f"configs/quickstart.py has the variant smoke; found {variant!r}.")
    return config
