"""Targets, loss and gradients against plain loops in float64, on random boxes with every special case."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import anchors_of, loss, match

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.losses import detection_loss_sums
from flax_mnv2.detection.matching import match as device_match

NUM_LABELS, MAP_SIZES = 3, [(5, 7), (3, 4), (2, 2), (1, 1), (1, 1), (1, 1)]
ANCHORS = anchors_of(96, 128, MAP_SIZES)
SPECS = {
    "original": DetectionSpec(),
    "without suppression": DetectionSpec(mining_iou=1.0),
    "suppression that bites": DetectionSpec(mining_iou=0.7),
    "focal": DetectionSpec(focal_gamma=2.0, box_loss_weight=0.25),
    "no background": DetectionSpec(focal_gamma=2.0, background="none"),
    "softmax, background last": DetectionSpec(score="softmax", background="last", mining_iou=1.0),
}


def _images(seed=0):
    """Four images of five rows: no box; two boxes on one anchor and equal overlaps; a crowd; rows that fill up."""
    rng = np.random.default_rng(seed)
    low = rng.random((4, 5, 2)) * 0.6
    boxes = np.concatenate([low, low + 0.05 + 0.35 * rng.random((4, 5, 2))], axis=-1)
    labels = rng.integers(0, NUM_LABELS, (4, 5))
    ignored = np.zeros((4, 5), bool)
    labels[0] = -1
    boxes[1, 1] = boxes[1, 0]  # of equal boxes the first has the anchor
    boxes[1, 2] = boxes[1, 0] + 0.01
    labels[1, :3] = [2, 0, 1]
    ignored[2, 0] = True
    boxes[2, 0] = [0.107, 0.093, 0.911, 0.877]  # so that no anchor lies exactly half in it
    labels[3, 3:] = -1
    boxes[3, 3:] = 0.0
    return {"boxes": boxes, "class_labels": labels, "ignored": ignored}


@functools.cache
def _sums_and_gradients(name):
    """A compiled function of logits, codes and labels → (sums, gradients of the loss by logits and codes)."""

    def total(logits, codes, labels):
        sums = detection_loss_sums(logits, codes, labels, ANCHORS.astype(np.float32), SPECS[name])
        return sums["class_loss"] + sums["box_loss"], sums

    return jax.jit(jax.grad(total, (0, 1), has_aux=True))


def test_each_anchor_has_the_box_that_the_loops_give_it():
    images, spec = _images(), DetectionSpec()
    run = jax.jit(jax.vmap(lambda *image: device_match(*image, jnp.asarray(ANCHORS), spec)))
    targets, seen = run(*map(jnp.asarray, images.values())), set()
    for at, (boxes, labels, ignored) in enumerate(zip(*images.values(), strict=True)):
        matched, out = match(boxes, labels, ignored, ANCHORS)
        np.testing.assert_array_equal(targets.label[at], np.where(matched >= 0, labels[matched], -1))
        np.testing.assert_array_equal(targets.ignored[at], out)
        seen |= {("positive", bool((matched >= 0).any())), ("ignored", bool(out.any()))}
    assert len(seen) == 4  # images with and without either


@pytest.mark.parametrize("name", SPECS)
def test_loss_and_gradient(name):
    spec, images = SPECS[name], _images()
    rng = np.random.default_rng(1)
    slots = spec.num_slots(NUM_LABELS)
    logits = 2 * rng.normal(size=(4, len(ANCHORS), slots)).astype(np.float32)
    codes = rng.normal(size=(4, len(ANCHORS), 4)).astype(np.float32)
    expected = [
        loss(
            logits[at].astype(float), codes[at].astype(float), *(value[at] for value in images.values()), ANCHORS, spec
        )
        for at in range(4)
    ]
    gradients, found = _sums_and_gradients(name)(logits, codes, images)
    expected = np.sum(expected, axis=0)
    np.testing.assert_allclose([found["class_loss"], found["box_loss"], found["positives"]], expected, rtol=2e-5)
    for which, gradient in enumerate(gradients):  # by differences of the loops, at the entries of the steepest slope
        for at in np.argsort(-np.abs(np.asarray(gradient)).ravel())[:3]:
            image, place = np.unravel_index(at, gradient.shape)[0], np.unravel_index(at, gradient.shape)
            values = []
            for step in (1e-4, -1e-4):
                moved = [logits.astype(float), codes.astype(float)]
                moved[which][place] += step
                rows = (value[image] for value in images.values())
                values.append(sum(loss(moved[0][image], moved[1][image], *rows, ANCHORS, spec)[:2]))
            np.testing.assert_allclose(gradient[place], (values[0] - values[1]) / 2e-4, rtol=1e-3)


def test_images_without_boxes_teach_background_alone():
    labels = {**_images(), "class_labels": np.full((4, 5), -1)}
    zeros = np.zeros((4, len(ANCHORS), 4), np.float32)
    _, sums = _sums_and_gradients("original")(zeros, zeros, labels)
    assert float(sums["positives"]) == float(sums["box_loss"]) == 0
    np.testing.assert_allclose(sums["class_loss"], 4 * 3 * 4 * np.log(2), rtol=1e-6)  # min_negatives anchors, all slots
