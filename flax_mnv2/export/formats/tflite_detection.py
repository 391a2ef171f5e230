"""Suppression in TFLite: TensorFlow's own operator, and boxes as it takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from flax_mnv2.errors import ConfigError
from flax_mnv2.export.formats.tflite_writer import Writer
from flax_mnv2.export.graph import operations as ops

_SUPPRESSION = "TFLite_Detection_PostProcess"
_LEAST_SIDE = 1e-5  # of a box, as a share of the image


def write_suppression(operation: ops.Suppression, to: Writer, inputs: list[int], outputs: list[int]) -> None:
    """Adds TensorFlow's operator for detections, and what makes its inputs; tensors go by their numbers.

    Raises:
      ConfigError: several images at a time.
    """
    batch, num_anchors, slots = to.edge(operation.inputs[1]).shape
    if batch != 1:
        raise ConfigError(f"TFLite suppresses boxes of one image at a time; choose batch 1, not {batch or 'dynamic'}.")
    options = {
        "max_detections": operation.max_detections,
        "max_classes_per_detection": 1,
        "detections_per_class": operation.max_per_class,
        "use_regular_nms": True,
        "nms_score_threshold": float(operation.threshold),
        "nms_iou_threshold": float(operation.iou),
        "num_classes": slots - operation.background,
        **dict.fromkeys(("y_scale", "x_scale", "h_scale", "w_scale"), 1.0),
    }
    # The operator decodes, and does not cut boxes to the image: so it is given boxes as codes, and anchors that are
    # the image.
    anchors = to.constant("anchors", np.broadcast_to(np.float32([0, 0, 1, 1]), (num_anchors, 4)))
    to.add_custom(_SUPPRESSION, [_codes(to, inputs[0], num_anchors), inputs[1], anchors], outputs, options)


def _codes(to: Writer, corners: int, num_anchors: int) -> int:
    """Adds (1, A, 4) centres and logarithms of sizes, of which none is 0: the operator refuses empty boxes."""

    def step(kind: str, inputs: list[int], name: str, **options: Any) -> int:
        y = to.intermediate(f"codes/{name}", (1, num_anchors, 2))
        to.add(kind, inputs, [y], **options)
        return y

    pair = to.constant("codes/pair", [-1, -1, 2], "int32")
    starts = [to.constant(f"codes/from_{at}", [0, 0, at], "int32") for at in (0, 2)]
    low, high = (
        step("SLICE", [corners, start, pair], name, table="SliceOptions")
        for start, name in zip(starts, ("low", "high"), strict=True)
    )
    centre = step("ADD", [low, high], "sum", table="AddOptions")
    centre = step("MUL", [centre, to.constant("codes/half", 0.5)], "centre", table="MulOptions")
    size = step("SUB", [high, low], "size", table="SubOptions")
    size = step("MAXIMUM", [size, to.constant("codes/least", _LEAST_SIDE)], "least_size")
    y = to.intermediate("codes", (1, num_anchors, 4))
    to.add("CONCATENATION", [centre, step("LOG", [size], "log_size")], [y], table="ConcatenationOptions", axis=2)
    return y
