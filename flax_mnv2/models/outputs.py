"""What the models return: read by attribute, by key, or as a tuple of what is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax

from flax_mnv2.config.detection import DetectionSpec


class ModelOutput:
    """Base of the outputs: fields that are None do not count as entries of the tuple or the mapping.

    ``output.logits``, ``output["logits"]``, ``output[0]``, ``loss, logits = output`` and ``dict(output)`` all work.
    """

    def keys(self) -> tuple[str, ...]:
        """Returns the names of the fields that are not None, in their order."""
        arrays = (field.name for field in dataclasses.fields(self) if field.metadata.get("pytree_node", True))
        return tuple(name for name in arrays if getattr(self, name) is not None)

    def values(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in their order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Returns name and value of the fields that are not None."""
        return tuple(zip(self.keys(), self.values(), strict=True))

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in their order."""
        return self.values()

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the field of that name, or ``default`` where it is None or there is no such field."""
        return dict(self.items()).get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.values()[key]
        if key not in self.keys():
            raise KeyError(f"{key!r}; this output holds {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self.keys())


@flax.struct.dataclass
class BaseModelOutputWithPoolingAndNoAttention(ModelOutput):
    """What ``MobileNetV2Model`` returns.

    Attributes:
      last_hidden_state: (N, h, w, c), the last 1×1 convolution, or the layer that ``run_to`` names.
      pooler_output: that pooled as ``config.global_pool`` says, (N, c), by default its mean over the map; with
        ``config.pool_window`` over that window, (N, h', w', c); None without pooling layer.
      hidden_states: the layers that ``output_hidden_states`` selects, if any.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class ImageClassifierOutputWithNoAttention(ModelOutput):
    """What ``MobileNetV2ForImageClassification`` returns.

    Attributes:
      loss: scalar, float32, if labels were given.
      logits: (N, num_labels), float32; with ``config.pool_window`` (N, h', w', num_labels).
      hidden_states: the layers that ``output_hidden_states`` selects, if any.
    """

    loss: jax.Array | None = None
    logits: jax.Array = dataclasses.field(kw_only=True)
    hidden_states: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class SemanticSegmenterOutput(ModelOutput):
    """What ``MobileNetV2ForSemanticSegmentation`` returns.

    Attributes:
      loss: scalar, float32, if labels were given.
      logits: (N, h, w, num_labels), float32, with h and w ``output_stride`` times smaller than the image.
      hidden_states: the layers that ``output_hidden_states`` selects, if any.
      attentions: None; the network has none.
    """

    loss: jax.Array | None = None
    logits: jax.Array = dataclasses.field(kw_only=True)
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: None = None


@flax.struct.dataclass
class ObjectDetectionOutput(ModelOutput):
    """What ``MobileNetV2ForObjectDetection`` returns.

    Attributes:
      loss: scalar, float32, if labels were given.
      logits: (N, A, slots), float32, of the classes and of no class, as ``spec`` says.
      box_codes: (N, A, 4), float32, relative to the anchors.
      pred_boxes: (N, A, 4), float32, decoded: (centre x, centre y, width, height) as fractions of the image.
      hidden_states: the layers that ``output_hidden_states`` selects, if any.
      spec: of the detector; static, and none of the entries.
    """

    loss: jax.Array | None = None
    logits: jax.Array = dataclasses.field(kw_only=True)
    box_codes: jax.Array = dataclasses.field(kw_only=True)
    pred_boxes: jax.Array = dataclasses.field(kw_only=True)
    hidden_states: tuple[jax.Array, ...] | None = None
    spec: DetectionSpec = flax.struct.field(pytree_node=False, kw_only=True)
