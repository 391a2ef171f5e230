"""DeepLab of VainF's repository and of mmseg as PyTorch modules, with their names, from descriptions of their code.

Both take a block table, so that a test can have few and narrow blocks: rows of (channels, blocks, stride).
"""

import torch
from torch import nn
from torch.nn import functional

EXPANSION = 6


def resize(x, size):
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def conv_norm(fan_in, fan_out, kernel=1, *, act=nn.ReLU, padding=0, **window):
    layers = [nn.Conv2d(fan_in, fan_out, kernel, padding=padding, bias=False, **window), nn.BatchNorm2d(fan_out)]
    return layers + ([act()] if act else [])


# ---- VainF -----------------------------------------------------------------------------------------------------------


class VainFBlock(nn.Module):
    """Pads its input by the dilation, before the expansion; no convolution inside pads."""

    def __init__(self, fan_in, fan_out, stride, dilation, expansion):
        super().__init__()
        hidden = fan_in * expansion
        self.padding, self.has_shortcut = dilation, stride == 1 and fan_in == fan_out
        depthwise = conv_norm(hidden, hidden, 3, act=nn.ReLU6, stride=stride, dilation=dilation, groups=hidden)
        parts = [nn.Sequential(*conv_norm(fan_in, hidden, act=nn.ReLU6))] if expansion != 1 else []
        self.conv = nn.Sequential(*parts, nn.Sequential(*depthwise), *conv_norm(hidden, fan_out, act=None))

    def forward(self, x):
        y = self.conv(functional.pad(x, (self.padding,) * 4))
        return x + y if self.has_shortcut else y


class VainFBackbone(nn.Module):
    def __init__(self, table, output_stride):
        super().__init__()
        layers = [nn.Sequential(*conv_norm(3, 32, 3, act=nn.ReLU6, stride=2)), VainFBlock(32, 16, 1, 1, 1)]
        width, stride_now, dilation = 16, 2, 1
        for channels, repeats, stride in table:
            before = dilation
            if stride_now == output_stride:
                dilation, stride = dilation * stride, 1
            stride_now *= stride
            for index in range(repeats):
                first = index == 0
                block = VainFBlock(width, channels, stride if first else 1, before if first else dilation, EXPANSION)
                layers.append(block)
                width = channels
        features = nn.Sequential(*layers)
        self.low_level_features, self.high_level_features = features[:4], features[4:]

    def forward(self, x):
        low_level = self.low_level_features(x)
        return low_level, self.high_level_features(low_level)


def made_separable(layers):
    """Each 3×3 convolution as VainF's ``convert_to_separable_conv`` leaves it."""
    return [SeparableBody(layer) if getattr(layer, "kernel_size", (1,))[0] > 1 else layer for layer in layers]


class SeparableBody(nn.Module):
    def __init__(self, conv):
        super().__init__()
        window = {"padding": conv.padding, "dilation": conv.dilation, "groups": conv.in_channels}
        self.body = nn.Sequential(
            nn.Conv2d(conv.in_channels, conv.in_channels, 3, bias=False, **window),
            nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False),
        )

    def forward(self, x):
        return self.body(x)


class VainFASPP(nn.Module):
    def __init__(self, fan_in, rates, kind):
        super().__init__()
        atrous = [conv_norm(fan_in, 256, 3, padding=rate, dilation=rate) for rate in rates]
        pooled = [nn.AdaptiveAvgPool2d(1), *conv_norm(fan_in, 256)]
        self.convs = nn.ModuleList(
            nn.Sequential(*layers) for layers in (conv_norm(fan_in, 256), *map(kind, atrous), pooled)
        )
        self.project = nn.Sequential(*conv_norm(256 * (len(rates) + 2), 256), nn.Dropout(0.1))

    def forward(self, x):
        outputs = [conv(x) for conv in self.convs]
        outputs[-1] = resize(outputs[-1], x.shape[2:])
        return self.project(torch.cat(outputs, 1))


class VainFHead(nn.Module):
    def __init__(self, fan_in, low_level, rates, num_classes, kind):
        super().__init__()
        self.project = nn.Sequential(*conv_norm(low_level, 48))
        self.aspp = VainFASPP(fan_in, rates, kind)
        self.classifier = nn.Sequential(*kind(conv_norm(304, 256, 3, padding=1)), nn.Conv2d(256, num_classes, 1))

    def forward(self, low_level, x):
        low_level = self.project(low_level)
        return self.classifier(torch.cat([low_level, resize(self.aspp(x), low_level.shape[2:])], 1))


class VainFHeadV3(nn.Module):
    def __init__(self, fan_in, rates, num_classes, kind):
        super().__init__()
        after = kind(conv_norm(256, 256, 3, padding=1))
        self.classifier = nn.Sequential(VainFASPP(fan_in, rates, kind), *after, nn.Conv2d(256, num_classes, 1))

    def forward(self, low_level, x):
        return self.classifier(x)


