"""Regressions that learn standardised targets: what a run notes, and how its weights come to give the targets.

Training sees each target less its mean, by its standard deviation. A run's checkpoint has what was trained, and both
numbers in ``config.extra``. Whoever reads it as weights gets them folded into the last layer, which is linear: an
ordinary model of transformers, whose outputs are the targets in the user's units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.weights.tensors import FLAX_NAMING, StateDict

_MEAN, _STD = "target_mean", "target_std"  # in ``extra``, of runs alone
_LOGITS_RANGE = "quantization/classifier/output/"
_KERNEL, _BIAS = (FLAX_NAMING.key_of(("params", "classifier", name)) for name in ("kernel", "bias"))


def noted(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Returns the entries of ``config.extra``."""
    return {_MEAN: list(map(float, mean)), _STD: list(map(float, std))}


def target_units(config: MobileNetV2Config) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation (C,) float32 of the targets as noted; 0 and 1 where nothing is."""
    mean, std = (config.extra.get(name) for name in (_MEAN, _STD))
    if mean is None or std is None:
        return np.zeros(config.num_labels, np.float32), np.ones(config.num_labels, np.float32)
    return np.array(mean, np.float32), np.array(std, np.float32)


def in_target_units(config: MobileNetV2Config, state: StateDict) -> tuple[MobileNetV2Config, StateDict]:
    """Returns a run's config without the notes, and its variables with the last layer giving the targets themselves."""
    if _MEAN not in config.extra or _KERNEL not in state:
        return config, state
    mean, std = target_units(config)
    rest = {name: value for name, value in config.extra.items() if name not in (_MEAN, _STD)}
    known = {name: value for name, value in state.items() if not name.startswith(_LOGITS_RANGE)}  # in other units
    folded = {_KERNEL: state[_KERNEL] * std[None], _BIAS: state[_BIAS] * std + mean}
    return config.replace(extra=rest), {**known, **folded}
