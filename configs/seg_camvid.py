"""The VOC recipe on CamVid street scenes: an example of one's own data in VOC layout.

The archive holds VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}; 367 training and 101
validation images of 480×360, 11 classes, void 255. The data are not part of this project.

Command:
  python train.py --config configs/seg_camvid.py --workdir runs/camvid \\
    --config.data.archive=camvid_voc.tar --config.data.labels=camvid_labels.txt \\
    --config.init_from=mobilenet_v2_1.0_224
  python train.py --config configs/seg_camvid.py:plus …     # DeepLabV3+: atrous branches 6, 12, 18, and a decoder
  python train.py --config configs/seg_camvid.py:int8 --workdir runs/camvid_int8 … \\
    --config.init_from=runs/camvid/checkpoints/step_400    # trained on for 8-bit integers; or :plus,int8

Expected: mean IoU 0.447 (seed 0) and 0.452 (seed 1) on val at full size, pixel accuracy 0.861 and 0.857; the
same recipe in PyTorch with transformers reached 0.450 and 0.448. 400 steps take 15 minutes on two CPU cores.
DeepLabV3+ (plus) reached 0.470 and an accuracy of 0.882 with seed 0, 0.456 and 0.876 with seed 1.
int8 reached 0.447 and 0.865 in integers by LiteRT, from a float run with 0.443 and 0.866 on that day's machine.
Of DeepLabV3+ in PyTorch, all new layers drawn from the same normal distribution as here, one seed reached 0.440 and an
accuracy of 0.8725; with TF's own initialisers, whose large values slow the head down, 0.361 and 0.817 in 300 steps.
"""

from configs import seg_voc
from flax_mnv2.training.config.quantized import fine_tune, split_int8


def get_config(variant: str = ""):
    """The config; ``variant`` is empty, ``"plus"`` or ``"smoke"``, as in ``seg_voc``, with ``"int8"`` or without."""
    variant, quantized = split_int8(variant)
    config = seg_voc.get_config(variant)
    config.data.dataset = "voc_segmentation/custom"
    if variant == "smoke":
        return config
    config.data.crop_size = (321, 321)
    config.batch_size = 8
    config.num_steps = 400
    config.eval_every_steps = config.checkpoint.every_steps = 100
    config.optimizer.learning_rate = 0.01
    config.data.scale_step = 0.0  # any scale; TF's steps of 0.25 ended at 0.412 with seed 0
    config.model.classifier_initializer_range = 0.02  # Hugging Face's; TF's 0.01 starts too slowly for 400 steps
    # Few steps: the running statistics must follow the weights sooner than TF's 0.997 lets them.
    config.model.batch_norm_momentum = config.model.head_batch_norm_momentum = 0.95
    return fine_tune(config, num_steps=150, learning_rate=1e-3) if quantized else config
