"""``DetectionSpec``: what an SSD is beside its backbone, so that TensorFlow's, mmdet's and others are one module."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from flax_mnv2.config.spec import JointRule, Rule, Spec, is_count

BACKGROUNDS = ("first", "last", "none")
SCORES = ("sigmoid", "softmax")
BOX_ORDERS = ("yxhw", "xywh")
# Fields that decide what a network's outputs mean; the others are of training and of what is done with the boxes.
DECIDE_OUTPUTS = (
    *("feature_layers", "anchors", "strides", "box_scales", "box_order", "max_log_size", "background", "score"),
)
Anchors = tuple[tuple[tuple[float, float], ...], ...]


def ssd_anchors(num_maps: int = 6, *, min_scale: float = 0.2, max_scale: float = 0.95) -> Anchors:
    """Returns the anchors of TensorFlow's SSD by map: (height, width) of each as fractions of the image's shorter side.

    Scales grow linearly from map to map; the first has three anchors, of which a small one, all others six (TF Object
    Detection API, ``ssd_anchor_generator`` with ``reduce_boxes_in_lowest_layer``, arXiv 1512.02325).
    """
    step = (max_scale - min_scale) / max(num_maps - 1, 1)
    scales = [min_scale + step * index for index in range(num_maps)] + [1.0]
    maps = [((0.1, 1.0), (min_scale, 2.0), (min_scale, 0.5))]
    for scale, following in itertools.pairwise(scales[1:]):
        ratios = (1.0, 2.0, 0.5, 3.0, 0.3333)  # of width to height; TensorFlow writes a third so
        maps.append((*((scale, ratio) for ratio in ratios), (math.sqrt(scale * following), 1.0)))
    return tuple(
        tuple((scale / math.sqrt(ratio), scale * math.sqrt(ratio)) for scale, ratio in kinds) for kinds in maps
    )


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _fraction(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _at_least_0(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def _is_anchors(value: Any) -> bool:
    sizes = [side for kinds in value for kind in kinds for side in kind]
    pairs = all(len(kind) == 2 for kinds in value for kind in kinds)
    return all(value) and pairs and all(map(_positive, sizes))


_ANCHORS = "for each map a list of (height, width) above 0"
_STRIDES = "None, or pixels above 0 for each map"
_COUNT: Rule = (lambda value: is_count(value, 1, 10_000), "from 1 to 10,000")
_RULES: Mapping[str, Rule] = {
    "feature_layers": (lambda value: bool(value) and all(isinstance(v, str) for v in value), "names of endpoints"),
    "extra_channels": (lambda value: all(isinstance(v, int) and v >= 1 for v in value), "widths of extra maps"),
    "anchors": (_is_anchors, _ANCHORS),
    "strides": (lambda value: value is None or all(map(_positive, value)), _STRIDES),
    "box_scales": (lambda value: len(value) == 4 and all(map(_positive, value)), "4 numbers above 0"),
    "box_order": (lambda value: value in BOX_ORDERS, f"one of {', '.join(map(repr, BOX_ORDERS))}"),
    "max_log_size": (lambda value: value is None or _positive(value), "None, or a number above 0"),
    "background": (lambda value: value in BACKGROUNDS, f"one of {', '.join(map(repr, BACKGROUNDS))}"),
    "score": (lambda value: value in SCORES, f"one of {', '.join(map(repr, SCORES))}"),
    "positive_iou": (_fraction, "from 0 to 1"),
    "negatives_per_positive": (_at_least_0, "at least 0"),
    "min_negatives": (_at_least_0, "at least 0"),
    "mining_iou": (_fraction, "from 0 to 1"),
    "focal_gamma": (_at_least_0, "at least 0"),
    "focal_alpha": (_fraction, "from 0 to 1"),
    "box_loss_weight": (_at_least_0, "at least 0"),
    "class_bias": (lambda value: isinstance(value, int | float) and math.isfinite(value), "a number"),
    "nms_iou": (_fraction, "from 0 to 1"),
    "max_per_class": _COUNT,
    "max_detections": _COUNT,
}
_JOINT_RULES: Mapping[str, JointRule] = {
    "anchors": (lambda spec: len(spec.anchors) == spec.num_maps, _ANCHORS),
    "strides": (lambda spec: spec.strides is None or len(spec.strides) == spec.num_maps, _STRIDES),
    "score": (
        lambda spec: (spec.score, spec.background) != ("softmax", "none"),
        "'sigmoid', or 'softmax' where background has a slot",
    ),
    "focal_gamma": (
        lambda spec: not spec.focal_gamma or spec.score == "sigmoid",
        "at least 0, and 0 with score='softmax'",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class DetectionSpec(Spec):
    """Maps, anchors, box codes, class slots and losses of an SSDLite detector; the defaults are the original's.

    The original is ``ssdlite_mobilenet_v2_coco`` of the TF Object Detection API. Immutable, hashable, checked.

    Attributes:
      feature_layers: endpoints of the backbone that are maps, the finest first (``models.endpoints`` has the names).
      extra_channels: width at α 1 of each map after these, at half the resolution of the one before.
      anchors: by map, (height, width) of each kind of anchor as fractions of the image's shorter side.
      strides: by map, pixels between anchors (mmdet's); None spreads them evenly over the image (TensorFlow's).
      box_scales: factors of the codes of a box: y, x, log height, log width, in this order.
      box_order: of the four codes of a box: ``"yxhw"`` (TensorFlow's) or ``"xywh"`` (mmdet's).
      max_log_size: limit of a decoded log size, where an original has one; None for none.
      background: where the slot of no class is among the logits: ``"first"``, ``"last"``, or ``"none"``.
      score: what makes probabilities of logits: ``"sigmoid"`` or ``"softmax"``.
      positive_iou: overlap from which on an anchor has the class of a box; each box has its best anchor in any case.
      negatives_per_positive: hard negatives in the loss for each positive of an image; ``focal_gamma`` 0 only.
      min_negatives: fewest of an image.
      mining_iou: of boxes that overlap more than this only that of the highest loss is counted; 1 leaves that out.
      focal_gamma: of the focal loss (arXiv 1708.02002), over all anchors; 0 for cross-entropy with hard negatives.
      focal_alpha: weight of positives in the focal loss; negatives have the rest.
      box_loss_weight: of the boxes' Huber loss beside the classes'.
      class_bias: where the bias of the class logits starts; -4.6 is a probability of 1 %.
      nms_iou: overlap above which the less probable of two boxes of a class goes.
      max_per_class: boxes of a class that are left in an image.
      max_detections: boxes that are left in an image.

    Raises:
      ConfigError: a field has the wrong form or is out of range.
    """

    section: ClassVar[str] = "detection"
    rules: ClassVar[Mapping[str, Rule]] = _RULES
    joint_rules: ClassVar[Mapping[str, JointRule]] = _JOINT_RULES

    feature_layers: tuple[str, ...] = ("layer_12/expansion", "conv_1x1")
    extra_channels: tuple[int, ...] = (512, 256, 256, 128)
    anchors: Anchors = dataclasses.field(default_factory=ssd_anchors)
    strides: tuple[float, ...] | None = None
    box_scales: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    box_order: str = "yxhw"
    max_log_size: float | None = None
    background: str = "first"
    score: str = "sigmoid"
    positive_iou: float = 0.5
    negatives_per_positive: float = 3.0
    min_negatives: int = 3
    mining_iou: float = 0.99
    focal_gamma: float = 0.0
    focal_alpha: float = 0.75
    box_loss_weight: float = 1.0
    class_bias: float = 0.0
    nms_iou: float = 0.6
    max_per_class: int = 100
    max_detections: int = 100

    @property
    def num_maps(self) -> int:
        """Maps that boxes are predicted from."""
        return len(self.feature_layers) + len(self.extra_channels)

    def num_slots(self, num_labels: int) -> int:
        """Returns the logits of an anchor, for so many classes."""
        return num_labels + (self.background != "none")


def _mmdet_anchors() -> Anchors:
    """Those of mmdet's ``SSDAnchorGenerator`` for 320 pixels: by map two squares and four ratios."""
    sizes, side = (48, 100, 150, 202, 253, 304, 320), 320
    maps = []
    for size, following in itertools.pairwise(sizes):
        squares = [(size / side,) * 2, (math.sqrt(size * following) / side,) * 2]
        ratios = (2.0, 0.5, 3.0, 1 / 3)  # of width to height
        maps.append((*squares, *((size / side / math.sqrt(ratio), size / side * math.sqrt(ratio)) for ratio in ratios)))
    return tuple(maps)


PRESETS: Mapping[str, DetectionSpec] = {
    "tensorflow": DetectionSpec(),
    # ssdlite_mobilenetv2-scratch_8xb24-600e_coco of mmdet 3.3.0, for images of 320×320.
    "mmdet": DetectionSpec(
        feature_layers=("layer_11", "conv_1x1"),
        anchors=_mmdet_anchors(),
        strides=(16, 32, 64, 107, 160, 320),
        box_order="xywh",
        max_log_size=math.log(1000 / 16),
        background="last",
        score="softmax",
        min_negatives=0,
        mining_iou=1.0,
        nms_iou=0.45,
        max_per_class=200,
        max_detections=200,
    ),
}
