"""Anchors against a table of loops, and box codes there and back."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import anchors_of, corners, encode

from flax_mnv2 import ConfigError, MobileNetV2Config
from flax_mnv2.config.detection import DetectionSpec, ssd_anchors
from flax_mnv2.detection import boxes
from flax_mnv2.detection.anchors import make_anchors


@pytest.mark.parametrize(("size", "count"), [((300, 300), 1917), ((320, 320), 2034), ((257, 383), None)])
def test_the_originals_anchors(size, count):
    maps = [tuple(-(-side // stride) for side in size) for stride in (16, 32, 64, 128, 256, 512)]
    found = make_anchors(DetectionSpec(), size, maps)
    expected = anchors_of(*size, maps)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    assert count is None or len(found) == count


def test_strides_put_anchors_where_mmdet_has_them():
    spec = DetectionSpec(anchors=(((0.15, 0.15),),) * 6, strides=(16, 32, 64, 107, 160, 320))
    found = make_anchors(spec, (320, 320), [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)])
    at = 400 + 100 + 25  # the first of the map with a stride of 107
    np.testing.assert_allclose(found[at : at + 3, 1] * 320, [53.5, 160.5, 267.5], rtol=1e-6)


def test_codes_come_back_and_are_the_formula():
    rng, spec = np.random.default_rng(0), DetectionSpec()
    anchors = anchors_of(64, 64, [(2, 3), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]).astype(np.float32)
    low = rng.random((2, len(anchors), 2))
    truth = np.concatenate([low, low + 0.1 + rng.random(low.shape)], -1).astype(np.float32)
    codes = boxes.encode(jnp.asarray(truth), jnp.asarray(anchors), spec)
    scales = np.array(spec.box_scales)
    expected = [[encode(box, anchor, scales) for box, anchor in zip(row, anchors, strict=True)] for row in truth]
    np.testing.assert_allclose(codes, expected, atol=1e-4)
    np.testing.assert_allclose(boxes.decode(codes, anchors, spec), truth, atol=1e-5)
    np.testing.assert_allclose(
        boxes.to_corners(jnp.asarray(anchors)), [corners(anchor) for anchor in anchors], atol=1e-6
    )
    clamped = boxes.decode(jnp.full((1, len(anchors), 4), 1e3), anchors, spec.replace(max_log_size=np.log(62.5)))
    np.testing.assert_allclose(boxes.to_centres(clamped)[..., 2:], 62.5 * anchors[None, :, 2:], rtol=1e-4)


def test_a_spec_goes_through_json_and_its_fields_are_checked():
    config = MobileNetV2Config(detection={"anchors": ssd_anchors(5), "extra_channels": [64, 64, 64], "nms_iou": 0.5})
    again = MobileNetV2Config.from_dict(config.to_dict())
    assert again == config
    assert hash(again) == hash(config)
    assert again.detection.num_maps == 5
    assert "detection" not in MobileNetV2Config().to_dict()
    for wrong, words in (
        ({"background": "middle"}, "one of 'first', 'last', 'none'"),
        ({"anchors": [[[0.1, 0.1]]]}, "for each map"),
        ({"score": "softmax", "background": "none"}, "'softmax' where background has a slot"),
        ({"nms": 0.5}, "fields among feature_layers"),
        ({"strides": [16]}, "pixels above 0 for each map"),
    ):
        with pytest.raises(ConfigError, match=words):
            MobileNetV2Config(detection=wrong)
