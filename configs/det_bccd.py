"""SSDLite with MobileNetV2 on BCCD, 364 photos of blood cells: an example of one's own boxes in VOC's XML.

The archive holds BCCD/{Annotations,JPEGImages,ImageSets/Main}: 205 training, 87 validation and 72 test images of
640×480 with red and white cells and platelets. The data are not part of this project.

Command:
  python train.py --config configs/det_bccd.py --workdir runs/bccd \\
    --config.data.archive=bccd_voc.tar --config.init_from=mobilenet_v2_1.0_224
  python eval.py --workdir runs/bccd --split test

  anchors  anchors for these cells, and a map of half the stride for the platelets, of which a third have one of the
           original's at an IoU of 0.5, and 98 % one of these; hard negatives by a sort, which 5,328 anchors call for
  smoke    a minute, to try a machine or data
  int8     a run that has ended (init_from=runs/bccd/checkpoints/step_450) trained on for 8-bit integers; with anchors:
           anchors,int8

The anchors are those of k-means by class (flax_mnv2.detection.anchor_fitting); what they reach, and others, print
  python -m flax_mnv2.tools.anchors --config configs/det_bccd.py:anchors --config.data.archive=bccd_voc.tar

Expected: with anchors,int8 AP 0.564 and AP50 0.907 in LiteRT, from a float run with 0.558 and 0.909. On test AP 0.562
and AP50 0.906 with anchors (seed 1: 0.540 and 0.896), 0.511 and 0.836 without, 0.498 and 0.818 with the original's crop
too; the original's network and crop reached 0.532 and 0.882 in PyTorch with one seed.
"""

from configs import det_coco
from flax_mnv2.config.detection import ssd_anchors
from flax_mnv2.training.config.quantized import fine_tune, split_int8

_PLATELETS = ((0.077, 0.058), (0.094, 0.073))  # heights and widths, as fractions of the shorter side
_RED_CELLS = ((0.173, 0.152), (0.219, 0.15), (0.198, 0.172), (0.231, 0.181))
_WHITE_CELLS = ((0.256, 0.206), (0.323, 0.281), (0.435, 0.352))


def get_config(variant: str = ""):
    """The config; ``variant`` is empty, ``"anchors"`` or ``"smoke"``, with ``"int8"`` or without."""
    variant, quantized = split_int8(variant)
    config = det_coco.get_config("smoke" if variant == "smoke" else "")
    config.data.dataset = "voc_detection/custom"
    if variant == "smoke":
        return config
    if variant not in ("", "anchors"):
        raise ValueError(f"configs/det_bccd.py has the variants anchors, int8 and smoke; found {variant!r}.")
    config.data.bad_examples = "fail"
    config.data.crop_whole = 1 / 6
    # TF's windows keep half of the platelets; those of at least .3 of the image two thirds. Of the cells that they cut,
    # more stay: images of whole fields have many at their edges.
    config.data.crop_overlaps, config.data.crop_area = (0.1, 0.3, 0.5), (0.3, 1.0)
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
    if variant == "anchors":
        config.detection.feature_layers = ("layer_05/expansion", "layer_12/expansion", "conv_1x1")
        config.detection.extra_channels = (512, 256, 256)
        config.detection.anchors = (_PLATELETS, _RED_CELLS, _WHITE_CELLS, *ssd_anchors()[3:])
        config.detection.mining_iou = 1.0
    return fine_tune(config, num_steps=150, learning_rate=3e-3) if quantized else config
