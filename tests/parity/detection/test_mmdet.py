"""mmdet's SSDLite, built here in its layout: weights both ways, the network, its anchors and boxes."""

import jax
import numpy as np
import pytest

from flax_mnv2 import CheckpointError, ConfigError, from_state_dict, to_state_dict
from flax_mnv2.config.detection import PRESETS
from flax_mnv2.weights.formats import FORMATS
from flax_mnv2.weights.opening import open_state_dict

NUM_LABELS = 80
MIN_SIZES, MAX_SIZES = (48, 100, 150, 202, 253, 304), (100, 150, 202, 253, 304, 320)
STRIDES = (16, 32, 64, 107, 160, 320)


@pytest.fixture(scope="module")
def detector(transformers, randomize):
    """``SingleStageDetector`` with mmdet's names, at random weights."""
    import mmdet_modules

    return randomize(mmdet_modules.SSD(), seed=0)


def _anchors():
    """(3234, 4) corners x, y, x, y in pixels of 320×320, as ``SSDAnchorGenerator`` makes them."""
    rows = []
    for stride, count, low, high in zip(STRIDES, (20, 10, 5, 3, 2, 1), MIN_SIZES, MAX_SIZES, strict=True):
        kinds = [(low, low), (np.sqrt(low * high),) * 2]
        kinds += [(low * np.sqrt(ratio), low / np.sqrt(ratio)) for ratio in (2, 1 / 2, 3, 1 / 3)]  # of width to height
        for y in range(count):
            for x in range(count):
                centre = np.array([(x + 0.5) * stride, (y + 0.5) * stride])
                rows += [np.concatenate([centre - np.array(kind) / 2, centre + np.array(kind) / 2]) for kind in kinds]
    return np.array(rows)


def _delta2bbox(anchors, deltas):
    """mmdet's decoder, with standard deviations (.1, .1, .2, .2), before boxes are cut to the image."""
    deltas = deltas * [0.1, 0.1, 0.2, 0.2]
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = (anchors[:, 2:] + anchors[:, :2]) / 2 + sides * deltas[..., :2]
    limit = np.abs(np.log(16 / 1000))
    half = sides * np.exp(np.clip(deltas[..., 2:], -limit, limit)) / 2
    return np.concatenate([centres - half, centres + half], axis=-1)


@pytest.mark.parametrize("size", [(320, 320), (257, 383)])
def test_network_anchors_and_boxes_are_mmdets(detector, assert_close, size):
    import torch

    images = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    with torch.no_grad():
        logits, codes = detector(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    model, variables = from_state_dict(detector.state_dict())
    ours = jax.jit(model.apply)(variables, images)
    assert_close(ours.logits, logits, name="logits")
    assert_close(ours.box_codes, codes, name="box codes")
    if size == (320, 320):
        corners = _anchors()
        centres = np.concatenate([corners[:, :2] + corners[:, 2:], 2 * (corners[:, 2:] - corners[:, :2])], -1) / 2 / 320
        np.testing.assert_allclose(model.anchors(size)[:, [1, 0, 3, 2]], centres, atol=1e-6)
        x, y, width, height = np.moveaxis(np.asarray(ours.pred_boxes) * 320, -1, 0)
        boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
        assert_close(boxes, _delta2bbox(corners, codes.numpy().astype(np.float64)), name="boxes")


def test_weights_say_the_network_and_come_back(detector):
    state = detector.state_dict()
    source = open_state_dict(state)
    config = source.config
    assert (config.depth_multiplier, config.num_labels, config.tf_padding) == (1.0, NUM_LABELS, False)
    assert (config.id2label[0], config.id2label[79]) == ("person", "toothbrush")
    assert config.detection == PRESETS["mmdet"]
    processor = source.processor()
    assert (processor.size, processor.image_mean[0]) == ({"height": 320, "width": 320}, 0.485)
    again = FORMATS["mmdet"].state_dict(source.checkpoint())
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[name], value.numpy()) for name, value in state.items())
    with pytest.raises(CheckpointError, match=r"missing(.|\n)*bbox_head\.cls_convs\.5\.1\.bias"):
        from_state_dict({name: value for name, value in state.items() if name != "bbox_head.cls_convs.5.1.bias"})


def test_neither_library_takes_the_others_network(detector):
    model, variables = from_state_dict(detector.state_dict())
    with pytest.raises(
        ConfigError, match=r"(?s)needs True, the source has False.*detection\.score: .*'sigmoid'.*'softmax'"
    ):
        to_state_dict(model, variables, "tf_detection")
    with pytest.raises(ConfigError, match="transformers has no MobileNetV2 for detection"):
        to_state_dict(model, variables, "hf")