class VainF(nn.Module):
    """``deeplabv3plus_mobilenet`` or ``deeplabv3_mobilenet``, up to the logits before their last resizing."""

    def __init__(self, table, output_stride, num_classes, *, plus, separable=False):
        super().__init__()
        rates, kind = (12, 24, 36) if output_stride == 8 else (6, 12, 18), made_separable if separable else list
        fan_in, low_level = table[-1][0], table[0][0]
        self.backbone = VainFBackbone(table, output_stride)
        head = VainFHead(fan_in, low_level, rates, num_classes, kind) if plus else None
        self.classifier = head or VainFHeadV3(fan_in, rates, num_classes, kind)

    def forward(self, x):
        return self.classifier(*self.backbone(x))


# ---- mmseg -----------------------------------------------------------------------------------------------------------


class ConvModule(nn.Module):
    def __init__(self, fan_in, fan_out, kernel=1, *, act=nn.ReLU, **window):
        super().__init__()
        self.conv, self.bn, *rest = conv_norm(fan_in, fan_out, kernel, act=act, **window)
        self.activate = rest[0] if rest else nn.Identity()

    def forward(self, x):
        return self.activate(self.bn(self.conv(x)))


class SeparableModule(nn.Module):
    def __init__(self, fan_in, fan_out, dilation=1):
        super().__init__()
        window = {"padding": dilation, "dilation": dilation, "groups": fan_in}
        self.depthwise_conv = ConvModule(fan_in, fan_in, 3, **window)
        self.pointwise_conv = ConvModule(fan_in, fan_out)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


class MmsegBlock(nn.Module):
    def __init__(self, fan_in, fan_out, stride, dilation, expansion):
        super().__init__()
        hidden = fan_in * expansion
        self.has_shortcut = stride == 1 and fan_in == fan_out
        window = {"stride": stride, "padding": dilation, "dilation": dilation, "groups": hidden}
        parts = [ConvModule(fan_in, hidden, act=nn.ReLU6)] if expansion != 1 else []
        parts += [ConvModule(hidden, hidden, 3, act=nn.ReLU6, **window), ConvModule(hidden, fan_out, act=None)]
        self.conv = nn.Sequential(*parts)

    def forward(self, x):
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MmsegBackbone(nn.Module):
    """``strides`` and ``dilations`` are the config's: those of the first block of each stage, the unexpanded too."""

    def __init__(self, table, strides, dilations):
        super().__init__()
        self.conv1 = ConvModule(3, 32, 3, act=nn.ReLU6, stride=2, padding=1)
        width, self.stages = 32, len(table) + 1
        for stage, (channels, repeats, _) in enumerate(((16, 1, 1), *table), start=1):
            blocks = []
            for index in range(repeats):
                window = (strides[stage - 1], dilations[stage - 1]) if index == 0 else (1, 1)
                blocks.append(MmsegBlock(width, channels, *window, 1 if stage == 1 else EXPANSION))
                width = channels
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))

    def forward(self, x):
        x, outputs = self.conv1(x), []
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
            outputs.append(x)
        return outputs[1], outputs[-1]


class MmsegHead(nn.Module):
    def __init__(self, fan_in, low_level, channels, num_classes, *, plus):
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(fan_in, channels))
        rates = (12, 24, 36)
        if plus:
            atrous = [SeparableModule(fan_in, channels, rate) for rate in rates]
            self.c1_bottleneck = ConvModule(low_level, 48)
            self.sep_bottleneck = nn.Sequential(
                SeparableModule(channels + 48, channels), SeparableModule(channels, channels)
            )
        else:
            atrous = [ConvModule(fan_in, channels, 3, padding=rate, dilation=rate) for rate in rates]
        self.aspp_modules = nn.ModuleList([ConvModule(fan_in, channels), *atrous])
        self.bottleneck = ConvModule(5 * channels, channels, 3, padding=1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.plus = plus

    def forward(self, low_level, x):
        pooled = resize(self.image_pool(x), x.shape[2:])
        x = self.bottleneck(torch.cat([pooled, *(module(x) for module in self.aspp_modules)], 1))
        if self.plus:
            low_level = self.c1_bottleneck(low_level)
            x = self.sep_bottleneck(torch.cat([resize(x, low_level.shape[2:]), low_level], 1))
        return self.conv_seg(x)


class Mmseg(nn.Module):
    """The segmentor of a ``m-v2-d8`` config, with an auxiliary head as in its checkpoints, up to the logits."""

    def __init__(self, table, strides, dilations, num_classes, *, plus, channels=512):
        super().__init__()
        self.backbone = MmsegBackbone(table, strides, dilations)
        self.decode_head = MmsegHead(table[-1][0], table[0][0], channels, num_classes, plus=plus)
        self.auxiliary_head = nn.Sequential(ConvModule(table[3][0], 8, 3, padding=1))

    def forward(self, x):
        return self.decode_head(*self.backbone(x))
