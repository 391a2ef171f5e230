"""SSDLite in PyTorch: torchvision's or transformers' backbone, a head of their layers, loss and boxes.

The head's layers have this project's names, so that weights are loaded by name. Box arithmetic is written as in
torchvision's own SSD; suppression is ``torchvision.ops.nms``, or where its library does not load, as of a build of
PyTorch that is not torchvision's, the same on a matrix of overlaps.
"""

from __future__ import annotations

import collections
import importlib
from typing import Any

import numpy as np

from benchmarks.torch_setup import import_torch
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.models import MobileNetV2ForObjectDetection
from flax_mnv2.models.complexity import layer_width
from flax_mnv2.models.heads.ssdlite import extra_width
from flax_mnv2.weights.formats import hugging_face, torchvision
from flax_mnv2.weights.tensors import StateDict, Tensors, write_state

TAP = 12  # the block whose expansion is the first map


def make_detector(library: str, config: MobileNetV2Config):
    """A float32 module of this library's backbone whose call gives logits (N, A, slots) and codes (N, A, 4)."""
    torch = import_torch()
    backbone = {"transformers": _transformers_backbone, "torchvision": _torchvision_backbone}[library](config)

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = config
            self.mobilenet_v2, self.detection_head = backbone, _head(library, config)

        def forward(self, images):
            maps, head, spec = self.mobilenet_v2(images), self.detection_head, config.detection or DetectionSpec()
            for index in range(len(spec.extra_channels)):
                x = maps[-1]
                for part in ("squeeze", "conv_3x3", "expand"):
                    x = head[f"extra_{index}_{part}"](x)
                maps.append(x)
            rows: dict[str, list[Any]] = {"class": [], "box": []}
            for index, x in enumerate(maps):
                for what, depth in (("class", spec.num_slots(config.num_labels)), ("box", 4)):
                    y = head[f"{what}_{index}_predictor"](head[f"{what}_{index}_conv_3x3"](x))
                    rows[what].append(y.permute(0, 2, 3, 1).reshape(len(y), -1, depth))
            return torch.cat(rows["class"], 1), torch.cat(rows["box"], 1)

    return Detector()


def load(module: Any, library: str, config: MobileNetV2Config, tensors: Tensors) -> None:
    """Gives the module our weights; every name must fit."""
    torch = import_torch()
    head = {path: value for path, value in tensors.items() if path[1] == "detection_head"}
    state: StateDict = write_state(head, hugging_face.NAMING)
    if library == "transformers":
        naming, prefix = hugging_face.NAMING, "mobilenet_v2.backbone."
        strip = hugging_face.PREFIX
    else:
        naming, prefix, strip = torchvision.TorchvisionFormat().naming(config), "mobilenet_v2.", ""
    backbone = {path: value for path, value in tensors.items() if path[1] == "mobilenet_v2"}
    state |= {f"{prefix}{key.removeprefix(strip)}": value for key, value in write_state(backbone, naming).items()}
    state = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    known = module.state_dict()
    state |= {key: value for key, value in known.items() if key.endswith("num_batches_tracked")}
    module.load_state_dict(state)


def _transformers_backbone(config: MobileNetV2Config):
    torch, transformers = import_torch(), importlib.import_module("transformers")

    class Taps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            theirs = transformers.MobileNetV2Config.from_dict({**config.to_dict(), "detection": None})
            self.backbone = transformers.MobileNetV2Model(theirs, add_pooling_layer=False)

        def forward(self, x):
            x = self.backbone.conv_stem(x)
            for index, block in enumerate(self.backbone.layer):
                if index != TAP:
                    x = block(x)
                    continue
                tap = block.expand_1x1(x)  # the block strides: it has no shortcut
                x = block.reduce_1x1(block.conv_3x3(tap))
            return [tap, self.backbone.conv_1x1(x)]

    return Taps()


def _torchvision_backbone(config: MobileNetV2Config):
    torch, models = import_torch(), importlib.import_module("torchvision").models

    class Taps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features = models.mobilenet_v2(width_mult=config.depth_multiplier).features

        def forward(self, x):
            for index, block in enumerate(self.features):
                if index != TAP + 2:  # the stem is two there
                    x = block(x)
                    continue
                tap = block.conv[0](x)
                x = block.conv[3](block.conv[2](block.conv[1](tap)))
            return [tap, x]

    return Taps()


