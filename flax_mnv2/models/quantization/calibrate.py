"""Ranges of a trained network without training: quantisation after the fact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.errors import ConfigError
from flax_mnv2.models.quantization.rounding import COLLECTION

_NEVER = 2**31 - 1


def calibrate(model: nn.Module, variables: Mapping[str, Any], batches: Iterable[Any]) -> dict[str, Any]:
    """Returns the variables with the ranges of activations that the network has on some images.

    Args:
      model: one whose ``config.quantization`` is set, such as ``from_pretrained(…, quantization="int8")`` gives.
      variables: its variables, with or without ranges; those that are there are replaced.
      batches: normalised images (N, H, W, num_channels), as the model takes them; a few hundred in all. The network is
        compiled for each shape.

    Returns:
      The variables with the collection ``"quantization"``: each range is the mean over the batches of their least and
      greatest number, in the network without rounding (arXiv 1806.08342). ``step`` is 0.

    Raises:
      ConfigError: the model is not quantised, or there are no batches.
    """
    spec = model.config.quantization
    if spec is None:
        raise ConfigError(
            'calibrate needs a model with config.quantization; found None. Load it with quantization="int8".'
        )
    observed = spec.replace(start_step=_NEVER, freeze_range_step=None)
    observer = model.clone(config=model.config.replace(quantization=observed))
    weights = {name: collection for name, collection in variables.items() if name != COLLECTION}

    @jax.jit
    def ranges_of(weights: Mapping[str, Any], images: jax.Array) -> Any:
        return observer.apply(weights, images, mutable=[COLLECTION])[1][COLLECTION]

    sums, count = None, 0
    for images in batches:
        ranges = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), ranges_of(weights, jnp.asarray(images)))
        sums, count = ranges if sums is None else jax.tree.map(np.add, sums, ranges), count + 1
    if sums is None:
        raise ConfigError("calibrate needs at least one batch of images; found none.")
    means = jax.tree.map(lambda total: np.float32(total / count), sums)
    return {**weights, COLLECTION: {**means, "step": np.int32(0)}}
