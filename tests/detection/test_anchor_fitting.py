"""Anchors from boxes: clusters are found, boxes that anchors reach are counted as by a loop."""

import numpy as np
import pytest

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.anchor_fitting import best_iou, box_sizes, fit_anchors, on_maps, size_iou
from flax_mnv2.detection.anchors import make_anchors

CLUSTERS = np.array([[0.05, 0.06], [0.2, 0.1], [0.3, 0.6]])


def sizes_around(clusters, count, seed=0):
    rng = np.random.default_rng(seed)
    return (clusters[:, None] * rng.uniform(0.9, 1.1, (len(clusters), count, 2))).reshape(-1, 2)


def iou(one, other):
    y0, x0 = max(one[0], other[0]), max(one[1], other[1])
    y1, x1 = min(one[2], other[2]), min(one[3], other[3])
    common = max(y1 - y0, 0) * max(x1 - x0, 0)
    return common / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common)


def test_sizes_are_in_the_unit_of_anchors():
    boxes = np.array([[0.1, 0.2, 0.6, 0.4]])
    np.testing.assert_allclose(box_sizes(boxes, (320, 320)), [[0.5, 0.2]])
    np.testing.assert_allclose(box_sizes(boxes, (200, 400)), [[0.5, 0.4]])


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_found(seed):
    anchors = fit_anchors(sizes_around(CLUSTERS, 200), 3, seed=seed)
    np.testing.assert_allclose(anchors, CLUSTERS, rtol=0.04)
    np.testing.assert_array_equal(anchors, fit_anchors(sizes_around(CLUSTERS, 200), 3, seed=seed))


def test_more_anchors_fit_better_and_no_more_than_sizes():
    sizes = np.random.default_rng(0).uniform(0.05, 0.9, (500, 2))
    fits = [size_iou(sizes, fit_anchors(sizes, count)).max(axis=1).mean() for count in (1, 3, 9, 27)]
    assert fits == sorted(fits)
    assert fits[0] < 0.5 < 0.75 < fits[-1]
    assert len(fit_anchors(np.array([[0.1, 0.2]] * 5 + [[0.3, 0.3]]), 9)) == 2


def test_anchors_stand_on_the_map_of_their_size():
    spec = DetectionSpec()
    anchors = on_maps(np.array([[0.05, 0.06], [0.1, 0.1], [0.4, 0.3], [0.9, 1.0]]), spec)
    assert anchors[0] == ((0.05, 0.06), (0.1, 0.1))
    assert anchors[1] == ((0.4, 0.3),)
    assert anchors[2:5] == spec.anchors[2:5]
    assert anchors[5] == ((0.9, 1.0),)
    assert spec.replace(anchors=anchors).anchors == anchors


def test_the_best_anchor_of_each_box_is_that_of_a_loop():
    rng, spec = np.random.default_rng(0), DetectionSpec()
    anchors = make_anchors(spec, (320, 256), [(n, n) for n in (4, 3, 2, 1, 1, 1)])
    low = rng.uniform(0, 0.6, (30, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.02, 0.4, (30, 2))], axis=1)
    corners = [(y - h / 2, x - w / 2, y + h / 2, x + w / 2) for y, x, h, w in anchors.tolist()]
    expected = [max(iou(box, corner) for corner in corners) for box in boxes.tolist()]
    np.testing.assert_allclose(best_iou(boxes, anchors), expected, rtol=1e-5)
    assert best_iou(np.zeros((0, 4)), anchors).shape == (0,)
