"""SSDLite with MobileNetV2 on COCO 2017, at 320×320 (arXiv 1801.04381, section 6.2; TF Object Detection API).

Command:
  python train.py --config configs/det_coco.py --workdir runs/det_coco --config.data.archive=FOLDER
  python train.py --config configs/det_coco.py:focal --workdir runs/det_focal --config.data.archive=FOLDER

FOLDER has COCO's annotations/, train2017/ and val2017/. The backbone comes from ImageNet weights.

  tf     the original, ssdlite_mobilenet_v2_coco: RMSProp, hard negatives, random crops; the default
  focal  the newer ssdlite_mobilenet_edgetpu_320x320's: SGD with cosine, focal loss, large batches, for accelerators
  smoke  a minute, to try a machine or data

Expected: the paper gives 22.1 AP on test-dev for 4.3 M parameters and 0.8 B multiply-adds; tf is that network. Not run
to the end by us: it takes weeks on a CPU.

Own boxes, as COCO JSON, VOC XML or YOLO text:
  --config.data.dataset=coco_detection (or voc_detection/custom, or yolo) --config.data.archive=FILE
"""

from flax_mnv2.training.config.defaults import default_config


def get_config(variant: str = ""):
    """The config; ``variant`` is ``"tf"``, also where it is empty, ``"focal"`` or ``"smoke"``."""
    config = default_config("detection")
    config.init_from = "google/mobilenet_v2_1.0_224"  # ImageNet backbone; the detection head starts fresh
    config.data.dataset = "coco_detection"
    config.data.image_size = (320, 320)
    config.data.crop_whole = 0.15
    config.data.bad_examples = "skip"  # COCO has a few boxes without an area

    config.batch_size = 24
    config.num_steps = 200_000
    config.optimizer.name = "rmsprop"
    config.optimizer.momentum, config.optimizer.rmsprop_decay, config.optimizer.epsilon = 0.9, 0.9, 1.0
    config.optimizer.learning_rate = 0.004
    config.optimizer.schedule = "exponential"
    config.optimizer.decay_rate, config.optimizer.decay_every_steps = 0.95, 800_720
    config.optimizer.weight_decay, config.optimizer.weight_decay_on = 4e-5, "kernels"
    config.model.batch_norm_momentum = config.model.head_batch_norm_momentum = 0.9997
    config.eval_every_steps = config.checkpoint.every_steps = 10_000

    if variant == "focal":
        config.batch_size = 512
        config.num_steps = 400_000
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 0.8
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps, config.optimizer.warmup_start = 2_000, 0.13333 / 0.8
        config.model.batch_norm_momentum = config.model.head_batch_norm_momentum = 0.97
        config.detection.focal_gamma, config.detection.focal_alpha = 2.0, 0.75
        config.detection.class_bias, config.detection.box_loss_weight = -4.6, 0.25
    elif variant == "smoke":
        config.init_from = ""
        config.model.depth_multiplier = 0.35
        config.data.image_size = (96, 96)
        config.batch_size = config.eval.batch_size = 4
        config.num_steps = config.eval_every_steps = config.checkpoint.every_steps = 4
        config.log_every_steps = 2
    elif variant not in ("", "tf"):
        raise ValueError(f"configs/det_coco.py has the variants tf, focal and smoke; found {variant!r}.")
    return config
