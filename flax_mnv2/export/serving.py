"""What an exported file computes, as a function in JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_mnv2.config.deeplab import HUGGING_FACE
from flax_mnv2.detection.boxes import swap_axes, to_corners
from flax_mnv2.detection.suppression import class_scores, detect
from flax_mnv2.export.graph.network import kind_of_answer
from flax_mnv2.export.settings import SCORE_THRESHOLD, ExportSettings
from flax_mnv2.losses import upsample_logits
from flax_mnv2.models.fold import fold_batch_norm
from flax_mnv2.models.mobilenet_v2 import MobileNetV2Backbone, MobileNetV2ForSemanticSegmentation
from flax_mnv2.models.object_detection import MobileNetV2ForObjectDetection
from flax_mnv2.models.quantization.rounding import COLLECTION

if TYPE_CHECKING:
    from flax_mnv2.export.evaluating import DeployedModule

_INNER = ("box_codes",)  # outputs of a model that files do not have
Variables = Mapping[str, Any]
Function = Callable[[Variables, jax.Array], dict[str, jax.Array]]


def serving_function(
    model: nn.Module, variables: Variables, settings: ExportSettings, *, deployed: DeployedModule | None = None
) -> tuple[Function, dict[str, Any]]:
    """Returns what a file computes, as a function of variables and images (N, H, W, C), and these variables.

    The function gives outputs by name, channels last. It is what StableHLO files hold, and what files of every format
    are compared with. Batch norm is merged into the convolutions; a quantised model is rounded as in training, unless
    it is given ``deployed``, which then computes in its place.
    """
    if deployed is not None:
        apply, kept = deployed.apply, deployed.variables
    else:
        if not model.batch_norm_folded:
            model, variables = fold_batch_norm(model, dict(variables))
        names = ("params",) if model.config.quantization is None else ("params", COLLECTION)
        kept = {name: variables[name] for name in names if name in variables}
        apply = model.clone(implementation="default", dtype=jnp.float32).apply

    def serve(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        if settings.normalization is not None:
            rule = settings.normalization
            images = images.astype(jnp.float32) * _as_map(rule.scale) + _as_map(rule.offset)
        output = apply(variables, images, **_plain_call(model))
        if not settings.postprocessing:
            return {name: value for name, value in dict(output).items() if name not in _INNER}
        return _postprocess(model, output, images)

    return serve, kept


def _plain_call(model: nn.Module) -> dict[str, Any]:
    """What makes a model return names and no hidden states, whatever its config says."""
    return {} if isinstance(model, MobileNetV2Backbone) else {"return_dict": True, "output_hidden_states": False}


def _as_map(values: Any) -> jax.Array:
    return jnp.asarray(values).reshape(1, 1, 1, -1)


def _postprocess(model: nn.Module, output: Any, images: jax.Array) -> dict[str, jax.Array]:
    if isinstance(model, MobileNetV2ForObjectDetection):
        spec = model.spec
        scores, boxes = class_scores(output.logits, spec), to_corners(swap_axes(output.pred_boxes))
        found = jax.vmap(lambda scores, boxes: detect(scores, boxes, spec, threshold=SCORE_THRESHOLD))(scores, boxes)
        number = jnp.sum(found.scores > 0, axis=1)
        return {"boxes": found.boxes, "labels": found.labels, "scores": found.scores, "num_detections": number}
    if isinstance(model, MobileNetV2ForSemanticSegmentation):
        align_corners = (model.config.deeplab or HUGGING_FACE).align_corners
        logits = upsample_logits(output.logits, images.shape[1:3], align_corners=align_corners)
        return {"label_map": jnp.argmax(logits, axis=-1).astype(jnp.int32)}
    logits = output.logits if output.logits.ndim == 2 else jnp.mean(output.logits, axis=(1, 2))
    answer = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[kind_of_answer(model)]
    return {"probabilities": answer(logits)}
