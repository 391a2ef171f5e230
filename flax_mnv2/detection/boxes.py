"""Boxes as corners (y_min, x_min, y_max, x_max), as centres (y, x, height, width), and as codes relative to anchors.

All are fractions of the image, in the last axis of an array.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flax_mnv2.config.detection import DetectionSpec

_EPSILON = 1e-8  # the TF Object Detection API's, which keeps the logarithm of an empty box finite


def to_centres(corners: jax.Array) -> jax.Array:
    """Corners (…, 4) → (centre y, centre x, height, width)."""
    low, high = corners[..., :2], corners[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def to_corners(centres: jax.Array) -> jax.Array:
    """Centres and sizes (…, 4) → (y_min, x_min, y_max, x_max)."""
    centre, size = centres[..., :2], centres[..., 2:]
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def swap_axes(boxes: jax.Array) -> jax.Array:
    """(y, x, y, x) ↔ (x, y, x, y), of either form."""
    return boxes[..., jnp.array([1, 0, 3, 2])]


def encode(boxes: jax.Array, anchors: jax.Array, spec: DetectionSpec) -> jax.Array:
    """Corners (…, A, 4) → codes relative to anchors (A, 4), which have centres and sizes."""
    boxes, scales = to_centres(boxes), jnp.asarray(spec.box_scales, boxes.dtype)
    anchors = jnp.broadcast_to(anchors, boxes.shape)
    size, anchor_size = boxes[..., 2:] + _EPSILON, anchors[..., 2:] + _EPSILON
    shift = (boxes[..., :2] - anchors[..., :2]) / anchor_size
    codes = jnp.concatenate([shift, jnp.log(size / anchor_size)], axis=-1)
    codes = codes * scales.reshape(*(1,) * (codes.ndim - 1), 4)
    return codes if spec.box_order == "yxhw" else swap_axes(codes)


def decode(codes: jax.Array, anchors: jax.Array, spec: DetectionSpec) -> jax.Array:
    """Codes (…, A, 4) relative to anchors (A, 4), which have centres and sizes → corners."""
    codes = codes if spec.box_order == "yxhw" else swap_axes(codes)
    codes = codes / jnp.asarray(spec.box_scales, codes.dtype).reshape(*(1,) * (codes.ndim - 1), 4)
    log_size = codes[..., 2:]
    if spec.max_log_size is not None:
        log_size = jnp.clip(log_size, -spec.max_log_size, spec.max_log_size)
    anchors = jnp.broadcast_to(anchors, codes.shape)
    centre = codes[..., :2] * anchors[..., 2:] + anchors[..., :2]
    return to_corners(jnp.concatenate([centre, jnp.exp(log_size) * anchors[..., 2:]], axis=-1))


def intersection(one: jax.Array, other: jax.Array) -> jax.Array:
    """Areas (…) that boxes (…, 4) of two arrays of corners, whose shapes broadcast, have in common."""
    # Side by side, not with a last axis of two: of all pairs this is one loop over numbers that nobody stores.
    sides = [
        jnp.minimum(one[..., at + 2], other[..., at + 2]) - jnp.maximum(one[..., at], other[..., at]) for at in (0, 1)
    ]
    return jnp.maximum(sides[0], 0) * jnp.maximum(sides[1], 0)


def area(boxes: jax.Array) -> jax.Array:
    """Areas (…) of corners (…, 4); 0 where corners are swapped."""
    return jnp.maximum(boxes[..., 2] - boxes[..., 0], 0) * jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)


def iou(one: jax.Array, other: jax.Array) -> jax.Array:
    """Intersection over union (…) of corners whose shapes broadcast; 0 where both boxes are empty."""
    common = intersection(one, other)
    union = area(one) + area(other) - common
    return jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)