def _head(library: str, config: MobileNetV2Config):
    nn, spec, plan = import_torch().nn, config.detection or DetectionSpec(), config.layer_plan

    def layer(inputs: int, outputs: int, size: int = 1, stride: int = 1, *, plain: bool = False):
        if library == "transformers":
            module = importlib.import_module("transformers.models.mobilenet_v2.modeling_mobilenet_v2")
            options = {"use_normalization": not plain, "use_activation": not plain and "relu6", "bias": plain}
            groups = inputs if size == 3 else 1
            epsilon = config.layer_norm_eps
            return module.MobileNetV2ConvLayer(
                config, inputs, outputs, size, stride, groups, layer_norm_eps=epsilon, **options
            )
        groups = inputs if size == 3 else 1
        layers = {"convolution": nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=plain)}
        if not plain:
            layers |= {"normalization": nn.BatchNorm2d(outputs, config.layer_norm_eps), "activation": nn.ReLU6()}
        return nn.Sequential(collections.OrderedDict(layers))

    layers, widths = {}, [layer_width(plan, name) for name in spec.feature_layers]
    for index, depth in enumerate(spec.extra_channels):
        inner, outer = extra_width(config, depth // 2), extra_width(config, depth)
        layers[f"extra_{index}_squeeze"] = layer(widths[-1], inner)
        layers[f"extra_{index}_conv_3x3"] = layer(inner, inner, 3, 2)
        layers[f"extra_{index}_expand"] = layer(inner, outer)
        widths.append(outer)
    for index, (width, kinds) in enumerate(zip(widths, spec.anchors, strict=True)):
        for what, depth in (("class", spec.num_slots(config.num_labels)), ("box", 4)):
            layers[f"{what}_{index}_conv_3x3"] = layer(width, width, 3)
            layers[f"{what}_{index}_predictor"] = layer(width, len(kinds) * depth, plain=True)
    return nn.ModuleDict(layers)


# ---- boxes -----------------------------------------------------------------------------------------------


class Boxes:
    """Anchors of one size of images, with what is done to codes and boxes; tensors lie on ``device``."""

    def __init__(self, config: MobileNetV2Config, image_size: tuple[int, int], device: Any):
        torch = import_torch()
        self.torch, self.spec = torch, config.detection or DetectionSpec()
        anchors = MobileNetV2ForObjectDetection(config).anchors(image_size)
        self.centres = torch.from_numpy(anchors).to(device)
        self.scales = torch.tensor(self.spec.box_scales, device=device)
        half = self.centres[:, 2:] / 2
        self.corners = torch.cat([self.centres[:, :2] - half, self.centres[:, :2] + half], 1)

    def decode(self, codes: Any) -> Any:
        """(…, A, 4) → corners."""
        codes = codes / self.scales
        centre = codes[..., :2] * self.centres[:, 2:] + self.centres[:, :2]
        half = codes[..., 2:].exp() * self.centres[:, 2:] / 2
        return self.torch.cat([centre - half, centre + half], -1)

    def encode(self, boxes: Any) -> Any:
        """Corners (A, 4) → codes."""
        size = boxes[:, 2:] - boxes[:, :2]
        shift = ((boxes[:, :2] + boxes[:, 2:]) / 2 - self.centres[:, :2]) / self.centres[:, 2:]
        return self.torch.cat([shift, (size / self.centres[:, 2:]).log()], 1) * self.scales

    def match(self, boxes: Any) -> Any:
        """Corners (B, 4) → the box of each anchor, -1 for none: the best from ``positive_iou`` on, and forced ones."""
        ops = importlib.import_module("torchvision").ops
        overlap = ops.box_iou(boxes, self.corners)
        best, matched = overlap.max(0)
        matched = matched.masked_fill(best < self.spec.positive_iou, -1)
        matched[overlap.argmax(1).flip(0)] = self.torch.arange(len(boxes) - 1, -1, -1, device=boxes.device)
        return matched

    def loss(self, logits: Any, codes: Any, labels: Any) -> Any:
        """The loss of logits (N, A, slots) and codes with labels (N, B, 5): corners and the class, -1 for none."""
        torch, functional = self.torch, self.torch.nn.functional
        spec, total, positives = self.spec, 0.0, 0
        matched = torch.stack([self.match(rows[rows[:, 4] >= 0, :4]) for rows in labels])
        classes = torch.gather(labels[..., 4].long(), 1, matched.clamp(min=0))
        truth = functional.one_hot(torch.where(matched >= 0, classes + 1, 0), logits.shape[-1]).to(logits.dtype)
        class_losses = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(-1)
        decoded = self.decode(codes.detach())
        for at, rows in enumerate(matched):
            losses = class_losses[at].detach()
            kept = torch.zeros_like(rows, dtype=torch.bool)
            kept[nms(decoded[at], losses, spec.mining_iou)[:3000] if spec.mining_iou < 1 else slice(None)] = True
            positive = kept & (rows >= 0)
            negative = (kept & (rows < 0)).nonzero()[:, 0]
            wanted = int(max(spec.negatives_per_positive * int(positive.sum()), spec.min_negatives))
            hard = negative[losses[negative].argsort(descending=True, stable=True)[:wanted]]
            targets = self.encode(labels[at, rows.clamp(min=0), :4])
            box_loss = functional.smooth_l1_loss(codes[at][positive], targets[positive], reduction="sum")
            total = total + class_losses[at][positive].sum() + class_losses[at][hard].sum() + box_loss
            positives += int((rows >= 0).sum())
        return total / max(positives, 1)

    def detections(self, logits: Any, codes: Any, threshold: float) -> Any:
        """Boxes, scores and labels of one image (A, …) each, at most 100, as torchvision's SSD finds them."""
        torch = self.torch
        scores, boxes = logits.sigmoid()[:, 1:], self.decode(codes).clamp(0, 1)
        anchors, labels = (scores > threshold).nonzero(as_tuple=True)
        boxes, scores = boxes[anchors], scores[anchors, labels]
        apart = 2.0 * labels[:, None].to(boxes.dtype)  # as of torchvision's batched_nms: classes do not overlap
        kept = nms(boxes + apart, scores, self.spec.nms_iou)[: self.spec.max_detections]
        return torch.cat([boxes[kept], scores[kept, None], labels[kept, None].to(scores.dtype)], 1)


def nms(boxes: Any, scores: Any, threshold: float) -> Any:
    """Positions that greedy suppression leaves of corners (A, 4), the highest scores first."""
    torch, torchvision = import_torch(), importlib.import_module("torchvision")
    if torchvision.extension._has_ops():
        return torchvision.ops.nms(boxes, scores, threshold)
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    earlier = torch.ones(len(boxes), len(boxes), dtype=torch.bool, device=boxes.device).tril(-1)
    overlaps = (torchvision.ops.box_iou(boxes, boxes) > threshold) & earlier
    left, before = torch.ones_like(overlaps[0]) if len(boxes) else overlaps.new_ones(0), None
    while before is None or not torch.equal(left, before):
        left, before = ~(overlaps & left).any(1), left
    return order[left]
