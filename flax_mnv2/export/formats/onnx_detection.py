"""Suppression in ONNX: its operator, which goes class by class, and the best of all classes, a fixed number."""

from __future__ import annotations

from typing import Any

import numpy as np

from flax_mnv2.export.graph import operations as ops

_NAME = "suppression"


def write_suppression(
    operation: ops.Suppression, to: Any, inputs: list[str], outputs: list[str], *, num_anchors: int, slots: int
) -> None:
    """Adds the nodes to a writer of ONNX; ``num_anchors`` and ``slots`` are the last axes of the probabilities."""
    [boxes, scores], [boxes_out, labels_out, scores_out, number_out] = inputs, outputs
    if operation.background:
        ends = {"start": operation.background, "stop": slots, "axis": -1}
        ends = [to.constant(f"{_NAME}/{name}", [value], np.int64) for name, value in ends.items()]
        scores = to.node("Slice", [scores, *ends], f"{_NAME}/of_classes")
    scores = to.node("Transpose", [scores], f"{_NAME}/by_class", perm=[0, 2, 1])
    limits = [
        to.constant(f"{_NAME}/max_per_class", [operation.max_per_class], np.int64),
        to.constant(f"{_NAME}/iou", [operation.iou]),
        to.constant(f"{_NAME}/threshold", [operation.threshold]),
    ]
    kept = to.node("NonMaxSuppression", [boxes, scores, *limits], f"{_NAME}/kept")  # (M, 3): image, class, anchor
    # Back among all scores, (N, classes · A), so that the best of all classes are found for each image of a batch.
    kept_scores = to.node("GatherND", [scores, kept], f"{_NAME}/kept_scores")
    nothing = to.node("Mul", [scores, to.constant("zero", 0.0)], f"{_NAME}/nothing")
    left = to.node("ScatterND", [nothing, kept, kept_scores], f"{_NAME}/left")
    shape = to.constant(f"{_NAME}/shape", [0, (slots - operation.background) * num_anchors], np.int64)
    left = to.node("Reshape", [left, shape], f"{_NAME}/left_in_row")
    count = to.constant(f"{_NAME}/count", [operation.max_detections], np.int64)
    places = f"{_NAME}/places"
    to.node("TopK", [left, count], [scores_out, places], axis=1)
    row = to.constant(f"{_NAME}/num_anchors", num_anchors, np.int64)
    to.node("Div", [places, row], labels_out)
    anchor = to.node("Mod", [places, row], f"{_NAME}/anchors")
    anchor = to.node("Unsqueeze", [anchor, to.constant(f"{_NAME}/last", [2], np.int64)], f"{_NAME}/index")
    to.node("GatherND", [boxes, anchor], boxes_out, batch_dims=1)
    found = to.node("Greater", [scores_out, to.constant("zero", 0.0)], f"{_NAME}/found")
    found = to.node("Cast", [found], f"{_NAME}/found_int64", to=7)
    to.node("ReduceSum", [found, to.constant(f"{_NAME}/rows", [1], np.int64)], number_out, keepdims=0)
