"""Suppression against a loop, ties included; of fixed size, also under vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import suppressed

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.boxes import swap_axes, to_centres
from flax_mnv2.detection.suppression import class_scores, detect, detect_all, survivors


def _boxes(rng, count):
    low = np.round(rng.random((count, 2)) * 0.7, 2)
    return np.concatenate([low, low + np.round(0.1 + 0.3 * rng.random((count, 2)), 2)], -1).astype(np.float32)


@pytest.mark.parametrize("limits", [(100, 100), (3, 7)])
def test_detections_are_those_of_the_loop(limits):
    spec, rng = DetectionSpec(max_per_class=limits[0], max_detections=limits[1], nms_iou=0.4), np.random.default_rng(0)
    images = []
    for _ in range(3):
        boxes = _boxes(rng, 60)
        boxes[5] = boxes[4]
        boxes[6, 2:] = boxes[6, :2]  # empty
        images.append((np.round(rng.random((60, 4)), 1).astype(np.float32), boxes))  # many equal scores
    scores, boxes = map(np.stack, zip(*images, strict=True))
    run = jax.jit(jax.vmap(lambda scores, boxes: detect(scores, boxes, spec, threshold=0.35)))
    found = jax.tree.map(np.asarray, run(scores, boxes))
    for at, (score, box) in enumerate(images):
        cut, rows = np.clip(box, 0, 1), []
        for label in range(4):
            usable = np.flatnonzero((score[:, label] > 0.35) & (cut[:, 2:] > cut[:, :2]).all(axis=1))
            kept = usable[suppressed(cut[usable].astype(float), score[usable, label], 0.4, limits[0])]
            rows += [(float(score[one, label]), label, cut[one]) for one in kept]
        rows = sorted(rows, key=lambda row: -row[0])[: limits[1]]  # stable: of equal ones the lower class first
        count = int((found.scores[at] > 0).sum())
        assert count == len(rows) > 0
        assert found.labels[at, :count].tolist() == [row[1] for row in rows]
        np.testing.assert_array_equal(found.scores[at, :count], np.float32([row[0] for row in rows]))
        np.testing.assert_array_equal(found.boxes[at, :count], [row[2] for row in rows])


def test_all_images_of_outputs_are_those_of_single_ones():
    """One after the other on CPU, together elsewhere: the outputs' boxes have centres x, y."""
    spec, rng = DetectionSpec(max_detections=10), np.random.default_rng(0)
    logits, corners = rng.normal(size=(3, 40, 5)).astype(np.float32), np.stack([_boxes(rng, 40) for _ in range(3)])
    boxes = swap_axes(to_centres(corners))

    @jax.jit
    def both(logits, boxes, corners):
        together = jax.vmap(lambda x, y: detect(class_scores(x, spec), y, spec, threshold=0.5))(logits, corners)
        return detect_all(logits, boxes, spec, threshold=0.5), together

    for ours, theirs in zip(*both(logits, boxes, corners), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.99])
def test_survivors_are_those_of_the_loop(threshold):
    rng = np.random.default_rng(1)
    boxes, scores = _boxes(rng, 200), np.round(rng.random(200), 2).astype(np.float32)
    candidate = rng.random(200) < 0.9
    left = jax.jit(functools.partial(survivors, iou_threshold=threshold, limit=50))(boxes, scores, candidate)
    usable = np.flatnonzero(candidate)
    expected = usable[suppressed(boxes[usable].astype(float), scores[usable], threshold, 50)]
    assert sorted(np.flatnonzero(left)) == sorted(expected)


def test_scores_have_no_slot_of_no_class():
    logits = jnp.asarray([[0.0, 1.0, 2.0]])
    np.testing.assert_allclose(class_scores(logits, DetectionSpec()), jax.nn.sigmoid(logits)[:, 1:])
    last = DetectionSpec(background="last", score="softmax")
    np.testing.assert_allclose(class_scores(logits, last), jax.nn.softmax(logits)[:, :-1])
    np.testing.assert_allclose(class_scores(logits, DetectionSpec(background="none")), jax.nn.sigmoid(logits))
