"""The heads as operations: those of ``models.heads``, and what may come after them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import HUGGING_FACE, DeepLabSpec
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.export.graph import operations as ops
from flax_mnv2.export.graph.builder import GraphBuilder
from flax_mnv2.models.endpoints import LAST_CONV

_DEEPLAB, _SSD = "segmentation_head", "detection_head"
_POOL = "pool"  # the range of pooled features, of a model's own
_RANGES = {"class": "class_logits", "box": "box_codes"}
_FAR_ABOVE_1 = 1e30  # times the area of any box; an empty one stays 0


def add_pooling(builder: GraphBuilder, x: str, config: MobileNetV2Config) -> str:
    """Adds the pooling of ``models.layers.pool``: (N, h, w, c) → (N, c'), with ``config.pool_window`` (N, h', w', c').

    Raises:
      ConfigError: a window, and a size that is not known.
    """
    window = config.pool_window and (config.pool_window,) * 2
    kinds = {"avg": ("avg",), "max": ("max",)}.get(config.global_pool, ("avg", "max"))
    pooled = [builder.pool(x, kind, window) for kind in kinds]
    if config.global_pool == "catavgmax":
        return builder.concat(pooled, "pooled")
    if config.global_pool == "avgmax":
        return builder.elementwise("mul", builder.elementwise("add", *pooled), np.float32(0.5))
    return builder.rounded(pooled[0], _POOL)


def add_classifier(builder: GraphBuilder, endpoints: Mapping[str, str], config: MobileNetV2Config) -> str:
    """Adds pooling and the linear layer; returns the logits."""
    pooled = add_pooling(builder, endpoints[LAST_CONV], config)
    if config.num_labels == 0:
        return pooled
    kernel, bias = builder.param("classifier/kernel"), builder.param("classifier/bias")
    if len(builder.shape(pooled)) == 4:
        logits = builder.conv(pooled, "classifier", kernel[None, None], bias)
    else:
        logits = builder.matmul(pooled, "classifier", kernel, bias)
    return builder.rounded(logits, "classifier/output")


# ---- DeepLab -------------------------------------------------------------------------------------------


def add_deeplab(builder: GraphBuilder, endpoints: Mapping[str, str], config: MobileNetV2Config) -> str:
    """Adds the head that ``config.deeplab`` says; returns the logits (N, h, w, num_labels)."""
    spec = config.deeplab or HUGGING_FACE
    act = "relu6" if spec.bounded_activation else "relu"
    x = endpoints[LAST_CONV if spec.reads_last_conv else config.layer_plan.blocks[-1].name]
    x = builder.concat(_branches(builder, x, config, spec, act), f"{_DEEPLAB}/branches")
    x = builder.layer(x, f"{_DEEPLAB}/conv_projection", act=act)
    for index in range(spec.projection_convs):
        x = _wide(builder, x, f"conv_refine_{index}", spec, act, separable=spec.separable_decoder)
    if spec.low_level is not None:
        together = f"{_DEEPLAB}/decoder_input"
        low = builder.layer(endpoints[spec.low_level], f"{_DEEPLAB}/conv_low_level", act=act, range_at=together)
        x = builder.rounded(builder.resize(x, low, align_corners=spec.align_corners), together)
        x = builder.concat((low, x) if spec.low_level_first else (x, low), f"{_DEEPLAB}/joined")
    for index in range(spec.decoder_convs):
        x = _wide(builder, x, f"conv_decoder_{index}", spec, act, separable=spec.separable_decoder)
    return builder.layer(x, f"{_DEEPLAB}/classifier", act=None)


def _branches(builder: GraphBuilder, x: str, config: MobileNetV2Config, spec: DeepLabSpec, act: str) -> list[str]:
    output_stride = config.layer_plan.blocks[-1].output_stride
    pooled, together = [], f"{_DEEPLAB}/branches"  # the range that all share
    if spec.pooling != "none":
        window = spec.pooling_size and tuple((side - 1) // output_stride + 1 for side in spec.pooling_size)
        means = builder.pool(x, "avg", window, spec.pooling_stride, keep_map=True)
        means = builder.rounded(means, f"{_DEEPLAB}/pool")
        means = builder.layer(means, f"{_DEEPLAB}/conv_pool", act="relu", range_at=together)
        pooled = [builder.resize(means, x, align_corners=spec.align_corners)]
    branches = [builder.layer(x, f"{_DEEPLAB}/conv_aspp", act=act, range_at=together)]
    for index, rate in enumerate(spec.rates_at(output_stride), start=1):
        name = f"conv_atrous_{index}"
        options = {"separable": spec.separable_branches, "dilation": rate, "range_at": together}
        branches.append(_wide(builder, x, name, spec, act, **options))
    return pooled + branches if spec.pooling == "first" else branches + pooled


def _wide(
    builder: GraphBuilder,
    x: str,
    name: str,
    spec: DeepLabSpec,
    act: str,
    *,
    separable: bool,
    dilation: int = 1,
    range_at: str | None = None,
) -> str:
    """Adds a 3×3 convolution of the head, dense or in two."""
    path = f"{_DEEPLAB}/{name}"
    if not separable:
        return builder.layer(x, path, act=act, dilation=dilation, range_at=range_at)
    inner = f"{path}/conv_3x3"
    if spec.inner_norm:
        x = builder.layer(x, inner, act=act, dilation=dilation, depthwise=True)
    else:
        x = builder.conv(x, inner, builder.param(f"{inner}/kernel"), dilation=dilation, depthwise=True)
        x = builder.rounded(x, f"{inner}_output")
    return builder.layer(x, f"{path}/reduce_1x1", act=act, range_at=range_at)


# ---- SSDLite -------------------------------------------------------------------------------------------


def add_ssdlite(
    builder: GraphBuilder, endpoints: Mapping[str, str], config: MobileNetV2Config, box_order: str
) -> tuple[str, str]:
    """Adds the extra maps and the predictors; returns logits (N, A, slots) and box codes (N, A, 4).

    The codes come in ``box_order``, ``"yxhw"`` or ``"xywh"``, whatever that of the network is: the predictors' kernels
    are ordered so.
    """
    spec, act = config.detection or DetectionSpec(), config.hidden_act
    maps = [endpoints[name] for name in spec.feature_layers]
    for index in range(len(spec.extra_channels)):
        x = builder.layer(maps[-1], f"{_SSD}/extra_{index}_squeeze", act=act)
        x = builder.layer(x, f"{_SSD}/extra_{index}_conv_3x3", act=act, stride=2, depthwise=True)
        maps.append(builder.layer(x, f"{_SSD}/extra_{index}_expand", act=act))
    swapped = [1, 0, 3, 2] if spec.box_order != box_order else [0, 1, 2, 3]
    rows: dict[str, list[str]] = {"class": [], "box": []}
    for index, (x, kinds) in enumerate(zip(maps, spec.anchors, strict=True)):
        for what, depth in (("class", spec.num_slots(config.num_labels)), ("box", 4)):
            order = (4 * np.arange(len(kinds))[:, None] + swapped).reshape(-1) if what == "box" else None
            y = builder.layer(x, f"{_SSD}/{what}_{index}_conv_3x3", act=act, depthwise=True)
            range_at = f"{_SSD}/{_RANGES[what]}"  # all maps share it
            y = builder.layer(y, f"{_SSD}/{what}_{index}_predictor", act=None, order=order, range_at=range_at)
            rows[what].append(builder.rows(y, depth))
    logits, codes = (builder.concat(rows[what], f"{_SSD}/{what}", axis=1) for what in ("class", "box"))
    return builder.real(logits), builder.real(codes)


def add_decoding(
    builder: GraphBuilder, codes: str, anchors: np.ndarray, spec: DetectionSpec, box_order: str
) -> tuple[str, str]:
    """Adds the decoding of codes (N, A, 4) in ``box_order`` to centres and sizes, (N, A, 2) each, in the same.

    ``anchors`` are (A, 4), centre y, x, height, width.
    """
    order = [0, 1, 2, 3] if box_order == "yxhw" else [1, 0, 3, 2]
    anchors, scales = anchors[:, order], np.float32(spec.box_scales)[order]
    centre = builder.elementwise("mul", builder.slice(codes, 0, 2), anchors[:, 2:] / scales[:2])
    centre = builder.elementwise("add", centre, anchors[:, :2])
    size = builder.elementwise("mul", builder.slice(codes, 2, 4), 1 / scales[2:])
    if spec.max_log_size is not None:
        size = builder.elementwise("min", size, np.float32(spec.max_log_size))
        size = builder.elementwise("max", size, np.float32(-spec.max_log_size))
    return centre, builder.elementwise("mul", builder.elementwise("exp", size), anchors[:, 2:])


def add_suppression(
    builder: GraphBuilder, logits: str, centre: str, size: str, spec: DetectionSpec, *, threshold: float
) -> dict[str, str]:
    """Adds what makes detections of logits, and of centres and sizes (y, x); returns edges by name.

    As in ``detection.suppression.detect``, boxes are cut to the image first, and empty ones have no score.
    """
    half = builder.elementwise("mul", size, np.float32(0.5))
    corners = [builder.elementwise(kind, centre, half) for kind in ("sub", "add")]
    corners = [builder.elementwise("min", x, np.float32(1)) for x in corners]
    low, high = (builder.elementwise("max", x, np.float32(0)) for x in corners)
    extent = builder.elementwise("max", builder.elementwise("sub", high, low), np.float32(0))
    area = builder.elementwise("mul", builder.slice(extent, 0, 1), builder.slice(extent, 1, 2))
    is_box = builder.elementwise("min", builder.elementwise("mul", area, np.float32(_FAR_ABOVE_1)), np.float32(1))
    scores = builder.elementwise("softmax" if spec.score == "softmax" else "sigmoid", logits)
    if spec.background == "last":
        scores = builder.slice(scores, 0, builder.shape(scores)[-1] - 1)
    scores = builder.elementwise("mul", scores, is_box)
    batch, num_anchors, slots = builder.shape(scores)
    background = int(spec.background == "first")
    num_kept = min(spec.max_detections, (slots - background) * min(spec.max_per_class, num_anchors))
    outputs = {
        "boxes": builder.edge("detected_boxes", (batch, num_kept, 4)),
        "labels": builder.edge("detected_labels", (batch, num_kept), "int64"),
        "scores": builder.edge("detected_scores", (batch, num_kept)),
        "num_detections": builder.edge("detected_number", (batch,), "int64"),
    }
    builder.add_many(
        ops.Suppression,
        (builder.concat((low, high), f"{_SSD}/corners"), scores),
        tuple(outputs.values()),
        background=background,
        iou=spec.nms_iou,
        threshold=threshold,
        max_per_class=spec.max_per_class,
        max_detections=num_kept,
    )
    return outputs
