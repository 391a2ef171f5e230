"""The models: backbone with pooling, with a classifier, with a DeepLabV3 head."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.models.backbone import Backbone
from flax_mnv2.models.heads import ClassificationHead, DeepLabV3Head
from flax_mnv2.models.layers import Dtype, at_least_float32, make_layer

MIN_SIZE_PX = 32


@flax.struct.dataclass
class BackboneOutput:
    """What ``MobileNetV2Model`` returns.

    Attributes:
      last_hidden_state: (N, h, w, c), the last 1×1 convolution.
      pooler_output: (N, c), its mean over the map, or None without pooling layer.
      hidden_states: outputs of the sixteen blocks, if asked for.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None


@flax.struct.dataclass
class HeadOutput:
    """What a model with a head returns.

    Attributes:
      logits: float32; (N, num_labels) for classification, (N, h, w, num_labels) for segmentation with h and w
        ``output_stride`` times smaller than the image.
      hidden_states: outputs of the sixteen blocks, if asked for.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None


class _MobileNetV2(nn.Module):
    """What all models share.

    Attributes:
      config: the architecture.
      dtype: type of the computation (bfloat16 on accelerators); parameters, statistics and logits are float32.
      axis_name: mapped axis over which the batch is split, under ``pmap``: batch norm is then global over it.
      freeze_batch_norm: use the running statistics while training too, and leave them as they are.
    """

    config: MobileNetV2Config
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    freeze_batch_norm: bool = False

    def _layer(self, train: bool):
        return make_layer(
            self.config,
            train=train,
            dtype=self.dtype,
            axis_name=self.axis_name,
            freeze_batch_norm=self.freeze_batch_norm,
        )


class MobileNetV2Model(_MobileNetV2):
    """The backbone with its last 1×1 convolution and, by default, global average pooling."""

    add_pooling_layer: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, output_hidden_states: bool = False) -> BackboneOutput:
        """Normalised images (N, H, W, num_channels), floating point, H and W at least 32."""
        check_images(images, self.config)
        endpoints = Backbone(self.config, self._layer(train), name="mobilenet_v2")(images)
        last = endpoints["conv_1x1"]
        return BackboneOutput(
            last_hidden_state=last,
            pooler_output=_pool(last) if self.add_pooling_layer else None,
            hidden_states=_block_outputs(endpoints) if output_hidden_states else None,
        )


class MobileNetV2ForImageClassification(_MobileNetV2):
    """The backbone with a linear classifier on its pooled features."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, output_hidden_states: bool = False) -> HeadOutput:
        """Normalised images (N, H, W, num_channels), floating point → logits (N, num_labels)."""
        check_images(images, self.config)
        endpoints = Backbone(self.config, self._layer(train), name="mobilenet_v2")(images)
        head = ClassificationHead(self.config, self.dtype, self.axis_name, name="classifier")
        logits = head(_pool(endpoints["conv_1x1"]), train=train)
        return HeadOutput(logits=logits, hidden_states=_block_outputs(endpoints) if output_hidden_states else None)


class MobileNetV2ForSemanticSegmentation(_MobileNetV2):
    """The backbone with a DeepLabV3 head; the backbone's last 1×1 convolution does not exist here."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, output_hidden_states: bool = False) -> HeadOutput:
        """Normalised images (N, H, W, num_channels), floating point → logits (N, h, w, num_labels)."""
        check_images(images, self.config)
        layer = self._layer(train)
        endpoints = Backbone(self.config, layer, include_last_conv=False, name="mobilenet_v2")(images)
        head = DeepLabV3Head(self.config, layer, self.axis_name, name="segmentation_head")
        logits = head(endpoints[self.config.layer_plan.blocks[-1].name], train=train)
        return HeadOutput(logits=logits, hidden_states=_block_outputs(endpoints) if output_hidden_states else None)


def check_images(images: jax.Array, config: MobileNetV2Config) -> None:
    """Raises a ValueError for images that the network cannot take; looks at shape and dtype only."""
    expected = f"(N, H, W, {config.num_channels}) with H and W at least {MIN_SIZE_PX}"
    if images.ndim != 4 or images.shape[-1] != config.num_channels or min(images.shape[1:3]) < MIN_SIZE_PX:
        raise ValueError(
            f"images must have shape {expected}; found {tuple(images.shape)}. "
            "Images are channels last (NHWC); add a batch dimension to a single image."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be normalised floating-point pixels, about -1 to 1; found {images.dtype}. "
            "Scale uint8 pixels first, for example images / 127.5 - 1."
        )


def _pool(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x.dtype)).astype(x.dtype)


def _block_outputs(endpoints: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(value for name, value in endpoints.items() if name.startswith("layer_"))
