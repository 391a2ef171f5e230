"""The models: backbone with pooling, features by resolution, with a classifier, with a DeepLab head."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from typing import Any, ClassVar, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.deeplab import HUGGING_FACE
from flax_mnv2.errors import ConfigError
from flax_mnv2.losses import classification_loss, segmentation_loss
from flax_mnv2.models.backbone import Backbone
from flax_mnv2.models.endpoints import LAST_CONV, Selection, check_endpoint, expansions_in, select
from flax_mnv2.models.heads.classification import ClassificationHead
from flax_mnv2.models.heads.deeplab import DeepLabHead
from flax_mnv2.models.layers import BatchNorm, Convolution, Dtype, ModuleDef, pool
from flax_mnv2.models.ops.platforms import IMPLEMENTATIONS, Implementation
from flax_mnv2.models.outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    SemanticSegmenterOutput,
)
from flax_mnv2.models.quantization.rounding import Quantizer, quantized, quantizer_of

MIN_SIZE_PX = 32
_Value = TypeVar("_Value")


class Parts(NamedTuple):
    """What all layers of a network share, for one call of it."""

    conv: ModuleDef
    norm: ModuleDef | None
    quantizer: Quantizer | None


class MobileNetV2Base(nn.Module):
    """What all models share.

    Attributes:
      config: the architecture.
      dtype: type of the computation (bfloat16 on accelerators); parameters, statistics and logits are float32.
      axis_name: mapped axis over which the batch is split, under ``pmap``: batch norm is then global over it, unless
        ``sync_batch_norm`` is off.
      freeze_batch_norm: use the running statistics while training too, and leave them as they are; scale and bias still
        learn (as TF DeepLab's ``fine_tune_batch_norm=False``).
      remat: keep only the outputs of blocks for the backward pass and compute their inside again, which trades
        about a third more computation for memory.
      sync_batch_norm: share batch statistics over ``axis_name``; otherwise each device normalises with its own, which
        saves two small collectives a layer.
      drop_path_rate: probability of dropping a block's branch beside its shortcut while training (stochastic depth):
        this times the block's depth, from 0 to 1. It needs the ``dropout`` key.
      freeze_until: name of a layer of the backbone, such as ``"layer_10"``; it and all before it use their running
        statistics and get no gradient.
      kernel_init: initialiser of the convolutions; None for a normal distribution of ``config.initializer_range``.
      batch_norm_folded: convolutions have biases in place of batch norm, as ``fold_batch_norm`` makes them.
      implementation: ``"auto"`` for what is fastest on the platform that the program is compiled for; ``"default"`` for
        plain XLA convolutions, each followed by its normalisation, for comparison; ``"cpu"``, ``"gpu"`` or ``"tpu"``
        for what ``"auto"`` takes there.
    """

    main_input_name: ClassVar[str] = "pixel_values"

    config: MobileNetV2Config
    dtype: Dtype = dataclasses.field(default=jnp.float32, kw_only=True)
    axis_name: str | None = dataclasses.field(default=None, kw_only=True)
    freeze_batch_norm: bool = dataclasses.field(default=False, kw_only=True)
    remat: bool = dataclasses.field(default=False, kw_only=True)
    sync_batch_norm: bool = dataclasses.field(default=True, kw_only=True)
    drop_path_rate: float = dataclasses.field(default=0.0, kw_only=True)
    kernel_init: nn.initializers.Initializer | None = dataclasses.field(default=None, kw_only=True)
    freeze_until: str = dataclasses.field(default="", kw_only=True)
    batch_norm_folded: bool = dataclasses.field(default=False, kw_only=True)
    implementation: Implementation = dataclasses.field(default="auto", kw_only=True)

    def _backbone(self, parts: Parts, *, train: bool, **attributes: Any) -> Backbone:
        return Backbone(
            self.config,
            *parts,
            remat=self.remat,
            drop_path_rate=self.drop_path_rate if train else 0.0,
            freeze_until=self.freeze_until,
            axis_name=self.axis_name,
            name="mobilenet_v2",
            **attributes,
        )

    def _pool(self, last: jax.Array, parts: Parts) -> jax.Array:
        return quantized(pool(last, self.config.global_pool, self.config.pool_window), parts.quantizer, "pool")

    def _parts(self, train: bool) -> Parts:
        """Binds what all layers of a network share; once a call, since it counts the steps of a quantised one."""
        if self.implementation not in IMPLEMENTATIONS:
            raise ConfigError(
                f"implementation must be one of {', '.join(map(repr, IMPLEMENTATIONS))}; found {self.implementation!r}."
            )
        if train and self.batch_norm_folded:
            raise ConfigError(
                "This model's batch norm is merged into its convolutions (batch_norm_folded=True), so with train=True "
                "there are no statistics to use or update. Train one that is not folded; from_pretrained: unfold=True."
            )
        quantizer = quantizer_of(self, self.config.quantization, self.axis_name)
        conv = functools.partial(
            Convolution,
            tf_padding=self.config.tf_padding,
            dtype=self.dtype,
            kernel_init=self.kernel_init or nn.initializers.normal(self.config.initializer_range),
            implementation=self.implementation,
            quantizer=quantizer,
        )
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train or self.freeze_batch_norm,
            momentum=self.config.batch_norm_momentum,
            epsilon=self.config.layer_norm_eps,
            axis_name=self.axis_name if self.sync_batch_norm else None,
        )
        return Parts(conv, None if self.batch_norm_folded else norm, quantizer)


class MobileNetV2Model(MobileNetV2Base):
    """The backbone with its last 1×1 convolution and, by default, average pooling."""

    add_pooling_layer: bool = True

    @nn.compact
    def __call__(
        self,
        pixel_values: jax.Array | None = None,
        output_hidden_states: Selection | None = None,
        return_dict: bool | None = None,
        *,
        train: bool = False,
        run_to: str | None = None,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """Runs the network; under ``jit`` all arguments but ``pixel_values`` are static.

        Args:
          pixel_values: normalised images, floating point (N, H, W, num_channels), H and W at least 32.
          output_hidden_states: True for the outputs of all blocks, or a sequence of indices of blocks and of names such
            as ``"layer_10/expansion"`` (``flax_mnv2.models.endpoints.endpoint_names`` lists them); None for the
            config's.
          return_dict: False for the outputs as a plain tuple, without what is None; None for the config's.
          train: use and update batch statistics.
          run_to: name of the layer to stop at; it becomes ``last_hidden_state``, and nothing later is computed.

        Raises:
          ValueError: the images do not fit, or there are none. ConfigError: no such layer.
        """
        check_images(pixel_values, self.config)
        output_hidden_states = asked(output_hidden_states, self.config.output_hidden_states)
        parts, keep = self._parts(train), expansions_in(output_hidden_states)
        backbone = self._backbone(parts, train=train, run_to=run_to, keep_expansions=keep)
        endpoints = backbone(pixel_values)
        last = endpoints[run_to or LAST_CONV]
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last,
            pooler_output=self._pool(last, parts) if self.add_pooling_layer else None,
            hidden_states=select(endpoints, output_hidden_states, self.config.layer_plan),
        )
        return output if asked(return_dict, self.config.return_dict) else output.to_tuple()


class MobileNetV2Backbone(MobileNetV2Base):
    """Features by resolution, for decoders written elsewhere (feature pyramids, U-Nets).

    Attributes:
      strides: input pixels per feature pixel of the features to return; None for all of 4, 8, 16 and 32 that
        ``config.output_stride`` allows.
    """

    strides: tuple[int, ...] | None = None

    @property
    def channels(self) -> dict[str, int]:
        """Width of each feature by its name, known before anything runs."""
        specs = self.config.feature_specs
        strides = self.strides
        if strides is None:
            strides = [stride for stride in (4, 8, 16, 32) if f"stride_{stride}" in specs]
        unknown = [stride for stride in strides if f"stride_{stride}" not in specs]
        if unknown:
            raise ConfigError(
                f"strides asks for {unknown}; with output_stride={self.config.output_stride} this network has "
                f"{', '.join(specs)}."
            )
        if not strides:
            raise ConfigError(
                f"strides must name at least one of {', '.join(specs)}; found {self.strides!r} with "
                f"output_stride={self.config.output_stride}."
            )
        return {f"stride_{stride}": specs[f"stride_{stride}"].channels for stride in strides}

    @nn.compact
    def __call__(self, pixel_values: jax.Array, *, train: bool = False) -> OrderedDict[str, jax.Array]:
        """Normalised images (N, H, W, num_channels) → features (N, ⌈H/s⌉, ⌈W/s⌉, channels) by name ``stride_<s>``.

        Each is the output of the deepest block at its resolution. Layers after the last of them are not computed.
        The order is that of ``strides``, also out of ``jit``, which would sort the keys of a plain dict.
        """
        check_images(pixel_values, self.config)
        specs = {name: self.config.feature_specs[name] for name in self.channels}
        order = ["conv_stem", *(block.name for block in self.config.layer_plan.blocks)]
        end = max((spec.layer for spec in specs.values()), key=order.index)
        backbone = self._backbone(self._parts(train), train=train, run_to=end)
        endpoints = backbone(pixel_values)
        return OrderedDict((name, endpoints[spec.layer]) for name, spec in specs.items())


class MobileNetV2ForImageClassification(MobileNetV2Base):
    """The backbone with a linear classifier on its pooled features."""

    @nn.compact
    def __call__(
        self,
        pixel_values: jax.Array | None = None,
        output_hidden_states: Selection | None = None,
        labels: jax.Array | None = None,
        return_dict: bool | None = None,
        *,
        train: bool = False,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
        """Normalised images (N, H, W, num_channels) → logits (N, num_labels), and with ``labels`` the loss.

        With ``config.pool_window`` the logits are a map (N, h', w', num_labels), 1×1 at the size the network was made
        for; a loss needs it to be 1×1. For ``labels`` see ``flax_mnv2.losses.classification_loss``; for the other
        arguments ``MobileNetV2Model``.
        """
        check_images(pixel_values, self.config)
        output_hidden_states = asked(output_hidden_states, self.config.output_hidden_states)
        parts = self._parts(train)
        backbone = self._backbone(parts, train=train, keep_expansions=expansions_in(output_hidden_states))
        endpoints = backbone(pixel_values)
        head = ClassificationHead(self.config, self.dtype, self.axis_name, parts.quantizer, name="classifier")
        logits = head(self._pool(endpoints[LAST_CONV], parts), train=train)
        output = ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=select(endpoints, output_hidden_states, self.config.layer_plan),
        )
        return output if asked(return_dict, self.config.return_dict) else output.to_tuple()

    def _loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        if logits.ndim == 4:
            if logits.shape[1:3] != (1, 1):
                raise ValueError(
                    f"With pool_window={self.config.pool_window} these images give {logits.shape[1]}×"
                    f"{logits.shape[2]} logits; a loss needs one per image. Use smaller images, or pool_window=None."
                )
            logits = logits[:, 0, 0]
        return classification_loss(logits, labels, problem_type=self.config.problem_type)


class MobileNetV2ForSemanticSegmentation(MobileNetV2Base):
    """The backbone with a DeepLab head; the last 1×1 convolution exists only where ``config.deeplab`` asks for it."""

    @nn.compact
    def __call__(
        self,
        pixel_values: jax.Array | None = None,
        labels: jax.Array | None = None,
        output_hidden_states: Selection | None = None,
        return_dict: bool | None = None,
        *,
        train: bool = False,
    ) -> SemanticSegmenterOutput | tuple[Any, ...]:
        """Normalised images (N, H, W, num_channels) → logits (N, h, w, num_labels), and with ``labels`` the loss.

        ``labels`` are integers (N, H', W'), usually at the size of the images; the loss is the mean cross-entropy of
        the logits resized to them, without pixels of ``config.semantic_loss_ignore_index``; a network of one class has
        none, and a ConfigError says so. Logits have the backbone's output stride, or the resolution of the features
        that the decoder of ``config.deeplab`` joins in. For the other arguments see ``MobileNetV2Model``.
        """
        check_images(pixel_values, self.config)
        if labels is not None and self.config.num_labels == 1:
            raise ConfigError("A segmentation loss needs at least two classes; found num_labels=1. Leave labels out.")
        output_hidden_states = asked(output_hidden_states, self.config.output_hidden_states)
        spec = self.config.deeplab or HUGGING_FACE
        parts, keep = self._parts(train), expansions_in(output_hidden_states)
        backbone = self._backbone(parts, train=train, include_last_conv=spec.reads_last_conv, keep_expansions=keep)
        endpoints = backbone(pixel_values)
        features = endpoints[LAST_CONV if spec.reads_last_conv else self.config.layer_plan.blocks[-1].name]
        low_level = None
        if spec.low_level is not None:
            low_level = endpoints[check_endpoint(spec.low_level, tuple(endpoints), "deeplab.low_level")]
        head = DeepLabHead(self.config, *parts, self.axis_name, name="segmentation_head")
        logits = head(features, low_level, train=train)
        loss = None
        if labels is not None:
            ignored = self.config.semantic_loss_ignore_index
            loss = segmentation_loss(logits, labels, ignore_label=ignored, align_corners=spec.align_corners)
        output = SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=select(endpoints, output_hidden_states, self.config.layer_plan)
        )
        return output if asked(return_dict, self.config.return_dict) else output.to_tuple()


def asked(by_call: _Value | None, by_config: _Value) -> _Value:
    """What a call says, or the config where it says nothing."""
    return by_config if by_call is None else by_call


def check_images(images: jax.Array | None, config: MobileNetV2Config) -> None:
    """Raises a ValueError for images that the network cannot take, by their shape and type, or where there are none."""
    if images is None:
        raise ValueError(f"pixel_values is missing; give normalised images (N, H, W, {config.num_channels}).")
    if not isinstance(images, (jax.Array, np.ndarray)):
        raise ValueError(f"images must be a JAX or NumPy array; found {type(images).__name__}.")
    expected = f"(N, H, W, {config.num_channels}) with H and W at least {MIN_SIZE_PX}"
    sides = [side for side in images.shape[1:3] if isinstance(side, int)]  # a symbolic one is known when it is run
    if images.ndim != 4 or images.shape[-1] != config.num_channels or min(sides, default=MIN_SIZE_PX) < MIN_SIZE_PX:
        raise ValueError(
            f"images must have shape {expected}; found {tuple(images.shape)}. "
            "Images are channels last (NHWC); add a batch dimension to a single image."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be normalised floating-point pixels, about -1 to 1; found {images.dtype}. "
            "Scale uint8 pixels first, for example images / 127.5 - 1, or use MobileNetV2ImageProcessor."
        )
