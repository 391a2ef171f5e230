"""What a report on a segmentation model says beside its metrics."""

import numpy as np

from flax_mnv2.tasks.segmentation.evaluator import SegmentationEvaluator

LABELS = ("sky", "road", "car", "lesion", "bus")


def _evaluated(confusion):
    evaluator = SegmentationEvaluator(LABELS, ignore_label=255, num_pictures=0)
    evaluator.add({}, np.array(confusion), None)
    return evaluator


def test_classes_that_never_occurred():
    """Rows are the truth: a car that nobody drew was predicted, the road never was, a lesion is nowhere."""
    confusion = np.zeros((5, 5), np.int64)
    confusion[0, 0], confusion[1, 0], confusion[0, 2], confusion[4, 4] = 50, 10, 5, 1
    evaluator = _evaluated(confusion)
    found = evaluator.to_dict(per_class=False)
    assert found["never_in_truth"] == ["car", "lesion"]
    assert found["never_in_predictions"] == ["road", "lesion"]
    assert found["never_in_either"] == ["lesion"]
    assert evaluator.remarks() == [
        "  2 of 5 classes never in the masks: car, lesion",
        "  2 of 5 classes never in the predictions: road, lesion",
        "  1 of 5 classes never in either, so not in the mean IoU: lesion",
    ]


def test_nothing_to_remark():
    assert _evaluated(np.ones((5, 5), np.int64)).remarks() == []


def test_large_photos_are_kept_at_a_size_to_be_drawn():
    evaluator = SegmentationEvaluator(LABELS, ignore_label=255, num_pictures=1)
    label = np.arange(2200 * 30, dtype=np.uint8).reshape(1, 2200, 30) % 5
    batch = {"index": np.array([0]), "mask": np.array([True]), "size": np.array([[2100, 28]]), "label": label}
    batch["image"] = np.repeat(label[..., None], 3, axis=-1)
    evaluator.add(batch, np.zeros((5, 5), np.int64), label)
    [picture] = evaluator.pictures
    assert picture.image.shape == (700, 10, 3)
    np.testing.assert_array_equal(picture.label, label[0, :2100:3, :28:3])
    np.testing.assert_array_equal(picture.prediction, picture.label)


def test_pictures_of_the_best_and_the_worst_are_written(tmp_path):
    label = np.zeros((3, 20, 30), np.uint8)
    prediction = label.copy()
    prediction[1, :10], prediction[2] = 1, 2
    label[:, 0] = 255
    evaluator = SegmentationEvaluator(LABELS, ignore_label=255, num_pictures=2)
    batch = {"index": np.arange(3), "mask": np.ones(3, bool), "size": np.full((3, 2), (20, 30)), "label": label}
    batch["image"] = np.zeros((3, 20, 30, 3), np.uint8)
    assert evaluator.needs_examples(batch)
    evaluator.add(batch, np.eye(5, dtype=np.int64), prediction)
    assert [caption for _, caption in evaluator.best] == ["IoU 1.000", "IoU 0.263"]
    assert [caption for _, caption in evaluator.worst] == ["IoU 0.000", "IoU 0.263"]
    np.testing.assert_array_equal(evaluator.worst[0][0].prediction, prediction[2])
    assert evaluator.write_files(tmp_path).keys() == {"confusion", "pictures", "best", "worst"}
    assert (tmp_path / "worst.png").stat().st_size > 0
