"""mmdet's SSDLite, built here in its layout: weights both ways, the network, its anchors and boxes."""

import itertools

import jax
import numpy as np
import pytest

from flax_mnv2 import CheckpointError, ConfigError, from_state_dict, to_state_dict
from flax_mnv2.config.detection import PRESETS
from flax_mnv2.weights.formats import FORMATS
from flax_mnv2.weights.opening import open_state_dict

NUM_LABELS = 80
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
MIN_SIZES, MAX_SIZES = (48, 100, 150, 202, 253, 304), (100, 150, 202, 253, 304, 320)
STRIDES = (16, 32, 64, 107, 160, 320)


@pytest.fixture(scope="module")
def detector(transformers, randomize):
    """``SingleStageDetector`` with mmdet's names, at random weights."""
    import torch
    from torch import nn

    class ConvModule(nn.Module):
        def __init__(self, inputs, outputs, size=1, stride=1, groups=1, act=True):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
            self.bn, self.act = nn.BatchNorm2d(outputs, eps=1e-3), act

        def forward(self, x):
            x = self.bn(self.conv(x))
            return nn.functional.relu6(x) if self.act else x

    class InvertedResidual(nn.Module):
        def __init__(self, inputs, outputs, stride, ratio):
            super().__init__()
            inner, self.shortcut = inputs * ratio, stride == 1 and inputs == outputs
            if ratio != 1:
                self.expand_conv = ConvModule(inputs, inner)
            self.depthwise_conv = ConvModule(inner, inner, 3, stride, inner)
            self.linear_conv = ConvModule(inner, outputs, act=False)

        def forward(self, x):
            y = self.expand_conv(x) if hasattr(self, "expand_conv") else x
            y = self.linear_conv(self.depthwise_conv(y))
            return x + y if self.shortcut else y

    class MobileNetV2(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, inputs = ConvModule(3, 32, 3, 2), 32
            for stage, (ratio, outputs, count, stride) in enumerate(STAGES, start=1):
                blocks = []
                for index in range(count):
                    blocks.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, ratio))
                    inputs = outputs
                setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            self.conv2 = ConvModule(320, 1280)

        def forward(self, x):
            x, maps = self.conv1(x), []
            for stage in range(1, 8):
                x = getattr(self, f"layer{stage}")(x)
                maps.append(x)
            return maps[4], self.conv2(x)

    class Separable(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.depthwise_conv = ConvModule(inputs, inputs, 3, 2, inputs)
            self.pointwise_conv = ConvModule(inputs, outputs)

        def forward(self, x):
            return self.pointwise_conv(self.depthwise_conv(x))

    class SSDNeck(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (1280, 512, 256, 256, 128)
            pairs = itertools.pairwise(widths)
            self.extra_layers = nn.ModuleList(
                nn.Sequential(ConvModule(inputs, outputs // 2), Separable(outputs // 2, outputs))
                for inputs, outputs in pairs
            )

        def forward(self, maps):
            maps = list(maps)
            for layer in self.extra_layers:
                maps.append(layer(maps[-1]))
            return maps

    class SSDHead(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (96, 1280, 512, 256, 256, 128)

            def predictors(depth):
                return nn.ModuleList(
                    nn.Sequential(ConvModule(width, width, 3, groups=width), nn.Conv2d(width, 6 * depth, 1))
                    for width in widths
                )

            self.cls_convs, self.reg_convs = predictors(NUM_LABELS + 1), predictors(4)

        def forward(self, maps):
            rows = []
            for layers, depth in ((self.cls_convs, NUM_LABELS + 1), (self.reg_convs, 4)):
                outputs = [layer(x) for layer, x in zip(layers, maps, strict=True)]
                rows.append(torch.cat([y.permute(0, 2, 3, 1).reshape(len(y), -1, depth) for y in outputs], dim=1))
            return rows

    class SSD(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.neck, self.bbox_head = MobileNetV2(), SSDNeck(), SSDHead()

        def forward(self, images):
            return self.bbox_head(self.neck(self.backbone(images)))

    return randomize(SSD(), seed=0)


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
