"""MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899) on the device, inside a training step.

The partner of an example is its neighbour: rows 2i and 2i + 1 of a shuffled batch. Neighbours lie on one device, so
nothing is sent between devices, and the result does not depend on how many there are. As in torchvision one draw
holds for the whole batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with its neighbour; with both methods, each is taken for half of the batches.

    The key is the batch's, the same on all devices; images are normalised, (N, H, W, C), N even (else a ValueError),
    targets probabilities (N, classes). The alphas are those of the Beta distribution of each method's fraction, 0 for
    without it.
    """
    if len(images) % 2:
        raise ValueError(f"MixUp and CutMix pair neighbours, so a device's part must be even; found {len(images)}.")
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    choose, draw, place = jax.random.split(key, 3)
    if mixup_alpha and cutmix_alpha:
        cut = jax.random.bernoulli(choose)
        alpha = jnp.where(cut, cutmix_alpha, mixup_alpha)
    else:
        cut, alpha = jnp.bool_(bool(cutmix_alpha)), mixup_alpha or cutmix_alpha
    fraction = jax.random.beta(draw, alpha, alpha, dtype=jnp.float32)  # of the example itself
    inside = box_mask(place, fraction, images.shape[1:3])
    fraction = jnp.where(cut, 1.0 - jnp.mean(inside, dtype=jnp.float32), fraction)
    own = jnp.where(cut, 1.0 - inside, fraction).astype(images.dtype)[None, :, :, None]
    mixed = images * own + _neighbours(images) * (1 - own)
    return mixed, targets * fraction + _neighbours(targets) * (1.0 - fraction)


def box_mask(key: jax.Array, fraction: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns (H, W) float32, 1 in CutMix's box of area ``1 - fraction`` around a uniform centre, cut at the edges."""
    rows, columns = jax.random.split(key)
    half = 0.5 * jnp.sqrt(1.0 - fraction)

    def covered(key: jax.Array, length: int) -> jax.Array:
        centre = jax.random.randint(key, (), 0, length)
        reach = jnp.floor(half * length).astype(jnp.int32)
        at = jnp.arange(length)
        return (at >= centre - reach) & (at < centre + reach)

    inside = covered(rows, size[0])[:, None] & covered(columns, size[1])[None]
    return inside.astype(jnp.float32)


def _neighbours(rows: jax.Array) -> jax.Array:
    """Puts row 2i + 1 in place of 2i, and the reverse."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)
