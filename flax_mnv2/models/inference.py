"""A trained model as one fast function of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from flax_mnv2.models.fold import fold_batch_norm
from flax_mnv2.models.ops.platforms import by_platform, has_known_shape
from flax_mnv2.models.ops.slices import map_slices
from flax_mnv2.models.outputs import ImageClassifierOutputWithNoAttention, SemanticSegmenterOutput

_IMAGES_PER_SLICE = 2  # on CPU: of 1, 2, 4 and 16, measured; two images keep both cores busy and stay in the cache


def make_inference_fn(
    model: nn.Module, variables: dict[str, Any]
) -> Callable[[jax.Array], ImageClassifierOutputWithNoAttention | SemanticSegmenterOutput]:
    """Compiles a model for inference: batch norm folded, weights on the device, and on CPU two images at a time.

    The outputs equal ``model.apply(variables, pixel_values)`` to rounding.

    Args:
      model: one with a head.
      variables: ``params`` and ``batch_stats`` of it, of a folded one ``params``.

    Returns:
      ``function(pixel_values)`` → the model's output, as its config says it; compiled once for each shape.
    """
    if not model.batch_norm_folded:
        model, variables = fold_batch_norm(model, variables)
    variables = jax.device_put(variables)

    def whole(variables, pixel_values):
        return model.apply(variables, pixel_values)

    def sliced(variables, pixel_values):
        if not has_known_shape(pixel_values):
            return whole(variables, pixel_values)
        images = _IMAGES_PER_SLICE if len(pixel_values) % _IMAGES_PER_SLICE == 0 else 1
        return map_slices(lambda images: model.apply(variables, images), pixel_values, images)

    forms = {"cpu": sliced, "default": whole}
    compiled = jax.jit(lambda variables, pixel_values: by_platform(forms, variables, pixel_values))
    return lambda pixel_values: compiled(variables, pixel_values)
