"""The backbone as operations: the walk of ``models.backbone`` along the layer plan."""

from __future__ import annotations

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.export.graph.builder import GraphBuilder
from flax_mnv2.layer_plan import BlockSpec, StemSpec
from flax_mnv2.models.endpoints import LAST_CONV

_ROOT = "mobilenet_v2"


def add_backbone(builder: GraphBuilder, image: str, config: MobileNetV2Config) -> dict[str, str]:
    """Adds all layers that there are parameters of and returns the edge at every endpoint by its name."""
    plan, act = config.layer_plan, config.hidden_act
    x = _stem(builder, builder.quantized(image, f"{_ROOT}/input"), plan.stem, act)
    endpoints = {"conv_stem": x}
    for block in plan.blocks:
        if not builder.has(f"{_ROOT}/{block.name}/reduce_1x1/convolution/kernel"):
            return endpoints
        endpoints |= _block(builder, x, block, act)
        x = endpoints[block.name]
    if builder.has(f"{_ROOT}/{LAST_CONV}/convolution/kernel"):
        endpoints[LAST_CONV] = builder.layer(x, f"{_ROOT}/{LAST_CONV}", act=act)
    return endpoints


def _stem(builder: GraphBuilder, image: str, spec: StemSpec, act: str) -> str:
    root = f"{_ROOT}/conv_stem"
    x = builder.layer(image, f"{root}/first_conv", act=act, stride=2, pad=spec.pads)
    y = builder.layer(x, f"{root}/expand_1x1", act=act) if spec.expand else x
    y = builder.layer(y, f"{root}/conv_3x3", act=act, depthwise=True)
    y = builder.layer(y, f"{root}/reduce_1x1", act=None)
    return builder.rounded(builder.elementwise("add", x, y), f"{root}/sum") if spec.residual else y


def _block(builder: GraphBuilder, x: str, spec: BlockSpec, act: str) -> dict[str, str]:
    root = f"{_ROOT}/{spec.name}"
    inside = builder.pad(x, spec.dilation) if spec.pads_input else x
    expansion = builder.layer(inside, f"{root}/expand_1x1", act=act)
    window = {"stride": spec.stride, "dilation": spec.dilation, "pad": not spec.pads_input}
    depthwise = builder.layer(expansion, f"{root}/conv_3x3", act=act, depthwise=True, **window)
    y = builder.layer(depthwise, f"{root}/reduce_1x1", act=None)
    if spec.residual:
        y = builder.rounded(builder.elementwise("add", x, y), f"{root}/sum")
    return {f"{spec.name}/expansion": expansion, f"{spec.name}/depthwise": depthwise, spec.name: y}
