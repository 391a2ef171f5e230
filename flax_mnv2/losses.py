"""Losses: masked sums, so that a training step divides once over all devices, and Hugging Face's means."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.models.numerics import at_least_float32
from flax_mnv2.models.ops.resize import resize_bilinear

CLASSIFICATION_IGNORE_LABEL = -100  # PyTorch's default, and with it Hugging Face's


def upsample_logits(logits: jax.Array, size: tuple[int, int], *, align_corners: bool = False) -> jax.Array:
    """Resizes (N, h, w, C) to (N, *size, C) bilinearly with half-pixel centres, as Hugging Face does.

    With ``align_corners`` the corners stay where they are, as in TF DeepLab.
    """
    return resize_bilinear(logits, size, align_corners=align_corners)


def cross_entropy_sums(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int,
    class_weights: jax.typing.ArrayLike | None = None,
    focal_gamma: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of softmax cross-entropies, in nats, and the number of entries that it is over.

    Logits are (..., C), labels (...) integers in [0, C) or ``ignore_label``, which does not count. Any other makes the
    sum NaN, so that it is noticed also in a compiled program, which cannot raise. Both scalars are float32 (float64 for
    float64 logits).

    With ``class_weights`` (C,) an entry counts as the weight of its class says, in both sums, so that their quotient is
    the weighted mean of PyTorch's ``CrossEntropyLoss``. With ``focal_gamma`` each term has the factor
    (1 - probability of the truth) ** gamma (focal loss, arXiv 1708.02002).
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    labels = labels.astype(jnp.int32)
    num_classes = logits.shape[-1]
    counts = labels != ignore_label
    # A one-hot selection rather than a gather: the gather's gradient is a scatter, slow on every platform.
    truth = jax.nn.one_hot(labels, num_classes, dtype=bool)
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(truth, logits, 0.0), axis=-1)
    losses = _focused(losses, focal_gamma)
    losses = jnp.where((labels >= 0) & (labels < num_classes), losses, jnp.nan)
    weights = jnp.ones((), logits.dtype)
    if class_weights is not None:
        weights = jnp.sum(jnp.where(truth, class_weights.astype(logits.dtype), 0.0), axis=-1)
        losses = losses * weights
    return jnp.sum(jnp.where(counts, losses, 0.0)), jnp.sum(jnp.where(counts, weights, 0.0), dtype=logits.dtype)


def smooth_targets(labels: jax.Array, num_classes: int, label_smoothing: float) -> jax.Array:
    """Returns labels (N,) as probabilities (N, C) float32, of which ``label_smoothing`` is spread over all classes.

    A label outside of [0, num_classes) makes its row NaN, so that the loss is.
    """
    truth = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    targets = (1.0 - label_smoothing) * truth + label_smoothing / num_classes
    in_range = (labels >= 0) & (labels < num_classes)
    return jnp.where(in_range[:, None], targets, jnp.nan)


def soft_cross_entropy_sum(
    logits: jax.Array,
    targets: jax.Array,
    *,
    class_weights: jax.typing.ArrayLike | None = None,
    focal_gamma: float = 0.0,
) -> jax.Array:
    """Returns the cross-entropy of logits (N, C) with probabilities (N, C), summed over the batch, in nats.

    With ``class_weights`` (C,) and ``focal_gamma`` each term of the sum over classes is weighted as in
    ``cross_entropy_sums``.
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    losses = _focused(-jax.nn.log_softmax(logits), focal_gamma)
    if class_weights is not None:
        losses = losses * class_weights.astype(logits.dtype)[None]
    return jnp.sum(targets.astype(logits.dtype) * losses)


