"""From logits to a label map of the photo's own size."""

import jax.numpy as jnp
import numpy as np
import predicting
import pytest

from flax_mnv2 import MobileNetV2ForSemanticSegmentation
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.losses import upsample_logits
from flax_mnv2.tasks.segmentation.predictor import SegmentationPredictor, class_fractions, label_map


@pytest.mark.parametrize("shape", [(5, 7, 4), (1, 3, 4), (1, 1, 2), (9, 9, 300)])
def test_label_maps_are_the_largest_interpolated_logits(shape):
    logits = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    size = (37, 53)
    ours = label_map(logits, canvas=(40, 40), region=(40, 40), size=size)
    assert ours.dtype == (np.uint8 if shape[-1] <= 256 else np.uint16)
    upsampled = upsample_logits(jnp.asarray(logits)[None], size)[0]
    np.testing.assert_array_equal(ours, np.asarray(jnp.argmax(upsampled, axis=-1)))
    assert len(np.unique(ours)) > 1 or shape[:2] == (1, 1)


def test_the_label_map_of_a_part_is_a_part_of_the_label_map():
    logits = np.random.default_rng(2).normal(size=(5, 5, 3)).astype(np.float32)
    whole = label_map(logits, canvas=(65, 65), region=(65, 65), size=(65, 65))
    part = label_map(logits, canvas=(65, 65), region=(30, 47), size=(30, 47))
    np.testing.assert_array_equal(part, whole[:30, :47])
    # At three times the size, every third pixel has the same centre.
    large = label_map(logits, canvas=(65, 65), region=(30, 47), size=(90, 141))
    np.testing.assert_array_equal(large[1::3, 1::3], part)


def test_of_equal_logits_the_lowest_class_wins():
    assert not label_map(np.ones((3, 3, 4)), canvas=(9, 9), region=(9, 9), size=(20, 20)).any()


def test_shares_are_sorted_and_complete():
    mask = np.array([[2, 2, 0], [2, 4, 0]], np.uint8)
    fractions = class_fractions(mask, dict(enumerate(predicting.LABELS)))
    assert [(item.index, item.label, item.fraction) for item in fractions] == [
        (2, "bird", 3 / 6),
        (0, "background", 2 / 6),
        (4, "a dog, or a wolf", 1 / 6),
    ]


@pytest.mark.parametrize(
    ("size", "do_resize", "region", "side"),
    [
        ((60, 90), True, (43, 65), 65),
        ((200, 100), True, (65, 32), 65),
        ((1, 1000), True, (1, 65), 65),
        ((60, 90), False, (60, 90), 129),
        ((20, 30), False, (20, 30), 129),  # no smaller than the network's size
        ((129, 30), False, (129, 30), 129),
        ((130, 30), False, (130, 30), 257),
        ((300, 2050), False, (150, 1025), 1025),
    ],
)
def test_a_photo_is_framed_whole(tiny_blocks, size, do_resize, region, side):
    model = MobileNetV2ForSemanticSegmentation(predicting.CONFIG)
    processor = MobileNetV2ImageProcessor(do_resize=do_resize, size=72, crop_size=64)
    photo = np.full((*size, 3), 255, np.uint8)
    example = SegmentationPredictor(model, {}, processor).prepare(photo)
    assert example.pixels.shape == (side, side, 3)
    assert (example.pixels[: region[0], : region[1]] == 1).all()
    assert np.count_nonzero(example.pixels) == 3 * region[0] * region[1]  # 0, the mean, elsewhere
