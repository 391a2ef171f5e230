"""Losses against Hugging Face's own classes: on the same logits, and through both models with the same weights."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2.losses import classification_loss, segmentation_loss, smooth_targets, soft_cross_entropy_sum
from flax_mnv2.weights.pretrained import from_pretrained

CASES = {
    "cross-entropy": (5, None, np.array([0, 4, 2, 2, 1, 3])),
    "cross-entropy, one example ignored": (5, None, np.array([0, 4, -100, 2, 1, 3])),
    "regression": (1, None, np.array([0.5, -2.0, 3.0, 0.1, 0.0, 1.0], np.float32)),
    "regression, column": (1, None, np.array([[0.5], [-2.0], [3.0], [0.1], [0.0], [1.0]], np.float32)),
    "regression of several": (3, "regression", np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)),
    "multi-label, inferred": (4, None, np.random.default_rng(2).integers(0, 2, (6, 4)).astype(np.float32)),
    "multi-label, named": (4, "multi_label_classification", np.random.default_rng(3).random((6, 4), np.float32)),
}


@pytest.mark.parametrize("name", CASES)
def test_classification_loss(transformers, name):
    import torch
    from transformers.loss.loss_utils import LOSS_MAPPING

    num_labels, problem_type, labels = CASES[name]
    logits = np.random.default_rng(0).normal(scale=4.0, size=(6, num_labels)).astype(np.float32)
    config = types.SimpleNamespace(num_labels=num_labels, problem_type=problem_type)
    logits[0] = 0.0  # where kinks would show in the gradient
    theirs_logits = torch.from_numpy(logits).requires_grad_()
    theirs = LOSS_MAPPING["ForImageClassification"](torch.from_numpy(labels), theirs_logits, config)
    theirs.backward()
    loss = functools.partial(classification_loss, problem_type=problem_type)
    np.testing.assert_allclose(loss(logits, labels), theirs.item(), rtol=1e-6)
    jitted, gradient = jax.jit(jax.value_and_grad(loss))(logits, labels)
    np.testing.assert_allclose(jitted, theirs.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs_logits.grad.numpy(), atol=1e-6)
    half = loss(logits.astype(np.float16), labels)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, theirs.item(), rtol=2e-3)


def test_an_impossible_class_costs_nothing():
    logits = np.array([[1.0, -np.inf, 0.0]], np.float32)
    for run in (classification_loss, jax.jit(classification_loss)):
        np.testing.assert_allclose(run(logits, np.array([0])), np.log1p(np.exp(-1.0)), rtol=1e-6)


def test_binary_cross_entropy_of_large_logits_stays_finite():
    logits = np.array([[300.0, -300.0]], np.float32)
    assert float(classification_loss(logits, np.array([[0.0, 1.0]], np.float32))) == 300.0
    assert float(classification_loss(logits, np.array([[1.0, 0.0]], np.float32))) == 0.0


@pytest.mark.parametrize("num_labels", [1, 4])
def test_loss_of_the_classifier(transformers, randomize, tmp_path, num_labels):
    import torch

    fields = {"depth_multiplier": 0.35, "num_labels": num_labels}
    hf_model = randomize(transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(**fields)), 5)
    hf_model.save_pretrained(tmp_path)
    model, variables = from_pretrained(tmp_path)
    images = np.random.default_rng(0).normal(size=(3, 64, 96, 3)).astype(np.float32)
    labels = np.array([0, 3, 1]) if num_labels == 4 else np.array([0.5, 3.0, -1.0], np.float32)
    with torch.no_grad():
        theirs = hf_model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels=torch.from_numpy(labels))
    ours = jax.jit(model.apply)(variables, images, labels=labels)
    np.testing.assert_allclose(ours.loss, theirs.loss.item(), rtol=1e-5)
    assert ours.keys() == tuple(theirs.keys()) == ("loss", "logits")


def test_loss_of_the_segmentation_model_on_real_weights(transformers, shared):
    import torch
    from PIL import Image

    folder = shared / "weights" / "deeplabv3_mobilenet_v2_1.0_513"
    hf_model = transformers.MobileNetV2ForSemanticSegmentation.from_pretrained(folder).eval()
    photo = Image.open(shared / "images" / "bird_segmentation.png").convert("RGB").resize((181, 137))
    images = np.asarray(photo, np.float32)[None] / 127.5 - 1.0
    labels = np.random.default_rng(0).integers(0, 21, size=(1, 137, 181))
    labels[:, :40] = 255
    with torch.no_grad():
        theirs = hf_model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels=torch.from_numpy(labels))
    # The loss itself, on Hugging Face's own logits …
    logits = theirs.logits.permute(0, 2, 3, 1).numpy()
    loss = segmentation_loss(logits, labels, ignore_label=255)
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-6)
    # … and through our network.
    model, variables = from_pretrained(folder)
    ours = jax.jit(model.apply)(variables, images, labels=labels)
    np.testing.assert_allclose(ours.loss, theirs.loss.item(), rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (np.array([0, 5]), None, r"in \[0, 5\) or -100 \(ignored\); found \[5\]"),
        (np.array([[0], [1]]), None, r"integers of shape \(2,\)"),
        (np.array([0.0, 1.0], np.float32), "single_label_classification", "found float32"),
        (np.zeros((2, 4), np.float32), None, r"numbers of shape \(2, 5\)"),
        (np.full((2, 5), 7.0, np.float32), None, r"from 0 to 1; found \[7\."),
        ([0, 1], None, "NumPy array; found list"),
    ],
)
def test_labels_that_do_not_fit_are_explained(labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        classification_loss(np.zeros((2, 5), np.float32), labels, problem_type=problem_type)


def test_segmentation_labels_that_do_not_fit_are_explained():
    logits = np.zeros((1, 2, 2, 3), np.float32)
    for labels, message in (
        (np.full((1, 4, 4), 3, np.uint8), r"found \[3\]"),
        (np.zeros((1, 4, 4), np.float32), "found float32"),
        (np.zeros((4, 4), np.int32), r"integers \(N, H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            segmentation_loss(logits, labels, ignore_label=255)
    with pytest.raises(ValueError, match="at least 2"):
        segmentation_loss(logits[..., :1], np.zeros((1, 4, 4), np.uint8), ignore_label=255)


def test_labels_out_of_range_poison_a_compiled_loss():
    """A compiled program cannot raise, so the loss must not look like a number."""
    logits = np.zeros((2, 5), np.float32)
    assert np.isnan(jax.jit(classification_loss)(logits, np.array([0, 7])))
    assert np.isfinite(jax.jit(classification_loss)(logits, np.array([0, -100])))
    assert np.isnan(jax.jit(classification_loss)(logits, np.full((2, 5), 7.0, np.float32)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_and_mixed_targets_are_torchs(smoothing):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 4, (16, 11)).astype(np.float32)
    labels, partners, share = rng.integers(0, 11, 16), rng.integers(0, 11, 16), 0.3
    ours = share * smooth_targets(jnp.asarray(labels), 11, smoothing)
    ours += (1 - share) * smooth_targets(jnp.asarray(partners), 11, smoothing)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="sum")
    mixed = torch.nn.functional.one_hot(torch.tensor(np.stack([labels, partners])), 11).float()
    expected = loss(torch.tensor(logits), share * mixed[0] + (1 - share) * mixed[1])
    np.testing.assert_allclose(soft_cross_entropy_sum(jnp.asarray(logits), ours), expected.item(), rtol=1e-6)


def test_a_label_out_of_range_makes_the_loss_nan():
    targets = smooth_targets(jnp.array([0, 3]), 3, 0.1)
    assert np.isnan(soft_cross_entropy_sum(jnp.zeros((2, 3)), targets))
    assert np.isfinite(targets[0]).all()
