"""SSDLite with MobileNetV2 on PASCAL VOC: trained on 2007 and 2012 trainval, evaluated on 2007 test, as the field does.

Command:
  python train.py --config configs/det_voc.py --workdir runs/det_voc

The official archives are downloaded, or taken from downloads/manual in the data_dir. `configs/det_voc.py:smoke`
shrinks it to a minute.

Expected: not run to the end by us, it takes days on a CPU; no figure of this very recipe is published.
"""

from configs import det_coco


def get_config(variant: str = ""):
    """The config; ``variant`` is empty or ``"smoke"``."""
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/det_voc.py has the variant smoke; found {variant!r}.")
    config = det_coco.get_config(variant)
    config.data.dataset = "voc_detection/2007+2012"
    if variant == "smoke":
        return config
    config.batch_size = 32
    config.num_steps = 60_000
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 10.0
    config.model.batch_norm_momentum = config.model.head_batch_norm_momentum = 0.99
    config.data.expand, config.data.photometric = 4.0, True
    config.eval_every_steps = config.checkpoint.every_steps = 5_000
    return config
