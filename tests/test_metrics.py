"""Counts and metrics against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from flax_mnv2.metrics import ClassificationMetrics, SegmentationMetrics, confusion_matrix, top_k_counts


def test_counts_pairs_and_leaves_out_the_ignored():
    labels = np.array([[0, 0, 1, 255], [2, 2, 255, 1]], np.uint8)
    predictions = np.array([[0, 1, 1, 0], [2, 0, 2, 1]], np.uint8)
    matrix = confusion_matrix(jnp.asarray(labels), jnp.asarray(predictions), num_classes=3, ignore_label=255)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 2, 0], [1, 0, 1]])


def test_against_a_direct_computation_with_21_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 21, size=5000)
    labels[:400] = 255
    predictions = np.where(rng.random(5000) < 0.7, labels % 21, rng.integers(0, 21, size=5000))
    matrix = confusion_matrix(jnp.asarray(labels), jnp.asarray(predictions), num_classes=21, ignore_label=255)
    metrics = SegmentationMetrics.from_confusion(matrix)
    valid = labels != 255
    for index in range(21):
        truth, predicted = (labels == index) & valid, (predictions == index) & valid
        assert metrics.iou[index] == pytest.approx((truth & predicted).sum() / (truth | predicted).sum())
    assert metrics.pixel_accuracy == pytest.approx((labels == predictions)[valid].mean())
    assert metrics.mean_iou == pytest.approx(metrics.iou.mean())
    assert metrics.num_pixels == valid.sum()


def test_absent_classes_do_not_count():
    metrics = SegmentationMetrics.from_confusion(np.array([[8, 2, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(metrics.iou, [0.8, 0.0, np.nan])
    assert metrics.mean_iou == pytest.approx(0.4)
    assert metrics.mean_class_accuracy == pytest.approx(0.8)
    rows = metrics.to_dict(("a", "b", "c"))["iou_per_class"]
    assert [row["iou"] for row in rows] == [0.8, 0.0, None]
    assert [row["precision"] for row in rows] == [1.0, 0.0, None]
    assert [row["recall"] for row in rows] == [0.8, None, None]


def _scores(precision, recall, f1):
    return {"precision": precision, "recall": recall, "f1": f1}


def test_nothing_counted_gives_no_figure():
    metrics = SegmentationMetrics.from_confusion(np.zeros((2, 2), np.int64))
    assert np.isnan(metrics.mean_iou)
    assert metrics.to_dict(("a", "b"))["mean_iou"] is None


def test_counts_beyond_float32_are_exact():
    count = 2**53 - 1
    assert SegmentationMetrics.from_confusion(np.array([[count, 0], [0, 0]])).num_pixels == count


def test_hits_are_counted_by_true_class_and_fillers_are_not():
    top = np.array([[2, 0], [1, 2], [0, 1], [2, 1], [2, 2]], np.int32)
    labels, mask = np.array([2, 2, 2, 0, 2], np.int32), np.array([1, 1, 1, 1, 0], bool)
    counts = top_k_counts(jnp.asarray(labels), jnp.asarray(top), jnp.asarray(mask), num_classes=3)
    assert {name: list(map(int, value)) for name, value in counts.items()} == {
        "examples": [1, 0, 3],
        "predicted": [1, 1, 2],
        "top1": [0, 0, 1],
        "top5": [0, 0, 2],
    }
    metrics = ClassificationMetrics.from_counts(counts)
    assert (metrics.top1, metrics.top5, metrics.num_examples) == (0.25, 0.5, 4)
    found = metrics.to_dict(("a", "b", "c"), per_class=True)
    assert found == {
        "top1": 0.25,
        "top5": 0.5,
        "num_top1": 1,
        "num_top5": 2,
        "per_class": [
            {"id": 0, "label": "a", "num_examples": 1, "num_predicted": 1, **_scores(0.0, 0.0, 0.0), "top5": 0.0},
            {"id": 1, "label": "b", "num_examples": 0, "num_predicted": 1, **_scores(0.0, None, 0.0), "top5": None},
            {"id": 2, "label": "c", "num_examples": 3, "num_predicted": 2, **_scores(0.5, 1 / 3, 0.4), "top5": 2 / 3},
        ],
    }
    assert "per_class" not in metrics.to_dict(("a", "b", "c"))


def test_a_classifier_without_examples_has_no_figure():
    nothing = np.zeros(2, np.int64)
    metrics = ClassificationMetrics.from_counts(dict.fromkeys(("examples", "predicted", "top1", "top5"), nothing))
    assert np.isnan(metrics.top1)
    assert metrics.to_dict(("a", "b"))["top5"] is None
