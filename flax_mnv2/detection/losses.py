"""The loss of an SSD: classes over positives and hard negatives, or focal over all anchors; boxes by Huber's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.boxes import decode
from flax_mnv2.detection.matching import Targets, match
from flax_mnv2.detection.suppression import survivors
from flax_mnv2.models.numerics import at_least_float32

MAX_HARD_EXAMPLES = 3_000  # of an image; the TF Object Detection API's num_hard_examples


def detection_loss_sums(
    logits: jax.Array, codes: jax.Array, labels: dict[str, jax.Array], anchors: jax.Array, spec: DetectionSpec
) -> dict[str, jax.Array]:
    """Returns sums over a batch: ``class_loss``, ``box_loss`` and ``positives``, by which both are to be divided.

    Args:
      logits: (N, A, slots).
      codes: (N, A, 4).
      labels: ``boxes`` (N, B, 4) corners, ``class_labels`` (N, B) integers, -1 for rows that fill up, and perhaps
        ``ignored`` (N, B) bool.
      anchors: (A, 4) centres and sizes.
      spec: of the detector.
    """
    logits, codes = (x.astype(at_least_float32(x.dtype)) for x in (logits, codes))
    boxes, classes = labels["boxes"].astype(codes.dtype), labels["class_labels"]
    ignored = labels.get("ignored", jnp.zeros(classes.shape, bool))
    targets = jax.vmap(match, in_axes=(0, 0, 0, None, None))(boxes, classes, ignored, anchors, spec)
    positive = targets.label >= 0
    class_losses = _class_losses(logits, targets, spec)  # (N, A)
    if not spec.focal_gamma:
        decoded = decode(jax.lax.stop_gradient(codes), anchors, spec)
        counted = jax.vmap(_hard, in_axes=(0, 0, 0, 0, None))(
            jax.lax.stop_gradient(class_losses), decoded, positive, targets.ignored, spec
        )
    else:
        counted = ~targets.ignored
    # Positives that overlap another hard example almost wholly are left out of both sums, as in the original.
    box_losses = jnp.where(counted & positive, _huber(codes - targets.codes).sum(axis=-1), 0.0)
    return {
        "class_loss": jnp.sum(jnp.where(counted, class_losses, 0.0)),
        "box_loss": spec.box_loss_weight * jnp.sum(box_losses),
        "positives": jnp.sum(positive, dtype=logits.dtype),
    }


def _class_losses(logits: jax.Array, targets: Targets, spec: DetectionSpec) -> jax.Array:
    """(N, A, slots) → (N, A): cross-entropy of each anchor, in nats, summed over the slots where these are sigmoids."""
    num_slots = logits.shape[-1]
    background = {"first": 0, "last": num_slots - 1, "none": -1}[spec.background]
    slots = jnp.where(targets.label >= 0, targets.label + (spec.background == "first"), background)
    truth = jax.nn.one_hot(slots, num_slots, dtype=logits.dtype)  # all 0 for -1
    if spec.score == "softmax":
        return -jnp.sum(truth * jax.nn.log_softmax(logits), axis=-1)
    losses = jax.nn.softplus(logits) - logits * truth
    if spec.focal_gamma:
        probability = jax.nn.sigmoid(logits)
        missing = jnp.where(truth > 0, 1 - probability, probability)
        alpha = jnp.where(truth > 0, spec.focal_alpha, 1 - spec.focal_alpha)
        losses = losses * alpha * jnp.maximum(missing, 1e-7) ** spec.focal_gamma
    return jnp.sum(losses, axis=-1)


def _hard(
    losses: jax.Array, boxes: jax.Array, positive: jax.Array, ignored: jax.Array, spec: DetectionSpec
) -> jax.Array:
    """Says which anchors (A,) of an image count: positives, and the negatives of the highest loss beside each.

    ``boxes`` (A, 4) are the decoded ones; of those that almost coincide only the one of the highest loss is left.
    """
    candidate = ~ignored
    if spec.mining_iou < 1:
        candidate = survivors(boxes, losses, candidate, iou_threshold=spec.mining_iou, limit=MAX_HARD_EXAMPLES)
    positives = candidate & positive
    wanted = jnp.maximum(spec.negatives_per_positive * jnp.sum(positives), spec.min_negatives)
    negatives = candidate & ~positive
    order = jnp.argsort(jnp.where(negatives, -losses, jnp.inf), stable=True)
    rank = jnp.zeros(len(losses), jnp.int32).at[order].set(jnp.arange(len(losses), dtype=jnp.int32))
    return positives | (negatives & (rank < wanted))


def _huber(error: jax.Array) -> jax.Array:
    """Huber's loss with a threshold of 1, by element."""
    size = jnp.abs(error)
    return jnp.where(size <= 1, 0.5 * jnp.square(error), size - 0.5)
