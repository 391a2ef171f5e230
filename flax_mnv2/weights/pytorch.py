"""What torchvision and timm have in common, as far as this library's config says it.

Their numbers: padding 1 on both sides, batch norm's epsilon 1e-5 and momentum 0.1 (0.9 in Flax's sense) are PyTorch's
defaults, dropout 0.2 is torchvision's default and timm's recipe, mean and standard deviation are those of ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.weights.tensors import Naming, Path
from flax_mnv2.weights.widths import find_depth_multiplier, norm_widths

SHARED_FIELDS: dict[str, Any] = {
    "tf_padding": False,
    "layer_norm_eps": 1e-5,
    "batch_norm_momentum": 0.9,
    "classifier_dropout_prob": 0.2,
}
# Widths are not rounded to integers first, and every block has a shortcut where its widths agree.
WIDTH_RULE: dict[str, Any] = {"round_widths": False, "stem_residual": True}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SHOWN = 12
# What decides the network's output and neither library keeps beside its weights.
_NEEDED_FIELDS = {
    "tf_padding": False,
    "layer_norm_eps": 1e-5,
    "hidden_act": "relu6",
    "output_stride": 32,
    "pool_window": None,
}


def state_widths(state: Mapping[str, np.ndarray], naming: Naming, modules: tuple[Path, ...]) -> dict[Path, int]:
    """Channels of those batch norms that ``state`` has, by the path of their layer."""
    widths = {}
    for module in modules:
        key = naming.key_of(("params", *module, "normalization", "scale"))
        if key in state and state[key].ndim == 1:
            widths[module] = state[key].shape[0]
    return widths


def state_fields(state: Mapping[str, np.ndarray], naming: Naming, *, default_labels: int) -> dict[str, int]:
    """``num_labels`` and ``num_channels`` as the tensors of the last and the first layer have them.

    Args:
      state: tensors by name.
      naming: of ``state``.
      default_labels: what the library has where there is no classifier.
    """
    first = state.get(naming.key_of(("params", "mobilenet_v2", "conv_stem", "first_conv", "convolution", "kernel")))
    classifier = [state.get(naming.key_of(("params", "classifier", leaf))) for leaf in ("kernel", "bias")]
    widths = [tensor.shape[0] for tensor in classifier if tensor is not None and tensor.ndim]
    fields = {"num_labels": widths[0] if widths else default_labels}
    return fields | ({"num_channels": first.shape[1]} if first is not None and first.ndim == 4 else {})


def with_fewest_own_fields(config: MobileNetV2Config, *, search: bool) -> MobileNetV2Config:
    """The same network with the fields that the reference does not know at their default, as far as that can be.

    Args:
      config: by these libraries' rule for widths.
      search: whether another depth multiplier may serve.
    """
    defaults = {"round_widths": True, "stem_residual": False}
    for own in ({}, {"stem_residual": True}, {"round_widths": False}):
        base = config.replace(**defaults | own)
        if base.layer_plan == config.layer_plan:
            return base
        found = find_depth_multiplier(base, norm_widths(config.layer_plan)) if search else None
        if found is not None and (other := base.replace(depth_multiplier=found)).layer_plan == config.layer_plan:
            return other
    return config


def check_target(target: str, config: MobileNetV2Config, task: str, needs: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises a ConfigError that names what ``target`` cannot represent.

    Args:
      target: the library.
      config: of the model to be written.
      task: of the model to be written.
      needs: by name what the target needs and what the source has, beside what both libraries need.
    """
    rows = {
        "task": ("classification", task),
        **{name: (value, getattr(config, name)) for name, value in _NEEDED_FIELDS.items()},
        **needs,
    }
    lines = [
        f"  {name}: {target} needs {needed!r}, the source has {found!r}"
        for name, (needed, found) in rows.items()
        if needed != found
    ]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"  … and {len(lines) - _SHOWN} more"]
    if lines:
        raise ConfigError(
            f"{target} cannot represent this model; with its code the same weights would give other numbers:\n"
            + "\n".join(lines)
            + "\nConvert to hf or flax instead."
        )
