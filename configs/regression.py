"""Fine-tuning on photos with numbers: a folder or archive, and a CSV with a row for each photo.

Command:
  python train.py --config configs/regression.py --workdir runs/numbers \\
    --config.data.archive=FOLDER_OR_ARCHIVE --config.init_from=google/mobilenet_v2_1.0_224

The CSV lies among the photos, or is named with --config.data.table=numbers.csv. It has a column with the photo's name
and one or several of numbers, of which --config.data.labels=age,height chooses some; splits as for
configs/cls_multi_label.py. In its place a JSON file for each photo will do: {"image": "a.jpg", "values": {"age": 31}}.

The loss is the mean squared error of the numbers less their mean, by their standard deviation; what is reported, and
what the saved weights give, is in the table's units. --config.data.target_units='' takes the numbers as they are. Where
they say something of left and right, set --config.data.flip=False.

Expected: of the area of each kind of shape in 800 drawn pictures, at 96 pixels in 12 epochs
(--config.data.train_size=96 --config.data.eval_crop=96 --config.num_epochs=12), R2 0.838 on 200 others (seed 0), and
0.815 with the numbers as they are. 13 minutes on two busy CPU cores.
"""

from configs import cls_image_folder
from flax_mnv2.training.config.defaults import default_config


def get_config(variant: str = ""):
    """The config; ``variant`` is empty, or ``"smoke"``, which shrinks it for tests."""
    config = default_config("regression")
    config.init_from = "google/mobilenet_v2_1.0_224"
    config.batch_size = 32
    config.num_epochs = 20.0
    config.eval_every_epochs = config.checkpoint.every_epochs = 1.0
    config.eval.batch_size = 64

    config.model.classifier_dropout_prob = 0.0  # it changes the scale of what is predicted
    config.model.batch_norm_momentum = 0.95  # few steps: the statistics must follow the weights soon
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 4e-5

    if variant == "smoke":
        cls_image_folder.shrink(config)
    elif variant:
        raise ValueError(f"configs/regression.py has the variant smoke; found {variant!r}.")
    return config
