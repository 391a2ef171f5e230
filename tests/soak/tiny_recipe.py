"""Runs small enough to be broken a hundred times: --config tests/soak/tiny_recipe.py:segmentation

The network is cut down by child.py, which a recipe cannot do.
"""

from flax_mnv2.training.config.defaults import default_config


def get_config(variant: str = "segmentation"):
    """``segmentation``: drawn shapes; ``classification``: photos, given as ``config.data.archive``, all switched on.

    ``plain`` is the classifier without most of that, which compiles sooner.
    """
    config = default_config("segmentation" if variant == "segmentation" else "classification")
    config.num_steps = 20
    config.batch_size = config.eval.batch_size = 8
    config.log_every_steps = 2
    config.eval_every_steps, config.checkpoint.every_steps = 8, 4
    config.optimizer.schedule = "constant"  # one program for runs of every length
    config.data.num_threads = 1
    config.data.timeout = 60.0
    config.model.depth_multiplier = 0.35
    config.model.initializer_range = 0.1
    config.ema.decay, config.ema.ramp = 0.9, True
    config.optimizer.learning_rate, config.optimizer.momentum = 0.01, 0.9
    if variant == "segmentation":
        config.data.dataset = "shapes_segmentation"
        config.data.crop_size = (48, 48)
        config.model.output_stride = 8
        config.model.classifier_dropout_prob = 0.2
        config.model.batch_norm_momentum = config.model.head_batch_norm_momentum = 0.8
        config.eval.num_pictures, config.eval.batch_size = 1, 4
    elif variant in ("classification", "plain"):
        config.data.dataset, config.data.eval_split = "image_folder", "test"
        config.data.train_size = config.data.eval_resize = config.data.eval_crop = 32
        config.data.crop_area = (0.5, 1.0)
        config.model.output_stride, config.model.classifier_initializer_range = 32, 0.1
        config.model.batch_norm_momentum = 0.7
        config.model.classifier_dropout_prob = 0.1
    else:
        raise ValueError(f"{__file__} has segmentation, classification and plain; found {variant!r}.")
    if variant == "classification":
        config.gradient_accumulation_steps = 2
        config.data.mixup_alpha, config.data.cutmix_alpha, config.data.augment_repeats = 0.2, 1.0, 2
        config.data.auto_augment, config.data.random_erasing = "trivial_augment_wide", 0.3
        config.drop_path_rate, config.model.classifier_dropout_prob, config.label_smoothing = 0.3, 0.2, 0.1
        config.optimizer.name, config.optimizer.epsilon = "rmsprop", 1e-3
    return config
