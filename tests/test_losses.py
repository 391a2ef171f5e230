"""The segmentation loss against torch's, and its sums over parts of a batch."""

import jax
import numpy as np
import pytest

from flax_mnv2.losses import segmentation_cross_entropy_sums, upsample_logits


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

    ours, gradient = jax.value_and_grad(loss)(logits)
    assert abs(float(ours) - theirs.item()) < 1e-6 * theirs.item()
    expected = theirs_logits.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max() + 1e-8)
    np.testing.assert_allclose(upsample_logits(logits, (33, 47)), upsampled.detach().permute(0, 2, 3, 1), atol=1e-5)


def test_sums_of_parts_add_up(batch):
    logits, labels = batch
    whole = segmentation_cross_entropy_sums(logits, labels, ignore_label=255)
    parts = [segmentation_cross_entropy_sums(logits[i : i + 2], labels[i : i + 2], ignore_label=255) for i in (0, 2)]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)
    assert whole[1] == (labels != 255).sum()


def test_nothing_counts_where_all_is_ignored(batch):
    logits, labels = batch
    total, count = segmentation_cross_entropy_sums(logits, np.full_like(labels, 255), ignore_label=255)
    assert total == count == 0
