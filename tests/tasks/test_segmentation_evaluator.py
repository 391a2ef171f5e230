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
