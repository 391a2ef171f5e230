"""What recipes for 8 bits share: ``fine_tune`` turns a recipe into one that goes on from its own float run.

Rates are a tenth of the float recipe's, in the spirit of TensorFlow's quantised DeepLab; batch norm keeps the
statistics of the float run, with which the network is deployed.
"""

import ml_collections


def split_int8(variant: str) -> tuple[str, bool]:
    """Returns a recipe's variant without ``int8``, and whether that was there: ``("cifar10", True)``."""
    parts = variant.split(",")
    return ",".join(part for part in parts if part != "int8"), "int8" in parts


def fine_tune(config: ml_collections.ConfigDict, *, num_steps: int, learning_rate: float) -> ml_collections.ConfigDict:
    """Changes a recipe: ``num_steps`` steps from all weights of ``init_from``, ranges fixed in the last quarter."""
    config.init_scope = "all"
    config.freeze_batch_norm = True
    config.model.quantization.scheme = "int8"
    config.model.quantization.range_decay = 0.95  # few steps: ranges must follow sooner than by TensorFlow's 0.999
    config.model.quantization.freeze_range_step = num_steps * 3 // 4
    config.num_epochs, config.num_steps = 0.0, num_steps
    config.eval_every_epochs = config.checkpoint.every_epochs = 0.0
    config.eval_every_steps = config.checkpoint.every_steps = num_steps // 2
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = 0.0, 0
    return config
