"""The architecture as typed rows; every width, stride and dilation of the network is computed here and nowhere else."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flax_mnv2.config import MobileNetV2Config

# MobileNetV2, arXiv 1801.04381, table 2: (output channels, blocks, stride of the first block). The row of
# the first block (16 channels, expansion 1) belongs to the stem in Hugging Face's layout.
STEM_CHANNELS, STEM_OUT_CHANNELS, LAST_CHANNELS = 32, 16, 1280
BLOCK_TABLE = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


@dataclasses.dataclass(frozen=True)
class StemSpec:
    """The 3×3 stride-2 convolution and the first, unexpanded block, which Hugging Face joins."""

    channels: int  # of the first convolution and of the depthwise one
    out_channels: int
    expand: bool  # a separate 1×1 convolution stands between them
    residual: bool  # the input of the first block is added to its output
    pads: bool  # the first convolution pads the image


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One inverted residual block: 1×1 expansion, 3×3 depthwise, 1×1 projection."""

    name: str  # layer_00 to layer_15 (more in a deeper network): sorting by name is sorting by depth
    in_channels: int
    expanded_channels: int
    out_channels: int
    stride: int  # 1 or 2, after the network's output stride has been taken into account
    dilation: int  # of the depthwise convolution
    residual: bool  # the input is added to the output
    output_stride: int  # pixels of the image per output pixel, along one side
    pads_input: bool  # the input is padded, before the expansion, not what the depthwise convolution gets


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The whole backbone: stem, blocks (sixteen by default), and the width of the last 1×1 convolution."""

    stem: StemSpec
    blocks: tuple[BlockSpec, ...]
    last_channels: int


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Name and width of the deepest layer at one resolution, for decoders such as feature pyramids."""

    layer: str
    channels: int


def make_divisible(value: float, divisor: int = 8, minimum: int | None = None) -> int:
    """Rounds a channel count to a multiple of ``divisor``, never losing more than a tenth (TF-slim's rule)."""
    rounded = max(divisor if minimum is None else minimum, int(value + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * value else rounded)


def scale_channels(config: MobileNetV2Config, channels: int, depth_multiplier: float) -> int:
    """Returns ``channels`` times the depth multiplier; round-half-to-even is part of Hugging Face's rule."""
    scaled = channels * depth_multiplier
    return make_divisible(round(scaled) if config.round_widths else scaled, config.depth_divisible_by, config.min_depth)


def make_layer_plan(config: MobileNetV2Config, depth_multiplier: float | None = None) -> LayerPlan:
    """Computes every width, stride and dilation of the backbone, by the config's depth multiplier or by another.

    Once the running stride has reached ``output_stride``, a block that would stride keeps its resolution and
    the dilation it came with; the rate doubles from the *next* block on (as in TF-slim and Hugging Face). By the other
    rules it doubles from that block on (segmentation_models_pytorch), or stands in the first block of each stage alone
    (mmseg).
    """
    multiplier = config.depth_multiplier if depth_multiplier is None else depth_multiplier
    scale = functools.partial(scale_channels, config, depth_multiplier=multiplier)
    in_channels = scale(STEM_OUT_CHANNELS)
    stem_channels = STEM_CHANNELS if config.fixed_stem_and_head else scale(STEM_CHANNELS)
    stem = StemSpec(
        channels=stem_channels,
        out_channels=in_channels,
        expand=not config.first_layer_is_expansion,
        residual=config.stem_residual and stem_channels == in_channels,
        pads=not config.pad_block_input,
    )
    *stages, last_stage = BLOCK_TABLE
    stages = [
        (channels, math.ceil(repeats * config.layer_depth_multiplier), step) for channels, repeats, step in stages
    ]
    rows = []
    for channels, repeats, first_stride in (*stages, last_stage):
        rows += [(channels, first_stride, True), *[(channels, 1, False)] * (repeats - 1)]
    blocks, current_stride, rate = [], 2, 1
    for index, (channels, stride, begins_stage) in enumerate(rows):
        dilation = 1
        if current_stride == config.output_stride:
            rates = {"tf": rate, "smp": rate * stride, "mmseg": rate * stride if begins_stage else 1}
            dilation, rate, stride = rates[config.dilation_rule], rate * stride, 1
        current_stride *= stride
        out_channels = scale(channels)
        expanded = round(in_channels * config.expand_ratio)
        blocks.append(
            BlockSpec(
                name=f"layer_{index:02d}",
                in_channels=in_channels,
                expanded_channels=make_divisible(expanded, config.depth_divisible_by, config.min_depth),
                out_channels=out_channels,
                stride=stride,
                dilation=dilation,
                residual=stride == 1 and in_channels == out_channels,
                output_stride=current_stride,
                pads_input=config.pad_block_input,
            )
        )
        in_channels = out_channels
    keep_last = config.fixed_stem_and_head or (config.finegrained_output and multiplier < 1.0)
    last = LAST_CHANNELS if keep_last else scale(LAST_CHANNELS)
    return LayerPlan(stem=stem, blocks=tuple(blocks), last_channels=last)