def binary_cross_entropies(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each sigmoid with its probability, in nats; all (N, C), float32 or better.

    A target outside of [0, 1] makes its own NaN.
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    targets = targets.astype(logits.dtype)
    losses = jax.nn.softplus(logits) - logits * targets  # no exponential overflows
    return jnp.where((targets >= 0) & (targets <= 1), losses, jnp.nan)


def squared_errors(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the squared differences, all (N, C), float32 or better."""
    logits = logits.astype(at_least_float32(logits.dtype))
    return jnp.square(logits - targets.astype(logits.dtype))


def segmentation_cross_entropy_sums(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int, align_corners: bool = False, **weighting: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns ``cross_entropy_sums`` of (N, h, w, C) logits of any resolution at the size of the labels, (N, H, W).

    ``align_corners`` as for ``upsample_logits``.
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    logits = upsample_logits(logits, labels.shape[1:], align_corners=align_corners)
    return cross_entropy_sums(logits, labels, ignore_label=ignore_label, **weighting)


def segmentation_loss(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int, align_corners: bool = False
) -> jax.Array:
    """Returns the mean cross-entropy over the pixels that count; 0 where none does.

    Args:
      logits: (N, h, w, C), any resolution, C at least 2.
      labels: (N, H, W), integers in [0, C) or ``ignore_label``.
      ignore_label: pixels with this label do not count.
      align_corners: as for ``upsample_logits``.

    Raises:
      ValueError: shapes or types do not fit; values out of range, where they are known (not inside ``jit``).
    """
    if logits.shape[-1] < 2:
        raise ValueError("A segmentation loss needs num_labels of at least 2; found 1: its softmax is always 1.")
    _check_array(labels)
    if labels.ndim != 3 or len(labels) != len(logits) or not _is_integer(labels):
        raise ValueError(
            f"labels of a segmentation must be integers (N, H, W) with N = {len(logits)}; found {labels.dtype} "
            f"{tuple(labels.shape)}."
        )
    check_label_values(labels, logits.shape[-1], ignore_label)
    total, count = segmentation_cross_entropy_sums(
        logits, labels, ignore_label=ignore_label, align_corners=align_corners
    )
    return total / jnp.maximum(count, 1.0)


def classification_loss(logits: jax.Array, labels: jax.Array, *, problem_type: str | None = None) -> jax.Array:
    """Returns Hugging Face's loss of an image classifier, a mean over the batch.

    Args:
      logits: (N, C).
      labels: for ``"single_label_classification"`` integers (N,) in [0, C), or -100 for examples that do not count;
        for ``"regression"`` numbers (N, C), or (N,) where C is 1; for ``"multi_label_classification"`` numbers
        (N, C) from 0 to 1.
      problem_type: one of these; None takes regression where C is 1, else single label for integer labels and
        multi-label for others.

    Returns:
      Scalar, float32 or better: mean squared error, mean cross-entropy (0 where nothing counts) or mean binary
      cross-entropy. Inside ``jit`` labels out of range make it NaN.

    Raises:
      ValueError: shapes or types do not fit; labels out of range, where they are known (not inside ``jit``).
    """
    _check_array(labels)
    logits = logits.astype(at_least_float32(logits.dtype))
    num_examples, num_labels = logits.shape
    if problem_type is None:
        several = "single_label_classification" if _is_integer(labels) else "multi_label_classification"
        problem_type = "regression" if num_labels == 1 else several
    if problem_type == "single_label_classification":
        if not _is_integer(labels) or labels.shape != (num_examples,):
            raise _misfit(problem_type, f"integers of shape {(num_examples,)}", labels)
        check_label_values(labels, num_labels, CLASSIFICATION_IGNORE_LABEL)
        total, count = cross_entropy_sums(logits, labels, ignore_label=CLASSIFICATION_IGNORE_LABEL)
        return total / jnp.maximum(count, 1.0)
    if num_labels == 1 and labels.shape == (num_examples,):
        labels = labels[:, None]
    if labels.shape != logits.shape:
        raise _misfit(problem_type, f"numbers of shape {tuple(logits.shape)}", labels)
    if problem_type == "regression":
        return jnp.mean(squared_errors(logits, labels))
    if not isinstance(labels, jax.core.Tracer):  # then what is computed of them may be one, inside jit
        values = np.asarray(labels)
        out_of_range = values[~((values >= 0) & (values <= 1))]
        if out_of_range.size:
            raise ValueError(f"labels for {problem_type} must be from 0 to 1; found {out_of_range[:8]}.")
    return jnp.mean(binary_cross_entropies(logits, labels))


def check_label_values(labels: jax.Array, num_classes: int, ignore_label: int) -> None:
    """Raises a ValueError for labels out of range; inside a traced function, where values are unknown, does nothing."""
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.unique(np.asarray(labels))
    wrong = values[((values < 0) | (values >= num_classes)) & (values != ignore_label)]
    if wrong.size:
        raise ValueError(
            f"labels must be in [0, {num_classes}) or {ignore_label} (ignored); found {wrong[:8].tolist()}"
            f"{'…' if wrong.size > 8 else ''}. Check num_labels and how the labels were made."
        )


def _focused(losses: jax.Array, gamma: float) -> jax.Array:
    """Returns cross-entropies, each with the factor (1 - p) ** gamma of its probability p.

    1 - p is at least 1e-7, since a power below 1 has no finite slope at 0.
    """
    return losses * jnp.maximum(-jnp.expm1(-losses), 1e-7) ** gamma if gamma else losses


def _check_array(labels: jax.Array) -> None:
    if not isinstance(labels, (jax.Array, np.ndarray)):
        raise ValueError(f"labels must be a JAX or NumPy array; found {type(labels).__name__}.")


def _is_integer(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.integer)


def _misfit(problem_type: str, expected: str, labels: jax.Array) -> ValueError:
    return ValueError(
        f"labels for {problem_type} must be {expected}; found {labels.dtype} {tuple(labels.shape)}. "
        "config.problem_type chooses the loss."
    )
