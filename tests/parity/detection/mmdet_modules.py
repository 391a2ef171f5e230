"""mmdet's SSDLite on MobileNetV2 as its code builds it (3.3.0), with its names; only what a forward pass needs."""

import itertools

import torch
from torch import nn

NUM_LABELS = 80
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


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
