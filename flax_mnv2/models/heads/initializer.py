"""How the classifiers of all heads start."""

from __future__ import annotations

import flax.linen as nn

from flax_mnv2.config import MobileNetV2Config


def classifier_init(config: MobileNetV2Config) -> nn.initializers.Initializer:
    """The kernel's initializer: normal, by ``classifier_initializer_range``, else ``initializer_range``."""
    own = config.classifier_initializer_range
    return nn.initializers.normal(config.initializer_range if own is None else own)
