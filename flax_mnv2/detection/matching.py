"""Which anchor stands for which box: the targets of training."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.boxes import area, encode, intersection, iou, to_corners

_MIN_IGNORED = 0.5  # part of an anchor inside an ignored box from which on it is no negative


class Targets(NamedTuple):
    """What the anchors of one image are to predict."""

    label: jax.Array  # (A,) int32, class of the anchor's box, -1 for none
    codes: jax.Array  # (A, 4) float32, of that box; 0 for none
    ignored: jax.Array  # (A,) bool: neither positive nor negative


def match(boxes: jax.Array, labels: jax.Array, ignored: jax.Array, anchors: jax.Array, spec: DetectionSpec) -> Targets:
    """Gives each anchor of one image the box that it overlaps most, and each box its best anchor.

    An anchor has a box from ``spec.positive_iou`` on. The anchor that a box overlaps most is that box's in any case; of
    several boxes that claim one, the first has it. All other anchors are negatives, but for those that lie at least
    half in a box that is ignored, as crowds and difficult boxes are.

    Args:
      boxes: (B, 4) corners; rows that fill up are anything.
      labels: (B,) class, -1 for rows that fill up.
      ignored: (B,) bool, boxes that are neither to be found nor to be missed.
      anchors: (A, 4) centres and sizes.
      spec: of the detector.
    """
    corners = to_corners(anchors)
    counts = (labels >= 0) & ~ignored
    # A row that fills up must not claim an anchor: its overlaps are below all others, and it claims none.
    overlap = jnp.where(counts[:, None], iou(boxes[:, None], corners[None]), -1.0)  # (B, A)
    matched, best = jnp.argmax(overlap, axis=0), jnp.max(overlap, axis=0)
    claims = jax.nn.one_hot(jnp.argmax(overlap, axis=1), len(anchors), dtype=bool) & counts[:, None]
    claimed = jnp.any(claims, axis=0)
    matched = jnp.where(claimed, jnp.argmax(claims, axis=0), matched)
    positive = claimed | (best >= spec.positive_iou)
    codes = encode(boxes[matched], anchors, spec)
    inside = intersection(boxes[:, None], corners[None]) >= _MIN_IGNORED * area(corners)[None]
    ignored = jnp.any(inside & (ignored & (labels >= 0))[:, None], axis=0) & ~positive
    return Targets(
        label=jnp.where(positive, labels[matched], -1).astype(jnp.int32),
        codes=jnp.where(positive[:, None], codes, 0.0),
        ignored=ignored,
    )
