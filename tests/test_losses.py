"""The segmentation loss against torch's, and its sums over parts of a batch."""

import functools

import jax
import numpy as np
import pytest

from flax_mnv2.losses import (
    cross_entropy_sums,
    segmentation_cross_entropy_sums,
    smooth_targets,
    soft_cross_entropy_sum,
    upsample_logits,
)

_sums = functools.partial(jax.jit, static_argnames="ignore_label")(segmentation_cross_entropy_sums)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, size=(4, 33, 47)).astype(np.uint8)
    labels[:, :5] = 255
    return rng.normal(size=(4, 5, 6, 6)).astype(np.float32), labels


def test_equals_torch(batch):
    torch = pytest.importorskip("torch")
    logits, labels = batch
    theirs_logits = torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()).requires_grad_()
    upsampled = torch.nn.functional.interpolate(theirs_logits, size=(33, 47), mode="bilinear", align_corners=False)
    theirs = torch.nn.functional.cross_entropy(upsampled, torch.from_numpy(labels.astype(np.int64)), ignore_index=255)
    theirs.backward()

    def loss(logits):
        total, count = segmentation_cross_entropy_sums(logits, labels, ignore_label=255)
        return total / count

    ours, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    assert abs(float(ours) - theirs.item()) < 1e-6 * theirs.item()
    expected = theirs_logits.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max() + 1e-8)
    np.testing.assert_allclose(upsample_logits(logits, (33, 47)), upsampled.detach().permute(0, 2, 3, 1), atol=1e-5)


WEIGHTS = np.array([0.2, 1.0, 3.0, 0.0, 0.5, 2.0], np.float32)


def test_class_weights_are_torchs(batch):
    torch = pytest.importorskip("torch")
    logits, labels = batch
    total, weight = _sums(logits, labels, ignore_label=255, class_weights=WEIGHTS)
    upsampled = torch.from_numpy(np.array(upsample_logits(logits, (33, 47)))).permute(0, 3, 1, 2)
    entropy = torch.nn.CrossEntropyLoss(torch.from_numpy(WEIGHTS), ignore_index=255)
    theirs = entropy(upsampled, torch.from_numpy(labels.astype(np.int64)))
    np.testing.assert_allclose(total / weight, theirs.item(), rtol=1e-5)

    flat, classes = logits.reshape(-1, 6), np.arange(120) % 6
    entropy = torch.nn.CrossEntropyLoss(torch.from_numpy(WEIGHTS), label_smoothing=0.1)
    theirs = entropy(torch.from_numpy(flat), torch.from_numpy(classes))
    smoothed = soft_cross_entropy_sum(flat, smooth_targets(classes, 6, 0.1), class_weights=WEIGHTS)
    np.testing.assert_allclose(smoothed / WEIGHTS[classes].sum(), theirs.item(), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_the_papers(gamma):
    """Against the formula in float64; a probability of 1 has no infinite slope, and 0 no infinite loss."""
    logits = np.random.default_rng(1).normal(scale=3.0, size=(50, 6)).astype(np.float32)
    logits[0, 0], labels = 200.0, np.arange(50) % 6
    exact = logits.astype(np.float64)
    log_p = (
        exact - np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1, keepdims=True)) - exact.max(1, keepdims=True)
    )
    log_p = log_p[np.arange(50), labels]
    expected = (WEIGHTS[labels] * -((1 - np.exp(log_p)) ** gamma) * log_p).sum()
    more = {"class_weights": WEIGHTS, "focal_gamma": gamma}
    loss = lambda logits: cross_entropy_sums(logits, labels, ignore_label=255, **more)[0]  # noqa: E731
    total, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    soft = jax.jit(lambda logits: soft_cross_entropy_sum(logits, smooth_targets(labels, 6, 0.0), **more))
    np.testing.assert_allclose(soft(logits), expected, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_sums_of_parts_add_up(batch):
    logits, labels = batch
    whole = _sums(logits, labels, ignore_label=255)
    parts = [_sums(logits[i : i + 2], labels[i : i + 2], ignore_label=255) for i in (0, 2)]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)
    assert whole[1] == (labels != 255).sum()


def test_nothing_counts_where_all_is_ignored(batch):
    logits, labels = batch
    total, count = _sums(logits, np.full_like(labels, 255), ignore_label=255)
    assert total == count == 0
