"""Parameters and multiply-adds, counted from the layer plan alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import HUGGING_FACE, DeepLabSpec
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.anchors import map_sizes
from flax_mnv2.errors import ConfigError
from flax_mnv2.layer_plan import LayerPlan
from flax_mnv2.models.endpoints import LAST_CONV, check_endpoint, endpoint_names
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
    norm: bool = True  # where there is no bias

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
    spec = config.deeplab or HUGGING_FACE
    convs = [*_backbone(config, height, width, include_last_conv=task != "segmentation" or spec.reads_last_conv)]
    if task == "segmentation":
        convs += _deeplab_head(config, spec, convs)
    if task == "detection":
        convs += _ssdlite_head(config, (height, width))
    if task == "classification" and config.num_labels:
        features = config.layer_plan.last_channels * (2 if config.global_pool == "catavgmax" else 1)
        convs.append(_Conv(features, config.num_labels, 1, 1, 1, bias=True))
    norm_parameters = sum(2 * conv.channels for conv in convs if conv.norm and not conv.bias)
    biases = sum(conv.channels for conv in convs if conv.bias)
    return Complexity(
        parameters=sum(conv.weights for conv in convs) + biases + norm_parameters,
        norm_parameters=norm_parameters,
        multiply_adds=sum(conv.weights * conv.height * conv.width for conv in convs),
    )


def _backbone(config: MobileNetV2Config, height: int, width: int, *, include_last_conv: bool) -> Iterator[_Conv]:
    plan = config.layer_plan
    stem = plan.stem
    height, width = ((side if stem.pads else side - 2) for side in (height, width))
    height, width = -(-height // 2), -(-width // 2)
    yield _Conv(config.num_channels, stem.channels, 3, height, width)
    if stem.expand:
        yield _Conv(stem.channels, stem.channels, 1, height, width)
    yield _Conv(1, stem.channels, 3, height, width)
    yield _Conv(stem.channels, stem.out_channels, 1, height, width)
    for block in plan.blocks:
        margin = 2 * block.dilation * block.pads_input
        yield _Conv(block.in_channels, block.expanded_channels, 1, height + margin, width + margin)
        height, width = -(-height // block.stride), -(-width // block.stride)
        yield _Conv(1, block.expanded_channels, 3, height, width)
        yield _Conv(block.expanded_channels, block.out_channels, 1, height, width)
    if include_last_conv:
        yield _Conv(plan.blocks[-1].out_channels, plan.last_channels, 1, height, width)


def _deeplab_head(config: MobileNetV2Config, spec: DeepLabSpec, backbone: Sequence[_Conv]) -> Iterator[_Conv]:
    features, width = backbone[-1], spec.channels

    def conv(in_channels: int, channels: int, kernel_size: int = 1, **fields: Any) -> _Conv:
        return _Conv(in_channels, channels, kernel_size, at.height, at.width, **fields)

    def three_by_three(in_channels: int, *, separable: bool) -> Iterator[_Conv]:
        if not separable:
            yield conv(in_channels, width, 3)
            return
        yield conv(1, in_channels, 3, norm=spec.inner_norm)
        yield conv(in_channels, width)

    at, branches = features, 1
    if spec.pooling != "none":  # counted once; over windows it is a few more multiply-adds
        yield _Conv(features.channels, width, 1, 1, 1)
        branches += 1
    yield conv(features.channels, width)
    for _ in spec.atrous_rates:
        yield from three_by_three(features.channels, separable=spec.separable_branches)
    yield conv((branches + len(spec.atrous_rates)) * width, width, spec.projection_kernel)
    for _ in range(spec.projection_convs):
        yield from three_by_three(width, separable=spec.separable_decoder)
    channels = width
    if spec.low_level is not None:
        at = _at_endpoint(config, spec.low_level, backbone)
        yield conv(at.channels, spec.low_level_channels)
        channels += spec.low_level_channels
    for _ in range(spec.decoder_convs):
        yield from three_by_three(channels, separable=spec.separable_decoder)
        channels = width
    yield conv(channels, config.num_labels, bias=True)


def _at_endpoint(config: MobileNetV2Config, name: str, backbone: Sequence[_Conv]) -> _Conv:
    """Returns the convolution of the backbone that gives an endpoint."""
    plan = config.layer_plan
    check_endpoint(name, endpoint_names(plan), "deeplab.low_level")
    block, _, part = name.partition("/")
    stem = 4 if plan.stem.expand else 3
    names = {"conv_stem": stem - 1} | {row.name: stem + 3 * index + 2 for index, row in enumerate(plan.blocks)}
    return backbone[names.get(block, -1) - (part == "depthwise")]


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
