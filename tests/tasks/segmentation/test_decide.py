"""The class of every pixel of large photos: decided in strips, in bounded memory, as it would be all at once."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from flax_mnv2.metrics import confusion_matrix
from flax_mnv2.tasks.segmentation import task as module
from flax_mnv2.tasks.segmentation.decide import View, most_likely, scores_of
from flax_mnv2.tasks.segmentation.task import SegmentationTask


def _views(batch, sizes, classes, seed=0):
    rng = np.random.default_rng(seed)
    return [View(rng.normal(0, 3, (batch, *size, classes)).astype(np.float32), mirrored) for size, mirrored in sizes]


@pytest.mark.parametrize(
    ("batch", "sizes", "size", "classes"),
    [
        (2, [((9, 13), False)], (141, 201), 5),
        (1, [((13, 9), False)], (201, 141), 21),
        (3, [((1, 1), False)], (7, 5), 2),
        (1, [((40, 30), False)], (17, 13), 4),  # more logits than pixels
        (2, [((5, 7), False), ((5, 7), True), ((9, 13), False), ((9, 13), True)], (71, 103), 3),
    ],
)
@pytest.mark.parametrize(("rows", "align_corners"), [(1, False), (8, False), (50, False), (8, True)])
def test_strips_decide_as_the_whole_does(batch, sizes, size, classes, rows, align_corners):
    views = _views(batch, sizes, classes)
    expected = np.asarray(scores_of(views, size, align_corners=align_corners)).argmax(-1)
    strip = batch * rows * size[1] * classes
    found = most_likely(views, size, align_corners=align_corners, whole=0, strip=strip)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(most_likely(views, size, align_corners=align_corners), expected)
    truth = np.random.default_rng(1).integers(0, classes, expected.shape)
    counts = [confusion_matrix(truth, labels, num_classes=classes, ignore_label=255) for labels in (found, expected)]
    np.testing.assert_array_equal(*counts)


def test_twenty_megapixels_take_a_fraction_of_their_scores():
    size, classes = (3648, 5472), 21
    shape = jax.ShapeDtypeStruct((1, 228, 342, classes), np.float32)
    compiled = jax.jit(lambda logits: most_likely([View(logits)], size)).lower(shape).compile()
    scores = size[0] * size[1] * classes * 4
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 4


@pytest.mark.parametrize(
    ("size", "devices", "asked", "given"),
    [
        ((513, 513), 1, 8, 8),
        ((513, 513), 1, 64, 31),
        ((1024, 2048), 1, 8, 4),
        ((3648, 5472), 1, 8, 1),
        ((3648, 5472), 4, 8, 4),
    ],
)
def test_fewer_large_photos_are_evaluated_together(size, devices, asked, given):
    config = SimpleNamespace(data=SimpleNamespace(eval_size=(0, 0)), eval=SimpleNamespace(batch_size=asked))
    task, dataset = SegmentationTask.__new__(SegmentationTask), SimpleNamespace(max_size={"val": size})
    task.config = config
    assert task.eval_batch_size(dataset, "val", num_devices=devices) == given
    config.data.eval_size = (64, 64)
    assert task.eval_batch_size(dataset, "val", num_devices=devices) == asked


def test_batches_of_an_evaluation_are_that_large(monkeypatch, tiny_config, shapes_dir):
    monkeypatch.setattr(module, "MAX_PIXELS_AT_ONCE", 2 * 128 * 128)
    dataset = SegmentationTask.load_dataset(tiny_config.data)
    task = SegmentationTask.for_training(tiny_config, dataset.labels)
    batch_size = task.eval_batch_size(dataset, "val", num_devices=1)
    with task.eval_batches(dataset, split="val", batch_size=batch_size) as batches:
        assert {len(batch["image"]) for batch in batches} == {2}
