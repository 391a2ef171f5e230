"""MobileNetV2 on ImageNet (ILSVRC 2012): evaluation of trained classifiers (arXiv 1801.04381; weights of TF-slim).

Command:
  python eval.py --config configs/cls_imagenet.py --pretrained google/mobilenet_v2_1.0_224 \\
    --config.data.archive=FOLDER

FOLDER holds ILSVRC2012_img_val.tar (50,000 images; --split train asks for ILSVRC2012_img_train.tar), from
image-net.org, where an account is needed. Images are prepared as the weights' preprocessor_config.json says.
--per_class adds the figures of every class.

Expected: top-1 0.718 for google/mobilenet_v2_1.0_224 and 0.750 for 1.4_224, as TF-slim publishes them; not measured
by us on all of ImageNet. On 200 training and 100 validation images kept for tests, weights recovered from a
quantised release are right on 176 and 77, the same images as with transformers.

This version does not train classifiers.
"""

from flax_mnv2.training.run_config import default_config


def get_config():
    """The config."""
    config = default_config()
    config.task = "classification"
    config.data.dataset = "imagenet2012"
    config.data.eval_split = "validation"
    config.eval.batch_size = 32
    return config
