"""The model with an SSDLite head: boxes and their classes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.detection.anchors import make_anchors, map_sizes
from flax_mnv2.detection.boxes import decode, swap_axes, to_centres, to_corners
from flax_mnv2.detection.losses import detection_loss_sums
from flax_mnv2.models.endpoints import Selection, check_endpoint, endpoint_names, expansions_in, select
from flax_mnv2.models.heads.ssdlite import SSDLiteHead
from flax_mnv2.models.mobilenet_v2 import MobileNetV2Base, asked, check_images
from flax_mnv2.models.outputs import ObjectDetectionOutput

Labels = dict[str, jax.Array]


class MobileNetV2ForObjectDetection(MobileNetV2Base):
    """The backbone with an SSDLite head, as ``config.detection`` says; None there is the original's."""

    @property
    def spec(self) -> DetectionSpec:
        """Maps, anchors and the rest."""
        return self.config.detection or DetectionSpec()

    @nn.nowrap
    def anchors(self, image_size: tuple[int, int]) -> np.ndarray:
        """Returns the anchors of an image (height, width) in the order of the outputs; see ``make_anchors``."""
        plan = self.config.layer_plan
        for layer in self.spec.feature_layers:
            check_endpoint(layer, endpoint_names(plan), "detection.feature_layers")
        return make_anchors(self.spec, image_size, map_sizes(self.spec, plan, image_size))

    @nn.compact
    def __call__(
        self,
        pixel_values: jax.Array | None = None,
        labels: Labels | None = None,
        output_hidden_states: Selection | None = None,
        return_dict: bool | None = None,
        *,
        train: bool = False,
    ) -> ObjectDetectionOutput | tuple[Any, ...]:
        """Normalised images (N, H, W, num_channels) → class logits and boxes for each anchor, with ``labels`` the loss.

        ``labels`` has for each image a fixed number of rows: ``boxes`` (N, B, 4), (centre x, centre y, width, height)
        as fractions of the image, as Hugging Face's detectors have them; ``class_labels`` (N, B), integers, -1 in rows
        that fill up; and perhaps ``ignored`` (N, B), bool, for crowds and difficult boxes. The loss is that of
        ``detection.losses``, divided by the number of positive anchors. For the other arguments see
        ``MobileNetV2Model``.
        """
        check_images(pixel_values, self.config)
        output_hidden_states, spec = asked(output_hidden_states, self.config.output_hidden_states), self.spec
        anchors = self.anchors(pixel_values.shape[1:3])
        wanted = expansions_in(output_hidden_states) + expansions_in(spec.feature_layers)
        parts, keep = self._parts(train), tuple(dict.fromkeys(wanted))
        endpoints = self._backbone(parts, train=train, keep_expansions=keep)(pixel_values)
        maps = select(endpoints, spec.feature_layers, self.config.layer_plan)
        logits, codes = SSDLiteHead(self.config, spec, *parts, name="detection_head")(maps)
        output = ObjectDetectionOutput(
            loss=None if labels is None else self._loss(logits, codes, labels, anchors),
            logits=logits,
            box_codes=codes,
            pred_boxes=swap_axes(to_centres(decode(codes, anchors, spec))),
            hidden_states=select(endpoints, output_hidden_states, self.config.layer_plan),
            spec=spec,
        )
        return output if asked(return_dict, self.config.return_dict) else output.to_tuple()

    def _loss(self, logits: jax.Array, codes: jax.Array, labels: Labels, anchors: np.ndarray) -> jax.Array:
        check_labels(labels, len(logits), self.config.num_labels)
        corners = to_corners(swap_axes(jnp.asarray(labels["boxes"])))
        sums = detection_loss_sums(logits, codes, {**labels, "boxes": corners}, anchors, self.spec)
        return (sums["class_loss"] + sums["box_loss"]) / jnp.maximum(sums["positives"], 1.0)


def check_labels(labels: Labels, num_images: int, num_labels: int) -> None:
    """Raises a ValueError for labels of a wrong shape, or value, where that is known (not inside ``jit``)."""
    if not isinstance(labels, dict) or not {"boxes", "class_labels"} <= set(labels):
        raise ValueError('labels of a detector must be a dict with "boxes" (N, B, 4) and "class_labels" (N, B).')
    boxes, classes = labels["boxes"], labels["class_labels"]
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or len(boxes) != num_images or classes.shape != boxes.shape[:2]:
        raise ValueError(
            f"labels must have boxes ({num_images}, B, 4) and class_labels ({num_images}, B); found "
            f"{tuple(boxes.shape)} and {tuple(classes.shape)}. Fill rows up with class -1."
        )
    if isinstance(classes, jax.core.Tracer):
        return
    values = np.unique(np.asarray(classes))
    wrong = values[(values < -1) | (values >= num_labels)]
    if wrong.size:
        raise ValueError(f"class_labels must be in [0, {num_labels}), or -1 to fill up; found {wrong[:8].tolist()}.")
