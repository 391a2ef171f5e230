"""SSDLite with MobileNetV2 on BCCD, 364 photos of blood cells: an example of one's own boxes in VOC's XML.

The archive holds BCCD/{Annotations,JPEGImages,ImageSets/Main}: 205 training, 87 validation and 72 test images of
640×480 with red and white cells and platelets. The data are not part of this project.

Command:
  python train.py --config configs/det_bccd.py --workdir runs/bccd \\
    --config.data.archive=bccd_voc.tar --config.init_from=mobilenet_v2_1.0_224
  python eval.py --workdir runs/bccd --split test

Expected: see README. The same network, recipe and weights in PyTorch reached 0.532 AP and 0.882 AP50 on test with one
seed. `configs/det_bccd.py:anchors` has anchors for these cells, of which only a third of the platelets have one of the
original's at an overlap of 0.5.
"""

from configs import det_coco


def get_config(variant: str = ""):
    """The config; ``variant`` is empty, ``"anchors"`` or ``"smoke"``."""
    config = det_coco.get_config("smoke" if variant == "smoke" else "")
    config.data.dataset = "voc_detection/custom"
    if variant == "smoke":
        return config
    if variant not in ("", "anchors"):
        raise ValueError(f"configs/det_bccd.py has the variants anchors and smoke; found {variant!r}.")
    config.data.bad_examples = "fail"
    config.data.crop_whole = 1 / 6
    config.batch_size = 16
    config.num_steps = 450
    config.eval_every_steps = config.checkpoint.every_steps = 150
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.03
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay_on = "all"
    config.optimizer.clip_norm = 10.0
    # Few steps: the running statistics must follow the weights sooner than the original's 0.9997 lets them.
    config.model.batch_norm_momentum = config.model.head_batch_norm_momentum = 0.95
    return config
