"""A detector's outputs → boxes in pixels."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flax_mnv2.detection.suppression import detect_all
from flax_mnv2.errors import DataError

_detect = jax.jit(detect_all, static_argnames="spec")


def boxes_of(outputs: Any, threshold: float, sizes: list[tuple[int, int]] | None) -> list[dict[str, np.ndarray]]:
    """Returns for each image ``scores`` (n,), ``labels`` (n,) and ``boxes`` (n, 4), corners x, y, x, y.

    ``outputs`` is what ``MobileNetV2ForObjectDetection`` returns; boxes are in pixels of ``sizes``, (height, width)
    each, or fractions of the image without.
    """
    spec = getattr(outputs, "spec", None)
    if spec is None:
        raise DataError(
            "post_process_object_detection needs the output of MobileNetV2ForObjectDetection, as it is with "
            f"return_dict=True; found {type(outputs).__name__}."
        )
    if sizes is not None and len(sizes) != len(outputs.logits):
        raise DataError(
            f"target_sizes must give (height, width) for each of {len(outputs.logits)} images; found {len(sizes)}."
        )
    found = jax.tree.map(np.asarray, _detect(outputs.logits, outputs.pred_boxes, spec, threshold=max(threshold, 1e-8)))
    results = []
    for at in range(len(outputs.logits)):
        kept = found.scores[at] > threshold
        boxes = found.boxes[at][kept][:, [1, 0, 3, 2]]
        if sizes is not None:
            height, width = sizes[at]
            boxes = boxes * np.array([width, height, width, height], np.float32)
        results.append({"scores": found.scores[at][kept], "labels": found.labels[at][kept], "boxes": boxes})
    return results
