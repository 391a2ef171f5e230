"""Hugging Face transformers' MobileNetV2 state dict ↔ Flax variables.

Names correspond one to one: ``mobilenet_v2.layer.3.conv_3x3.convolution.weight`` is
``params/mobilenet_v2/layer_03/conv_3x3/convolution/kernel``. Layouts: convolutions OIHW → HWIO (depthwise
too), linear layers transposed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.weights.tensors import (
    Path,
    StateDict,
    torch_naming,
)

PREFIX = "mobilenet_v2."
_HEADS = ("classifier.", "segmentation_head.")
# Fields of ours that change the network, and which the reference knows nothing of.
PLAN_FIELDS = ("layer_depth_multiplier", "fixed_stem_and_head", "stem_residual", "round_widths")
OTHER_NETWORK_FIELDS = ("pool_window",)


def _prefix_of(modules: Path) -> str:
    return ".".join(re.sub(r"^layer_0?(\d+)$", r"layer.\1", module) for module in modules)


NAMING = torch_naming(_prefix_of)
key_of = NAMING.key_of


def recognises(keys: Mapping[str, object]) -> bool:
    """Whether tensor names are this library's, with or without a head."""
    return any(key.startswith(PREFIX) or re.match(r"(conv_stem|layer\.\d+)\.conv_3x3\.", key) for key in keys)


def with_prefix(state: Mapping[str, np.ndarray]) -> StateDict:
    """Tensors of a bare backbone get the ``mobilenet_v2.`` prefix that they have inside a model with a head."""
    if any(key.startswith(PREFIX) for key in state):
        return dict(state)
    return {key if key.startswith(_HEADS) else f"{PREFIX}{key}": value for key, value in state.items()}


def check_target(config: MobileNetV2Config) -> None:
    """Raises a ConfigError that names the fields, if transformers would build another network from ``config``.

    Fields of ours may be set where they change nothing: what counts is the network that follows.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    fields = [name for name in OTHER_NETWORK_FIELDS if getattr(config, name) != defaults[name]]
    without = {name: config.replace(**{name: defaults[name]}) for name in PLAN_FIELDS}
    if config.replace(**{name: defaults[name] for name in PLAN_FIELDS}).layer_plan != config.layer_plan:
        fields += [name for name in PLAN_FIELDS if without[name].layer_plan != config.layer_plan]
    if fields:
        found = "\n".join(
            f"  {name}: transformers has {defaults[name]!r}, this model {getattr(config, name)!r}" for name in fields
        )
        raise ConfigError(
            f"transformers cannot represent this network; it would build another one from the config:\n{found}\n"
            'Use the flax format instead: --to flax, or save_pretrained(…, layout="flax").'
        )
