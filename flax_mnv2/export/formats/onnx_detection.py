"""Suppression in ONNX: decoding, its operator for one class at a time, and the best of all classes, a fixed number."""

from __future__ import annotations

from typing import Any

import numpy as np

from flax_mnv2.export.graph import operations as ops

_NAME = "suppression"


def write_suppression(operation: ops.Suppression, to: Any, inputs: list[str], outputs: list[str], *, slots: int) -> None:
    """Adds the nodes to a writer of ONNX; ``slots`` are those of an anchor, background with them."""
    [codes, scores], [boxes_out, labels_out, scores_out, number_out] = inputs, outputs
    boxes, is_box = _corners(to, codes, operation)
    scores = _part(to, scores, operation.background, slots, "scores")
    scores = to.node("Mul", [scores, is_box], f"{_NAME}/of_boxes")
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
    num_anchors = len(operation.anchors)
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


def _corners(to: Any, codes: str, operation: ops.Suppression) -> tuple[str, str]:
    """Returns boxes (N, A, 4) as corners inside the image, and (N, A, 1), 1 where one is not empty, else 0."""
    scales, anchors = np.float32(operation.box_scales), operation.anchors
    centre = _with(to, "Mul", _part(to, codes, 0, 2, "centre"), anchors[:, 2:] / scales[:2], "shift")
    centre = _with(to, "Add", centre, anchors[:, :2], "anchor_centre")
    half = _with(to, "Mul", _part(to, codes, 2, 4, "size"), 1 / scales[2:], "log_size")
    half = _with(to, "Mul", to.node("Exp", [half], f"{_NAME}/growth"), anchors[:, 2:] / 2, "anchor_half")
    low, high = (
        _clipped(to, to.node(kind, [centre, half], f"{_NAME}/{name}"))
        for kind, name in (("Sub", "low"), ("Add", "high"))
    )
    extent = to.node("ReduceMin", [to.node("Sub", [high, low], f"{_NAME}/extent")], f"{_NAME}/shorter", axes=[-1])
    is_box = to.node("Greater", [extent, to.constant("zero", 0.0)], f"{_NAME}/is_box")
    boxes = to.node("Concat", [low, high], f"{_NAME}/boxes", axis=-1)
    return boxes, to.node("Cast", [is_box], f"{_NAME}/box", to=1)


def _clipped(to: Any, x: str) -> str:
    return to.node("Clip", [x, to.constant("zero", 0.0), to.constant("one", 1.0)], f"{x}/inside")


def _with(to: Any, kind: str, x: str, value: np.ndarray, name: str) -> str:
    return to.node(kind, [x, to.constant(f"{_NAME}/{name}/constant", value)], f"{_NAME}/{name}")


def _part(to: Any, x: str, start: int, stop: int, name: str) -> str:
    ends = [
        to.constant(f"{_NAME}/{name}/{what}", [value], np.int64)
        for what, value in (("start", start), ("stop", stop), ("axis", -1))
    ]
    return to.node("Slice", [x, *ends], f"{_NAME}/{name}")
