"""The published networks by name: ``mobilenet_v2_1.0_224`` is α = 1.0 at 224×224 pixels."""

from __future__ import annotations

import fnmatch
from typing import Any

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError

DEPTH_MULTIPLIERS = (1.4, 1.3, 1.0, 0.75, 0.5, 0.35)
IMAGE_SIZES_PX = (224, 192, 160, 128, 96)
IMAGENET_LABELS = 1001  # TF-slim's classifiers: background, then the 1000 classes
_SIZES = {f"mobilenet_v2_{alpha}_{size}": (alpha, size) for alpha in DEPTH_MULTIPLIERS for size in IMAGE_SIZES_PX}
VARIANTS = tuple(_SIZES)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that ``variant_config`` takes, by width and then by image size.

    ``pattern`` chooses among them as a shell does: ``"*_224"``, ``"mobilenet_v2_1.[34]_*"``.
    """
    return sorted(fnmatch.filter(_SIZES, pattern), key=_SIZES.__getitem__)


def variant_config(name: str, **fields: Any) -> MobileNetV2Config:
    """Returns the config of a named variant.

    Args:
      name: one of ``VARIANTS``.
      **fields: further fields of ``MobileNetV2Config``; without ``num_labels`` or ``id2label`` there are 1001 classes.

    Raises:
      ConfigError: no such variant, or a field is wrong.
    """
    if name not in _SIZES:
        raise ConfigError(f"No variant {name!r}; expected mobilenet_v2_α_size, one of {', '.join(VARIANTS)}.")
    multiplier, size = _SIZES[name]
    labels = {} if {"num_labels", "id2label"} & fields.keys() else {"num_labels": IMAGENET_LABELS}
    return MobileNetV2Config(depth_multiplier=multiplier, image_size=size).replace(**labels, **fields)
