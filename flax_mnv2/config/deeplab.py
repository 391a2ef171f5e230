"""``DeepLabSpec``: what a DeepLab head is, so that those of all libraries are one module; ``PRESETS`` has theirs.

torchvision's LR-ASPP is none: it multiplies features by a gate and adds two classifiers, which no other head does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax_mnv2.config.spec import Rule, Spec, is_count
from flax_mnv2.errors import ConfigError

_MAX_WIDTH, _MAX_RATE, _MAX_LAYERS = 4096, 1024, 16
_RATES_ARE_FOR = 16  # the output stride that rates which follow it are given for


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_width(value: Any) -> bool:
    return is_count(value, 1, _MAX_WIDTH)


def _is_depth(value: Any) -> bool:
    return is_count(value, 0, _MAX_LAYERS)


def _is_pair(value: Any, high: int = 65536) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_count(side, 1, high) for side in value)


def _is_endpoint(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(value) and not value.endswith("/expansion"))


_SWITCH: Rule = (_is_switch, "True or False")
_RULES: Mapping[str, Rule] = {
    "atrous_rates": (
        lambda value: len(value) <= _MAX_LAYERS and all(is_count(rate, 1, _MAX_RATE) for rate in value),
        f"at most {_MAX_LAYERS} integers from 1 to {_MAX_RATE}",
    ),
    "rates_follow_stride": _SWITCH,
    "separable_branches": _SWITCH,
    "inner_norm": _SWITCH,
    "pooling": (lambda value: value in ("first", "last", "none"), "'first', 'last' or 'none'"),
    "pooling_size": (lambda value: value is None or _is_pair(value), "None, or (height, width) in pixels"),
    "pooling_stride": (_is_pair, "(down, right), each at least 1"),
    "channels": (_is_width, f"an integer from 1 to {_MAX_WIDTH}"),
    "projection_kernel": (lambda value: value in (1, 3), "1 or 3"),
    "projection_convs": (_is_depth, f"an integer from 0 to {_MAX_LAYERS}"),
    "reads_last_conv": _SWITCH,
    "low_level": (_is_endpoint, "None, or an endpoint such as 'layer_01' or 'layer_01/depthwise'"),
    "low_level_channels": (_is_width, f"an integer from 1 to {_MAX_WIDTH}"),
    "low_level_first": _SWITCH,
    "decoder_convs": (_is_depth, f"an integer from 0 to {_MAX_LAYERS}"),
    "separable_decoder": _SWITCH,
    "align_corners": _SWITCH,
    "bounded_activation": _SWITCH,
    "dropout_after": (lambda value: value in ("projection", "decoder"), "'projection' or 'decoder'"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class DeepLabSpec(Spec):
    """A DeepLab head; the defaults are DeepLabV3+ as TensorFlow's authors build it (arXiv 1802.02611).

    Branches of the backbone's features are joined and projected, several convolutions may follow; then the result is
    resized to a map of low-level features, joined with a projection of it, and several convolutions follow before the
    classifier. Immutable, hashable, checked.

    Attributes:
      atrous_rates: dilation of each 3×3 branch beside the 1×1 one.
      rates_follow_stride: whether these are for output stride 16, and double at 8; otherwise they are as given at any.
      separable_branches: whether those branches are a depthwise convolution and a 1×1 one, not a dense one.
      inner_norm: whether batch norm and activation stand between the two, in all separable convolutions of the head.
      pooling: where the branch of pooled features is among the branches: ``"first"``, ``"last"``, or ``"none"``.
      pooling_size: (height, width) in pixels of the image that features are pooled over; None for the whole image.
        TensorFlow's ``image_pooling_crop_size``.
      pooling_stride: (down, right) in features, of that window.
      channels: width of all but the low-level projection.
      projection_kernel: side of the convolution that joins the branches.
      projection_convs: 3×3 convolutions between it and the decoder.
      reads_last_conv: whether the head stands on the backbone's last 1×1 convolution, not on the last block.
      low_level: endpoint of the backbone that the decoder joins in, a block or its depthwise convolution; None for
        none. The logits have its resolution.
      low_level_channels: width of its projection.
      low_level_first: whether it stands before the resized features.
      decoder_convs: 3×3 convolutions before the classifier, after the joining where there is one.
      separable_decoder: whether these and those after the projection are separable.
      align_corners: whether resizing, of the logits too, keeps the corner pixels in their place, as TensorFlow did;
        otherwise with half-pixel centres.
      bounded_activation: ReLU6 in place of ReLU, but for the pooled branch.
      dropout_after: where ``classifier_dropout_prob`` drops channels: ``"projection"`` or ``"decoder"``.

    Raises:
      ConfigError: a field has the wrong form or is out of range.
    """

    section: ClassVar[str] = "deeplab"
    rules: ClassVar[Mapping[str, Rule]] = _RULES

    atrous_rates: tuple[int, ...] = (6, 12, 18)
    rates_follow_stride: bool = True
    separable_branches: bool = True
    inner_norm: bool = True
    pooling: str = "first"
    pooling_size: tuple[int, int] | None = None
    pooling_stride: tuple[int, int] = (1, 1)
    channels: int = 256
    projection_kernel: int = 1
    projection_convs: int = 0
    reads_last_conv: bool = False
    low_level: str | None = "layer_01/depthwise"
    low_level_channels: int = 48
    low_level_first: bool = False
    decoder_convs: int = 2
    separable_decoder: bool = True
    align_corners: bool = True
    bounded_activation: bool = False
    dropout_after: str = "projection"

    def rates_at(self, output_stride: int) -> tuple[int, ...]:
        """Returns the dilation of each atrous branch; a ConfigError where one would be no integer."""
        if not self.rates_follow_stride:
            return self.atrous_rates
        scaled = [rate * _RATES_ARE_FOR for rate in self.atrous_rates]
        if any(rate % output_stride for rate in scaled):
            raise ConfigError(
                f"deeplab.atrous_rates {self.atrous_rates} are for output stride {_RATES_ARE_FOR} and give no integers "
                f"at {output_stride}. Choose multiples of {output_stride // _RATES_ARE_FOR}, or "
                "rates_follow_stride=False."
            )
        return tuple(rate // output_stride for rate in scaled)


# Hugging Face's, and the original's default for MobileNetV2: image pooling and one 1×1 branch.
HUGGING_FACE = DeepLabSpec(atrous_rates=(), low_level=None, decoder_convs=0, align_corners=False)
_VAINF = DeepLabSpec(
    separable_branches=False,
    inner_norm=False,
    pooling="last",
    low_level="layer_01",
    low_level_first=True,
    decoder_convs=1,
    separable_decoder=False,
    align_corners=False,
)
_SMP = DeepLabSpec(
    atrous_rates=(12, 24, 36),
    rates_follow_stride=False,
    inner_norm=False,
    pooling="last",
    projection_convs=1,
    reads_last_conv=True,
    low_level="layer_01",
    decoder_convs=1,
)
_MMSEG = DeepLabSpec(
    atrous_rates=(12, 24, 36),
    rates_follow_stride=False,
    channels=512,
    projection_kernel=3,
    low_level="layer_01",
    align_corners=False,
    dropout_after="decoder",
)
PRESETS: Mapping[str, DeepLabSpec] = {
    "hugging_face": HUGGING_FACE,
    "deeplab_v3plus": DeepLabSpec(),
    "vainf": _VAINF,
    "vainf_v3": _VAINF.replace(low_level=None, low_level_first=False),
    "smp": _SMP,
    "smp_v3": _SMP.replace(
        separable_branches=False, projection_convs=0, low_level=None, separable_decoder=False, align_corners=True
    ),
    "mmseg": _MMSEG,
    "mmseg_v3": _MMSEG.replace(separable_branches=False, low_level=None, decoder_convs=0),
}


def preset(name: str) -> DeepLabSpec:
    """Returns the head of a library: one of ``PRESETS``; a ConfigError where there is no such name.

    ``_v3`` are those without a decoder. What the libraries do in the backbone is not the head's: ``dilation_rule``,
    ``tf_padding``, ``layer_norm_eps`` and ``pad_block_input`` of ``MobileNetV2Config``.
    """
    if name not in PRESETS:
        raise ConfigError(f"No DeepLab head {name!r}; expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def as_spec(value: Any) -> DeepLabSpec | None:
    """Returns the spec that a preset's name or a mapping stands for; None for Hugging Face's in whatever form."""
    if isinstance(value, str):
        value = preset(value)
    elif value is not None and not isinstance(value, DeepLabSpec):
        value = DeepLabSpec.from_dict(value)
    return None if value == HUGGING_FACE else value
