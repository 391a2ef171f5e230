"""Parameters and multiply-adds, counted from the layer plan alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.anchors import map_sizes
from flax_mnv2.errors import ConfigError
from flax_mnv2.layer_plan import DEEPLAB_CHANNELS, LayerPlan
from flax_mnv2.models.endpoints import LAST_CONV
from flax_mnv2.models.heads.ssdlite import extra_width

TASKS = ("backbone", "classification", "segmentation", "detection")


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Size and cost of a network."""

    parameters: int  # everything that is learned
    norm_parameters: int  # those of batch norm, which the published counts leave out: they fold into the convolutions
    multiply_adds: int  # of convolutions and the classifier, for one image


@dataclasses.dataclass(frozen=True)
class _Conv:
    in_channels: int  # that one output sees: 1 for a depthwise convolution
    channels: int
    kernel_size: int
    height: int  # of the output
    width: int
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.in_channels * self.channels * self.kernel_size**2


def complexity(
    config: MobileNetV2Config, task: str = "classification", *, image_size: int | tuple[int, int] | None = None
) -> Complexity:
    """Counts a network for one of ``TASKS``, at a side in pixels or (height, width), by default the config's.

    Raises:
      ConfigError: there is no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}; found {task!r}.")
    size = config.image_size if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    convs = [*_backbone(config, height, width, include_last_conv=task != "segmentation")]
    if task == "segmentation":
        convs += _deeplab_head(config, convs[-1])
    if task == "detection":
        convs += _ssdlite_head(config, (height, width))
    if task == "classification" and config.num_labels:
        features = config.layer_plan.last_channels * (2 if config.global_pool == "catavgmax" else 1)
        convs.append(_Conv(features, config.num_labels, 1, 1, 1, bias=True))
    norm_parameters = sum(2 * conv.channels for conv in convs if not conv.bias)
    biases = sum(conv.channels for conv in convs if conv.bias)
    return Complexity(
        parameters=sum(conv.weights for conv in convs) + biases + norm_parameters,
        norm_parameters=norm_parameters,
        multiply_adds=sum(conv.weights * conv.height * conv.width for conv in convs),
    )


def _backbone(config: MobileNetV2Config, height: int, width: int, *, include_last_conv: bool) -> Iterator[_Conv]:
    plan = config.layer_plan
    stem = plan.stem
    height, width = -(-height // 2), -(-width // 2)
    yield _Conv(config.num_channels, stem.channels, 3, height, width)
    if stem.expand:
        yield _Conv(stem.channels, stem.channels, 1, height, width)
    yield _Conv(1, stem.channels, 3, height, width)
    yield _Conv(stem.channels, stem.out_channels, 1, height, width)
    for block in plan.blocks:
        yield _Conv(block.in_channels, block.expanded_channels, 1, height, width)
        height, width = -(-height // block.stride), -(-width // block.stride)
        yield _Conv(1, block.expanded_channels, 3, height, width)
        yield _Conv(block.expanded_channels, block.out_channels, 1, height, width)
    if include_last_conv:
        yield _Conv(plan.blocks[-1].out_channels, plan.last_channels, 1, height, width)


def _deeplab_head(config: MobileNetV2Config, features: _Conv) -> list[_Conv]:
    height, width = features.height, features.width
    return [
        _Conv(features.channels, DEEPLAB_CHANNELS, 1, 1, 1),
        _Conv(features.channels, DEEPLAB_CHANNELS, 1, height, width),
        _Conv(2 * DEEPLAB_CHANNELS, DEEPLAB_CHANNELS, 1, height, width),
        _Conv(DEEPLAB_CHANNELS, config.num_labels, 1, height, width, bias=True),
    ]


def layer_width(plan: LayerPlan, layer: str) -> int:
    """Returns the channels of an endpoint of the backbone."""
    block, _, part = layer.partition("/")
    if block == LAST_CONV:
        return plan.last_channels
    [spec] = [spec for spec in plan.blocks if spec.name == block]
    return spec.expanded_channels if part else spec.out_channels


def _ssdlite_head(config: MobileNetV2Config, image_size: tuple[int, int]) -> Iterator[_Conv]:
    spec, plan = config.detection or DetectionSpec(), config.layer_plan
    sizes, widths = map_sizes(spec, plan, image_size), [layer_width(plan, layer) for layer in spec.feature_layers]
    for channels, size in zip(spec.extra_channels, sizes[len(widths) :], strict=True):
        inner, before = extra_width(config, channels // 2), sizes[len(widths) - 1]
        yield _Conv(widths[-1], inner, 1, *before)
        yield _Conv(1, inner, 3, *size)
        widths.append(extra_width(config, channels))
        yield _Conv(inner, widths[-1], 1, *size)
    for width, size, kinds in zip(widths, sizes, spec.anchors, strict=True):
        for depth in (spec.num_slots(config.num_labels), 4):
            yield _Conv(1, width, 3, *size)
            yield _Conv(width, len(kinds) * depth, 1, *size, bias=True)
