"""Greedy non-maximum suppression, of fixed size: under ``jit`` and ``vmap``, on any platform."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.boxes import iou, swap_axes, to_corners


class Detections(NamedTuple):
    """Boxes of one image, the most probable first; where there are fewer than rows, the score of the rest is 0."""

    scores: jax.Array  # (D,)
    labels: jax.Array  # (D,) int32
    boxes: jax.Array  # (D, 4) corners, inside the image


def class_scores(logits: jax.Array, spec: DetectionSpec) -> jax.Array:
    """Logits (…, slots) → probabilities of the classes (…, num_labels), float32."""
    scores = (jax.nn.softmax if spec.score == "softmax" else jax.nn.sigmoid)(logits.astype(jnp.float32))
    return {"first": scores[..., 1:], "last": scores[..., :-1], "none": scores}[spec.background]


def detect_all(logits: jax.Array, boxes: jax.Array, spec: DetectionSpec, *, threshold: float | jax.Array) -> Detections:
    """Returns what ``detect`` leaves in each image of a detector's outputs, arrays of (N, D, …).

    ``logits`` are (N, A, slots), ``boxes`` (N, A, 4) as in ``pred_boxes``: centres x, y and sizes. On CPU images are
    taken one after the other, since of several at once XLA copies all scores whenever a row changes.
    """

    def of_image(image: tuple[jax.Array, jax.Array, jax.Array]) -> Detections:
        logits, boxes, threshold = image
        return detect(class_scores(logits, spec), to_corners(swap_axes(boxes)), spec, threshold=threshold)

    images = (logits, boxes, jnp.full(len(logits), threshold, jnp.float32))
    one_by_one, together = functools.partial(jax.lax.map, of_image), jax.vmap(of_image)
    return jax.lax.platform_dependent(images, cpu=one_by_one, default=together)


def detect(scores: jax.Array, boxes: jax.Array, spec: DetectionSpec, *, threshold: float | jax.Array) -> Detections:
    """Returns what is left of the boxes of one image: by class, then the most probable of all classes.

    Of two boxes of one class whose overlap is above ``spec.nms_iou`` the less probable goes; of equal ones, the later.

    Args:
      scores: probabilities (A, C).
      boxes: corners (A, 4), which are cut to the image first; those that are empty then do not count.
      spec: of the detector.
      threshold: scores must be above it.
    """
    boxes = jnp.clip(boxes, 0.0, 1.0)
    empty = jnp.any(boxes[:, 2:] <= boxes[:, :2], axis=-1)
    left = jnp.where(empty[:, None] | ~(scores > threshold), 0.0, scores).T  # (C, A)
    places = jnp.arange(len(boxes))
    num_kept = min(spec.max_detections, len(left) * min(spec.max_per_class, len(boxes)))

    # The best of all classes is taken, one at a time, and only in its class others go: a row is all that changes.
    def more(carry: tuple[jax.Array, ...]) -> jax.Array:
        found, best, *_ = carry
        return (found < num_kept) & jnp.any(best > 0)

    def take(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        found, best, taken, left, kept = carry
        label = jnp.argmax(best)
        row, score, taken = left[label], best[label], taken.at[label].add(1)
        place = jnp.argmax(row)
        gone = (
            (iou(boxes[place][None], boxes) > spec.nms_iou) | (places == place) | (taken[label] == spec.max_per_class)
        )
        row = jnp.where(gone, 0.0, row)
        kept = Detections(
            kept.scores.at[found].set(score),
            kept.labels.at[found].set(label.astype(jnp.int32)),
            kept.boxes.at[found].set(boxes[place]),
        )
        return found + 1, best.at[label].set(jnp.max(row)), taken, left.at[label].set(row), kept

    nothing = Detections(
        jnp.zeros(num_kept, scores.dtype), jnp.zeros(num_kept, jnp.int32), jnp.zeros((num_kept, 4), boxes.dtype)
    )
    start = (0, jnp.max(left, axis=1), jnp.zeros(len(left), jnp.int32), left, nothing)
    return jax.lax.while_loop(more, take, start)[-1]


def survivors(
    boxes: jax.Array, scores: jax.Array, candidate: jax.Array, *, iou_threshold: float, limit: int
) -> jax.Array:
    """Says which boxes (A,) greedy suppression leaves, at most ``limit``, of those that are candidates.

    ``boxes`` (A, 4) are corners, ``scores`` (A,) their order. The boxes in that order, one is left if none of those
    before it that are left overlaps it more. Repeating this for all at once fixes at least the first that is not yet
    right, so that it ends with the greedy answer, after as many rounds as boxes suppress each other in a chain.
    """
    order = jnp.argsort(jnp.where(candidate, -scores, jnp.inf), stable=True)
    boxes, candidate = boxes[order], candidate[order]
    before = jnp.tri(len(boxes), k=-1, dtype=bool)
    overlaps = (iou(boxes[:, None], boxes[None]) > iou_threshold) & before  # (A, A): column's box comes first

    def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, _ = carry
        return candidate & ~jnp.any(overlaps & left[None], axis=1), left

    left, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[0] != carry[1]), step, (candidate, ~candidate))
    left &= jnp.cumsum(left) <= limit
    return jnp.zeros(len(boxes), bool).at[order].set(left)
