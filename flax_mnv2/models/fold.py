"""Batch normalisation merged into the convolutions, for inference."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from flax_mnv2.errors import ConfigError
from flax_mnv2.models.heads.deeplab import DEEPLAB_EPSILON

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
      NumPy float32, in which each convolution has a ``bias`` and no ``normalization`` stands beside it.

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
        epsilon = DEEPLAB_EPSILON if _HEAD in layer else model.config.layer_norm_eps
        # In double precision, so that the one rounding is that of the result.
        scale, bias = (np.asarray(params[(*norm, name)], np.float64) for name in ("scale", "bias"))
        mean, var = (np.asarray(statistics[(*norm, name)], np.float64) for name in ("mean", "var"))
        multiplier = scale / np.sqrt(var + epsilon)
        kernel = np.asarray(params[(*layer, "convolution", "kernel")], np.float64) * multiplier
        folded[(*layer, "convolution", "kernel")] = kernel.astype(np.float32)
        folded[(*layer, "convolution", "bias")] = (bias - mean * multiplier).astype(np.float32)
    return model.clone(batch_norm_folded=True), {"params": traverse_util.unflatten_dict(folded)}
