"""A model with its weights as one graph: backbone, head, and what the user wants before and after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from flax_mnv2.errors import ConfigError
from flax_mnv2.export.graph import heads
from flax_mnv2.export.graph import operations as ops
from flax_mnv2.export.graph.backbone import add_backbone
from flax_mnv2.export.graph.builder import GraphBuilder
from flax_mnv2.export.graph.ranges import Ranges
from flax_mnv2.export.settings import SCORE_THRESHOLD, ExportSettings
from flax_mnv2.models.endpoints import LAST_CONV
from flax_mnv2.models.fold import fold_batch_norm
from flax_mnv2.models.mobilenet_v2 import (
    MobileNetV2Backbone,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
)
from flax_mnv2.models.object_detection import MobileNetV2ForObjectDetection


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a head is added."""

    builder: GraphBuilder
    model: nn.Module
    image: str
    endpoints: Mapping[str, str]
    settings: ExportSettings


def make_graph(model: nn.Module, variables: Mapping[str, Any], settings: ExportSettings) -> ops.Graph:
    """Returns a model's operations; its batch norm is merged into the convolutions if it is not yet.

    Outputs have the names of the model's own: ``logits``, ``pred_boxes``, ``last_hidden_state``, ``pooler_output``,
    ``stride_8``, …; with post-processing ``probabilities``, ``label_map``, or ``boxes``, ``scores`` and ``labels``.

    Raises:
      ConfigError: a model of another class, or one that operations cannot say.
    """
    task = next((kind for kind in _HEADS if isinstance(model, kind)), None)
    if task is None:
        raise ConfigError(
            f"export takes the models of flax_mnv2; found {type(model).__name__}. Export it with jax.export."
        )
    if not model.batch_norm_folded:
        model, variables = fold_batch_norm(model, dict(variables))
    ranges = Ranges(model.config, variables) if model.config.quantization is not None else None
    builder = GraphBuilder(variables, tf_padding=model.config.tf_padding, ranges=ranges)
    shape = (settings.batch, *(settings.size or (None, None)), model.config.num_channels)
    image = builder.edge(settings.input_name, shape, "float32" if settings.normalization is None else "uint8")
    x = image
    if settings.normalization is not None:
        scale, offset = settings.normalization.scale, settings.normalization.offset
        x = builder.add(ops.Normalize, (x,), builder.edge("pixel_values", shape), scale=scale, offset=offset)
    endpoints = add_backbone(builder, x, model.config)
    return builder.graph(image, _HEADS[task](_Place(builder, model, image, endpoints, settings)))


def kind_of_answer(model: nn.Module) -> str:
    """Returns what a classifier's post-processing gives: ``"softmax"``, ``"sigmoid"``, or ``""`` for a regression."""
    config = model.config
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    return {"single_label_classification": "softmax", "multi_label_classification": "sigmoid"}.get(problem, "")


def check_settings(model: nn.Module, settings: ExportSettings) -> None:
    """Raises a ConfigError for what no format can say: any size where it decides shapes, or nothing to post-process."""
    if settings.size is None and isinstance(model, MobileNetV2ForObjectDetection):
        raise ConfigError("A detector's anchors follow from the size of the image; give --size H W, not dynamic.")
    if settings.postprocessing:
        _check_postprocessing(model)


def _check_postprocessing(model: nn.Module) -> None:
    classifies = isinstance(model, MobileNetV2ForImageClassification)
    if isinstance(model, (MobileNetV2Model, MobileNetV2Backbone)) or (
        classifies and (model.config.num_labels == 0 or not kind_of_answer(model))
    ):
        what = "a regression" if classifies and model.config.num_labels else "features"
        raise ConfigError(f"There is no post-processing for {what}; export without it.")


def _classification(at: _Place) -> dict[str, str]:
    logits = at.builder.real(heads.add_classifier(at.builder, at.endpoints, at.model.config))
    if not at.settings.postprocessing:
        return {"logits": logits}
    if len(at.builder.shape(logits)) == 4:  # with config.pool_window a map, of which predictions take the mean
        logits = at.builder.pool(logits, "avg")
    return {"probabilities": at.builder.elementwise(kind_of_answer(at.model), logits)}


def _segmentation(at: _Place) -> dict[str, str]:
    logits = at.builder.real(heads.add_deeplab(at.builder, at.endpoints, at.model.config))
    if not at.settings.postprocessing:
        return {"logits": logits}
    align_corners = (at.model.config.deeplab or heads.HUGGING_FACE).align_corners
    return {"label_map": at.builder.argmax(at.builder.resize(logits, at.image, align_corners=align_corners))}


def _detection(at: _Place) -> dict[str, str]:
    spec, builder = at.model.spec, at.builder
    order = "yxhw" if at.settings.postprocessing else "xywh"
    logits, codes = heads.add_ssdlite(builder, at.endpoints, at.model.config, order)
    centre, size = heads.add_decoding(builder, codes, at.model.anchors(at.settings.size), spec, order)
    if at.settings.postprocessing:
        return heads.add_suppression(builder, logits, centre, size, spec, threshold=SCORE_THRESHOLD)
    return {"logits": logits, "pred_boxes": builder.concat((centre, size), "boxes")}


def _features(at: _Place) -> dict[str, str]:
    last = at.endpoints[LAST_CONV]
    outputs = {"last_hidden_state": at.builder.real(last)}
    if at.model.add_pooling_layer:
        outputs["pooler_output"] = at.builder.real(heads.add_pooling(at.builder, last, at.model.config))
    return outputs


def _features_by_stride(at: _Place) -> dict[str, str]:
    specs = at.model.config.feature_specs
    return {name: at.builder.real(at.endpoints[specs[name].layer]) for name in at.model.channels}


_HEADS = {
    MobileNetV2ForImageClassification: _classification,
    MobileNetV2ForSemanticSegmentation: _segmentation,
    MobileNetV2ForObjectDetection: _detection,
    MobileNetV2Model: _features,
    MobileNetV2Backbone: _features_by_stride,
}
