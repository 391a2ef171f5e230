"""Fine-tuning on photos that may show any number of classes: a folder or archive, and a CSV with a row for each photo.

Command:
  python train.py --config configs/cls_multi_label.py --workdir runs/tags \\
    --config.data.archive=FOLDER_OR_ARCHIVE --config.init_from=google/mobilenet_v2_1.0_224

The CSV lies among the photos, or is named with --config.data.table=labels.csv. It has a column with the photo's name,
and a column of 0 and 1 for each class (image,cat,dog), or one of names (image,labels: "cat|dog", or by space, comma or
semicolon). Splits come from a column split or is_valid, or from tables called train.csv and val.csv; else a tenth is
held out. In its place a JSON file for each photo will do: {"image": "a.jpg", "labels": ["cat", "dog"]}, or labelme's
flags.

Photos are squashed to a square, not cropped, since a crop may leave out what the labels name;
--config.data.train_crop=inception with --config.data.crop_area=0.5,1 crops a little.

Expected: of 800 drawn pictures with one to three shapes of three kinds, at 96 pixels in 8 epochs
(--config.data.train_size=96 --config.data.eval_crop=96 --config.num_epochs=8), mAP 0.995 and micro F1 0.971 on 200
others (seed 0). Ten minutes on two busy CPU cores.
"""

from configs import cls_image_folder
from flax_mnv2.training.config.defaults import default_config


def get_config(variant: str = ""):
    """The config; ``variant`` is empty, or ``"smoke"``, which shrinks it for tests."""
    config = default_config("multi_label_classification")
    config.init_from = "google/mobilenet_v2_1.0_224"
    config.batch_size = 32
    config.num_epochs = 20.0
    config.eval_every_epochs = config.checkpoint.every_epochs = 1.0
    config.eval.batch_size = 64

    config.model.classifier_dropout_prob = 0.2
    config.model.batch_norm_momentum = 0.95  # few steps: the statistics must follow the weights soon
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 4e-5

    if variant == "smoke":
        cls_image_folder.shrink(config)
    elif variant:
        raise ValueError(f"configs/cls_multi_label.py has the variant smoke; found {variant!r}.")
    return config
