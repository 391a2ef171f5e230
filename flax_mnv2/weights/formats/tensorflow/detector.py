"""Maps, anchors and class slots of a detector's TFLite graph.

Graphs for phones end in TensorFlow's ``TFLite_Detection_PostProcess``, which has the anchors, the scales of the codes
and how boxes are suppressed; of others the TF Object Detection API's published ones are taken, with a note.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import PRESETS, Anchors, DetectionSpec, ssd_anchors
from flax_mnv2.detection.anchors import make_anchors, map_sizes
from flax_mnv2.errors import CheckpointError, ConfigError
from flax_mnv2.weights.formats.tensorflow.graph_layers import Layers
from flax_mnv2.weights.tensorflow.flexbuffer import read_map
from flax_mnv2.weights.tensorflow.tflite import Graph, Operation

_POSTPROCESS = "TFLite_Detection_PostProcess"
_HEAD = "detection_head"
_NO_GRID = "its anchors are no grid on its maps"
_TOLERANCE = 1e-4  # of anchors in float32, as fractions of the image
_SCALES = ("y_scale", "x_scale", "h_scale", "w_scale")
_SUPPRESSION = {"nms_iou": "nms_iou_threshold", "max_detections": "max_detections"}  # ours: the operation's
_NOTE = (
    "the file does not say anchors and coder; took those that the TF Object Detection API published "
    "(detection=DetectionSpec(…) gives others)"
)


def with_detector(config: MobileNetV2Config, graph: Graph, layers: Layers) -> tuple[MobileNetV2Config, tuple[str, ...]]:
    """Returns ``config`` with its ``detection`` and ``num_labels``, and notes for the user.

    A CheckpointError where the graph has what no ``DetectionSpec`` says.
    """
    num_maps = sum(name.startswith(f"{_HEAD}/box_") and name.endswith("_predictor") for name in layers)
    boxes, classes = ([_width(layers, f"{what}_{index}") for index in range(num_maps)] for what in ("box", "class"))
    kinds = [width // 4 for width in boxes]
    slots = {width // kind if kind else 0 for width, kind in zip(classes, kinds, strict=True)}
    if len(slots) != 1 or slots == {0} or 0 in kinds:
        raise CheckpointError(f"its predictors have {boxes} numbers for boxes and {classes} for classes")
    [num_slots] = slots
    fields: dict[str, Any] = {
        "feature_layers": (_first_map(layers), "conv_1x1"),
        "extra_channels": _extra_channels(config, layers, num_maps - 2),
        "anchors": ssd_anchors(num_maps),
    }
    final = next((operation for operation in graph.operations if operation.kind == _POSTPROCESS), None)
    num_labels = max(num_slots - 1, 1)
    if final is not None:
        options = read_map(final.options)
        num_labels = options.get("num_classes", num_labels)
        fields |= {"box_scales": tuple(float(options.get(name, 0)) for name in _SCALES)}
        fields |= {name: options[stored] for name, stored in _SUPPRESSION.items() if stored in options}
    background = {0: "none", 1: "first"}.get(num_slots - num_labels)
    if background is None or not isinstance(num_labels, int) or num_labels < 1:
        raise CheckpointError(f"its predictors have {num_slots} numbers for {num_labels} classes")
    try:
        spec = PRESETS["tensorflow"].replace(**fields, background=background)
        if final is not None:
            spec = spec.replace(anchors=_anchors(config, spec, graph, final, kinds))
    except ConfigError as error:
        raise CheckpointError(f"it is no detector: {error}") from None
    return config.replace(detection=spec, num_labels=num_labels), () if final is not None else (_NOTE,)


def _width(layers: Layers, place: str) -> int:
    return layers[f"{_HEAD}/{place}_predictor"].kernel_and_bias()[1].size


def _first_map(layers: Layers) -> str:
    """Returns the endpoint that the first predictors stand on, an expansion."""
    made = layers[f"{_HEAD}/box_0_conv_3x3"].input
    place = next(name for name, layer in layers.items() if layer.output == made)
    return f"{place.split('/')[1]}/expansion"


def _extra_channels(config: MobileNetV2Config, layers: Layers, count: int) -> tuple[int, ...]:
    """Returns the published widths at α 1 where there are as many maps, else those of the graph."""
    published = PRESETS["tensorflow"].extra_channels
    if len(published) == count:
        return published
    widths = [layers[f"{_HEAD}/extra_{index}_expand"].kernel_and_bias()[1].size for index in range(count)]
    return tuple(round(width / config.depth_multiplier) for width in widths)


def _anchors(
    config: MobileNetV2Config, spec: DetectionSpec, graph: Graph, final: Operation, kinds: list[int]
) -> Anchors:
    """Returns the published anchors where the graph's are these, to its rounding, else its own by map.

    A CheckpointError where they are no grid on each map.
    """
    tensor = graph.constant(final.inputs[2]) if len(final.inputs) > 2 else None
    if tensor is None:
        raise CheckpointError("its anchors are missing")
    stored, steps = tensor.values(), tensor.quantization
    tolerance = _TOLERANCE + (0 if steps is None else float(steps.scale.max(initial=0)) / 2)
    size = (config.image_size,) * 2 if isinstance(config.image_size, int) else tuple(config.image_size)
    sizes = map_sizes(spec, config.layer_plan, size)

    total = sum(height * width * count for (height, width), count in zip(sizes, kinds, strict=True))
    if stored.shape != (total, 4):
        raise CheckpointError(_NO_GRID)

    def fits(anchors: Anchors) -> bool:
        expected = make_anchors(spec.replace(anchors=anchors), size, sizes)
        return np.allclose(stored, expected, rtol=0, atol=tolerance)

    if [len(kind) for kind in spec.anchors] == kinds and fits(spec.anchors):
        return spec.anchors
    own, start = [], 0
    for (height, width), count in zip(sizes, kinds, strict=True):
        cell = stored[start : start + count, 2:] * (np.array(size) / min(size))
        own.append(tuple((float(high), float(wide)) for high, wide in cell))
        start += height * width * count
    if not fits(tuple(own)):
        raise CheckpointError(_NO_GRID)
    return tuple(own)
