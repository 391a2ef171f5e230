"""What the tests of ``python -m flax_mnv2.convert`` share: two configs, and the command as a function."""

import json

from safetensors.numpy import load_file, save_file

from flax_mnv2 import MobileNetV2Config
from flax_mnv2.convert import main

CONFIG = MobileNetV2Config(depth_multiplier=0.5, num_labels=5)
# What torchvision and timm do, at a width where transformers agrees with them on every layer.
TORCH_LIKE = CONFIG.replace(
    tf_padding=False, layer_norm_eps=1e-5, batch_norm_momentum=0.9, classifier_dropout_prob=0.2, num_labels=5
)


def convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys, *arguments):
    """The error message of a conversion that must fail."""
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def edit_tensors(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def set_processor(folder, **settings):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
