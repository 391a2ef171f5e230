"""From the logits of one or several views of images to the class of every pixel, in bounded memory.

The scores of all classes at the size of a photo are the largest array of an evaluation: 1.7 GB for 20 megapixels and 21
classes. Where they would be large they are computed a strip of rows at a time, from the few rows of logits around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_mnv2.losses import upsample_logits
from flax_mnv2.models.ops.resize import resize_bilinear

WHOLE = 2**26  # scores, 256 MB of float32, that are computed at once; a batch of 8 at 513×513 with 21 classes has 44 M
STRIP = 2**24  # scores of a strip, where there are more


class View(NamedTuple):
    """Logits (N, h, w, C) of images as the network saw them: resized, and perhaps mirrored."""

    logits: jax.Array
    mirrored: bool = False


def most_likely(
    views: Sequence[View],
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    whole: int = WHOLE,
    strip: int = STRIP,
) -> jax.Array:
    """Returns the class of the highest score at every pixel, (N, *size) uint8; of equal ones the lowest.

    The scores are those of :func:`scores_of`, at most about ``whole`` or, a strip at a time, ``strip`` of them.
    """
    (batch, _, _, classes), (height, width) = views[0].logits.shape, size
    if batch * height * width * classes <= whole:
        return jnp.argmax(scores_of(views, size, align_corners=align_corners), axis=-1).astype(jnp.uint8)
    wide = [
        view._replace(logits=upsample_logits(view.logits, (view.logits.shape[1], width), align_corners=align_corners))
        for view in views
    ]
    rows = min(height, max(1, strip // (batch * width * classes)))

    def decide_strip(index: jax.Array, labels: jax.Array) -> jax.Array:
        start = jnp.minimum(index * rows, height - rows)  # the last strip overlaps the one before
        strips = [
            view._replace(logits=_upsampled_rows(view.logits, height, start, rows, align_corners)) for view in wide
        ]
        decided = jnp.argmax(_average(strips), axis=-1).astype(jnp.uint8)
        return jax.lax.dynamic_update_slice_in_dim(labels, decided, start, axis=1)

    labels = jnp.zeros((batch, height, width), jnp.uint8)
    return jax.lax.fori_loop(0, -(-height // rows), decide_strip, labels)


def scores_of(views: Sequence[View], size: tuple[int, int], *, align_corners: bool = False) -> jax.Array:
    """Returns class scores at ``size``, (N, *size, C): the logits of one plain view, else averaged probabilities.

    ``align_corners`` as for ``losses.upsample_logits``.
    """
    return _average(
        [view._replace(logits=upsample_logits(view.logits, size, align_corners=align_corners)) for view in views]
    )


def _average(views: Sequence[View]) -> jax.Array:
    """Scores of views that are upsampled already."""
    if len(views) == 1 and not views[0].mirrored:
        return views[0].logits
    total = 0.0
    for view in views:
        logits = view.logits[:, :, ::-1] if view.mirrored else view.logits
        total = total + jax.nn.softmax(logits)
    return total / len(views)


def _upsampled_rows(logits: jax.Array, height: int, start: jax.Array, rows: int, align_corners: bool) -> jax.Array:
    """Rows from ``start`` on of ``upsample_logits(logits, (height, W))``, (N, rows, W, C) of (N, h, W, C)."""
    num_rows = logits.shape[1]
    band = min(num_rows, -(-rows * num_rows // height) + 2)  # what the strip is interpolated from, at most
    if align_corners:
        position = start * ((num_rows - 1) / max(height - 1, 1))
    else:
        position = (start + 0.5) * (num_rows / height) - 0.5
    first = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, num_rows - band)
    eye = jnp.eye(num_rows, dtype=logits.dtype)[None, :, :, None]
    weights = resize_bilinear(eye, (height, num_rows), align_corners=align_corners)[0, :, :, 0]
    weights = jax.lax.dynamic_slice(weights, (start, first), (rows, band))
    near = jax.lax.dynamic_slice_in_dim(logits, first, band, axis=1)
    return jnp.einsum("nhwc,rh->nrwc", near, weights, precision=jax.lax.Precision.HIGHEST)
