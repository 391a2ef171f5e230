"""Batch normalisation merged into the convolutions, for inference; and one that does nothing beside them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.models.heads.deeplab import DEEPLAB_EPSILON

_WITHOUT_NORM = ("classifier", "predictor")  # layers of a head that give what it predicts
_HEAD = "segmentation_head"


def fold_batch_norm(model: nn.Module, variables: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Merges every normalisation, with its running statistics, into the convolution before it.

    The outputs are the same to rounding, with fewer operations, which matters most at batch 1. The folded network is
    for inference: with ``train=True`` it has no statistics to use or update, and it cannot be saved as a checkpoint.

    Args:
      model: one of the models.
      variables: ``params`` and ``batch_stats`` of it.

    Returns:
      (folded model, folded variables): a model of the same class and config, with the same call, and its ``params``,
      NumPy float32, in which each convolution has a ``bias`` and no ``normalization`` stands beside it. Ranges of a
      quantised model stay as they are.

    Raises:
      ConfigError: the model is folded already.
    """
    if model.batch_norm_folded:
        raise ConfigError("fold_batch_norm needs a model with batch normalisation; this one is folded already.")
    params = traverse_util.flatten_dict(variables["params"])
    statistics = traverse_util.flatten_dict(variables["batch_stats"])
    folded = {path: value for path, value in params.items() if "normalization" not in path}
    for path in statistics:
        if path[-1] != "mean":
            continue
        layer, norm = path[:-2], path[:-1]
        epsilon = _epsilon(layer, model.config)
        # In double precision, so that the one rounding is that of the result.
        scale, bias = (np.asarray(params[(*norm, name)], np.float64) for name in ("scale", "bias"))
        mean, var = (np.asarray(statistics[(*norm, name)], np.float64) for name in ("mean", "var"))
        multiplier = scale / np.sqrt(var + epsilon)
        kernel = np.asarray(params[(*layer, "convolution", "kernel")], np.float64) * multiplier
        folded[(*layer, "convolution", "kernel")] = kernel.astype(np.float32)
        folded[(*layer, "convolution", "bias")] = (bias - mean * multiplier).astype(np.float32)
    others = {name: variables[name] for name in variables.keys() - {"params", "batch_stats"}}
    return model.clone(batch_norm_folded=True), {**others, "params": traverse_util.unflatten_dict(folded)}


def unfold_batch_norm(params: Mapping[str, Any], config: MobileNetV2Config) -> dict[str, Any]:
    """Gives folded weights a batch norm again: one that does nothing but add the bias.

    The outputs are the same to rounding. The statistics are none of any data: a network that normalises with those of
    its batches is another one, so training has to keep them (``freeze_batch_norm=True``).

    Args:
      params: of a folded model, as nested dicts.
      config: of that model.

    Returns:
      ``params`` and ``batch_stats`` of the model that is not folded, NumPy float32.
    """
    unfolded = {}
    for path, value in traverse_util.flatten_dict(dict(params)).items():
        *layer, kind, leaf = path
        if kind != "convolution" or leaf != "bias" or layer[-1].endswith(_WITHOUT_NORM):
            unfolded[("params", *path)] = value
            continue
        norm, epsilon = (*layer, "normalization"), _epsilon(tuple(layer), config)
        unfolded[("params", *norm, "scale")] = np.ones_like(value)
        unfolded[("params", *norm, "bias")] = value
        unfolded[("batch_stats", *norm, "mean")] = np.zeros_like(value)
        unfolded[("batch_stats", *norm, "var")] = np.full_like(value, 1.0 - epsilon)
    return traverse_util.unflatten_dict(unfolded)


def _epsilon(layer: tuple[str, ...], config: MobileNetV2Config) -> float:
    return DEEPLAB_EPSILON if _HEAD in layer else config.layer_norm_eps
