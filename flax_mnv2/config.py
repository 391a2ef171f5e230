"""``MobileNetV2Config``: the architecture in the fields of Hugging Face's ``config.json``.

Field names, defaults and meanings are those of ``transformers``, so a config moves between the two libraries unchanged.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flax.core import FrozenDict

from flax_mnv2.errors import ConfigError
from flax_mnv2.files import read_json, shown
from flax_mnv2.layer_plan import FeatureSpec, LayerPlan, make_layer_plan

MODEL_TYPE = "mobilenet_v2"
OUTPUT_STRIDES = (2, 4, 8, 16, 32)
ACTIVATIONS = ("relu6", "relu", "silu", "swish", "gelu", "hardswish", "elu", "sigmoid", "tanh", "linear")
MAX_LABELS = 200_000  # ten times the largest label set of ImageNet
MAX_WIDTH_FACTOR = 64.0
MAX_DEPTH_FACTOR = 6.0  # 91 blocks; beyond 100 their names would no longer sort by depth
GLOBAL_POOLS = ("avg", "max", "avgmax", "catavgmax")  # timm's names
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
Check = Callable[["MobileNetV2Config", str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileNetV2Config:
    """Configuration of MobileNetV2 and its heads; immutable, hashable, checked on creation.

    Attributes:
      num_channels: channels of the input image.
      image_size: side of the images the weights were made for, in pixels; informative, any size from 32 works.
      depth_multiplier: width factor α; every layer has about α times its channels.
      depth_divisible_by: channel counts are multiples of this.
      min_depth: no layer has fewer channels than this.
      expand_ratio: expansion of a block, relative to its input channels.
      output_stride: input pixels per feature pixel along one side: 2, 4, 8, 16 or 32. Where striding would
        shrink the map further, blocks dilate instead.
      first_layer_is_expansion: the first convolution doubles as the expansion of the first block.
      finegrained_output: the last 1×1 convolution keeps 1280 channels when α < 1.
      hidden_act: activation, one of ``flax_mnv2.config.ACTIVATIONS``.
      tf_padding: TensorFlow's SAME padding (asymmetric at stride 2 and even sizes); off, PyTorch's symmetric.
      classifier_dropout_prob: fraction of features dropped before the classifier while training. The default,
        0.8, is Hugging Face's, which took TF-slim's probability of *keeping* for one of dropping; training
        recipes set 0.2 (classification) or 0.1 (segmentation).
      initializer_range: standard deviation of the normal initialiser of every kernel.
      layer_norm_eps: epsilon of batch normalisation in the backbone (the DeepLab head has 1e-5).
      semantic_loss_ignore_index: label that the segmentation loss leaves out.
      num_labels: classes of the head; follows from ``id2label`` where that is given, else 2.
      id2label: class index → name.
      label2id: name → class index; names may repeat, then the last index stands.
      batch_norm_momentum: fraction of the *old* running statistics that is kept per step (Flax's sense); 0.997
        is TF-slim's. Ours: Hugging Face passes 0.997 where PyTorch expects 0.003.
      head_batch_norm_momentum: the same for the DeepLab head; None means ``batch_norm_momentum``. Ours.
      classifier_initializer_range: standard deviation for the classifier's kernel; None means
        ``initializer_range``. Ours.
      problem_type: loss of the classifier: ``"regression"``, ``"single_label_classification"`` or
        ``"multi_label_classification"``; None infers it from ``num_labels`` and the labels, as Hugging Face does.
      pool_window: side of the original's fixed average-pooling window at stride 1 (7 in TF-slim), so that images
        larger than the network was made for give a map of pooled features; None pools the whole map.
      global_pool: what pooling takes of the last map, in timm's words: ``"avg"``, ``"max"``, ``"avgmax"`` (half of
        each) or ``"catavgmax"`` (both, so that the classifier has twice the features). Ours.
      layer_depth_multiplier: every stage but the first and the last has this many times its blocks, rounded up
        (timm's ``mobilenetv2_110d`` and ``120d``). Ours.
      fixed_stem_and_head: the first and the last convolution keep 32 and 1280 channels whatever the depth
        multiplier (timm's deeper networks). Ours.
      stem_residual: the first block has a shortcut where its widths agree, as in TF-slim and torchvision; Hugging
        Face's leaves it out. It matters at α ≤ 0.25 only. Ours.
      round_widths: round ``channels · α`` to an integer before making it divisible, as Hugging Face does;
        torchvision and timm do not. It matters at odd depth multipliers only. Ours.
      extra: keys of a ``config.json`` that are not listed here, kept so that they are written back.

    Raises:
      ConfigError: a field has the wrong type or is out of range, or labels disagree with ``num_labels``.
    """

    num_channels: int = 3
    image_size: int | tuple[int, int] = 224
    depth_multiplier: float = 1.0
    depth_divisible_by: int = 8
    min_depth: int = 8
    expand_ratio: float = 6.0
    output_stride: int = 32
    first_layer_is_expansion: bool = True
    finegrained_output: bool = True
    hidden_act: str = "relu6"
    tf_padding: bool = True
    classifier_dropout_prob: float = 0.8
    initializer_range: float = 0.02
    layer_norm_eps: float = 0.001
    semantic_loss_ignore_index: int = 255
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    label2id: Mapping[str, int] | None = None
    batch_norm_momentum: float = 0.997
    head_batch_norm_momentum: float | None = None
    classifier_initializer_range: float | None = None
    problem_type: str | None = None
    pool_window: int | None = None
    global_pool: str = "avg"
    layer_depth_multiplier: float = 1.0
    fixed_stem_and_head: bool = False
    stem_residual: bool = False
    round_widths: bool = True
    extra: Mapping[str, Any] = dataclasses.field(default_factory=FrozenDict, hash=False)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name in _CHECKS and (getattr(self, field.name) is not None or field.default is not None):
                _CHECKS[field.name](self, field.name)
        _resolve_labels(self)
        _check_extra(self)

    def replace(self, **changes: Any) -> MobileNetV2Config:
        """Returns a copy with some fields changed; a new ``num_labels`` or ``id2label`` drops the old names."""
        if {"num_labels", "id2label"} & changes.keys():
            changes = {"num_labels": None, "id2label": None, "label2id": None, **changes}
        _reject_unknown(changes)
        return dataclasses.replace(self, **changes)

    @property
    def layer_plan(self) -> LayerPlan:
        """The network as typed rows."""
        return make_layer_plan(self)

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """The deepest layer at each resolution by name: ``stride_2``, ``stride_4``, … up to ``output_stride``."""
        plan = self.layer_plan
        specs = {"stride_2": FeatureSpec("conv_stem", plan.stem.out_channels)}
        for block in plan.blocks:
            specs[f"stride_{block.output_stride}"] = FeatureSpec(block.name, block.out_channels)
        return specs

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MobileNetV2Config:
        """Builds a config from the contents of a ``config.json``; keys it does not know go to ``extra``.

        Raises:
          ConfigError: not a mapping, another ``model_type``, or a field that does not pass the checks.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"A model config must be a JSON object; found {type(values).__name__}.")
        values = dict(values)
        model_type = values.pop("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise ConfigError(
                f"The config is for model_type {shown(model_type)}; this library reads {MODEL_TYPE!r}. "
                "Check that the folder or hub id is the one you meant."
            )
        fields = {name: values.pop(name) for name in _public_fields() if name in values}
        if isinstance(fields.get("image_size"), list):
            fields["image_size"] = tuple(fields["image_size"])
        return cls(**fields, extra=values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the contents of a ``config.json``: Hugging Face's fields, ours where they are not their default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = {"model_type": MODEL_TYPE, **_thaw(self.extra)}
        for name in _public_fields():
            value = getattr(self, name)
            if name == "num_labels" or (name in _OWN_FIELDS and value == defaults[name]):
                continue  # transformers derives num_labels from id2label
            values[name] = _thaw(value)
        values["id2label"] = {str(index): label for index, label in sorted(self.id2label.items())}
        return values

    @classmethod
    def from_json_file(cls, path: str | pathlib.Path) -> MobileNetV2Config:
        """Reads a ``config.json``.

        Raises:
          ConfigError: the file is missing, is not JSON, or does not describe a MobileNetV2.
        """
        path = pathlib.Path(path)
        try:
            values = read_json(path)
        except FileNotFoundError:
            raise ConfigError(f"No model config at {path}; expected a config.json beside the weights.") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"Cannot read the model config {path}: {error}") from None
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_json_file(self, path: str | pathlib.Path) -> None:
        """Writes a ``config.json`` that this library and transformers read."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")


# Fields that Hugging Face does not know; a config.json has them only where they differ from their default.
_OWN_FIELDS = (
    "batch_norm_momentum",
    "head_batch_norm_momentum",
    "classifier_initializer_range",
    "problem_type",
    "pool_window",
    "global_pool",
    "layer_depth_multiplier",
    "fixed_stem_and_head",
    "stem_residual",
    "round_widths",
)


def _public_fields() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(MobileNetV2Config) if field.name != "extra")


def _reject_unknown(changes: Mapping[str, Any]) -> None:
    known = (*_public_fields(), "extra")
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ConfigError(f"MobileNetV2Config has no field {', '.join(unknown)}; its fields are {', '.join(known)}.")


def _fail(config: MobileNetV2Config, name: str, expected: str) -> None:
    raise ConfigError(f"{name} must be {expected}; found {shown(getattr(config, name))}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_index(value: Any) -> bool:
    return _is_integer(value) and abs(value) <= MAX_LABELS


def _integer(low: int, high: int) -> Check:
    def check(config: MobileNetV2Config, name: str) -> None:
        value = getattr(config, name)
        if not _is_integer(value) or not low <= value <= high:
            _fail(config, name, f"an integer from {low} to {high}")

    return check


def _number(low: float, high: float, *, above: bool = False) -> Check:
    def check(config: MobileNetV2Config, name: str) -> None:
        value = getattr(config, name)
        number = _is_integer(value) or isinstance(value, float)
        if not number or not low <= value <= high or (above and value == low):
            _fail(config, name, f"a number {f'above {low:g} and up' if above else f'from {low:g}'} to {high:g}")
        object.__setattr__(config, name, float(value))

    return check


def _choice(*choices: Any) -> Check:
    def check(config: MobileNetV2Config, name: str) -> None:
        value = getattr(config, name)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            _fail(config, name, "one of " + ", ".join(map(repr, choices)))

    return check


def _check_image_size(config: MobileNetV2Config, name: str) -> None:
    value = config.image_size
    sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    if not all(_is_integer(side) and 1 <= side <= 65536 for side in sides):
        _fail(config, name, "an integer from 1 to 65536, or a pair of them (height, width)")


# What a field must be; one whose default is None may also be None.
_CHECKS: Mapping[str, Check] = {
    "num_channels": _integer(1, 4096),
    "image_size": _check_image_size,
    "depth_multiplier": _number(0.0, MAX_WIDTH_FACTOR, above=True),
    "depth_divisible_by": _integer(1, 1024),
    "min_depth": _integer(1, 65536),
    "expand_ratio": _number(0.0, MAX_WIDTH_FACTOR, above=True),
    "output_stride": _choice(*OUTPUT_STRIDES),
    "first_layer_is_expansion": _choice(True, False),
    "finegrained_output": _choice(True, False),
    "hidden_act": _choice(*ACTIVATIONS),
    "tf_padding": _choice(True, False),
    "classifier_dropout_prob": _number(0.0, 1.0),
    "initializer_range": _number(0.0, 10.0),
    "layer_norm_eps": _number(0.0, 1.0),
    "semantic_loss_ignore_index": _integer(-(2**31), 2**31 - 1),
    "num_labels": _integer(0, MAX_LABELS),
    "batch_norm_momentum": _number(0.0, 1.0),
    "head_batch_norm_momentum": _number(0.0, 1.0),
    "classifier_initializer_range": _number(0.0, 10.0),
    "problem_type": _choice(*PROBLEM_TYPES),
    "pool_window": _integer(1, 65536),
    "global_pool": _choice(*GLOBAL_POOLS),
    "layer_depth_multiplier": _number(0.0, MAX_DEPTH_FACTOR, above=True),
    "fixed_stem_and_head": _choice(True, False),
    "stem_residual": _choice(True, False),
    "round_widths": _choice(True, False),
}


def _resolve_labels(config: MobileNetV2Config) -> None:
    """Makes ``num_labels``, ``id2label`` and ``label2id`` agree, deriving what was not given."""
    id2label, label2id = config.id2label, config.label2id
    if label2id is not None and not (isinstance(label2id, Mapping) and all(map(_is_index, label2id.values()))):
        _fail(config, "label2id", "a mapping from name to class index")
    if id2label is None:
        count = config.num_labels if config.num_labels is not None else 2
        id2label = {index: f"LABEL_{index}" for index in range(count)}
        label2id = None
    elif not isinstance(id2label, Mapping):
        _fail(config, "id2label", "a mapping from class index to name")
    try:
        named = [(int(index), str(label)) for index, label in id2label.items()]
    except (TypeError, ValueError, OverflowError, RecursionError):
        _fail(config, "id2label", "a mapping from class index to name")
    id2label = dict(named)
    if sorted(index for index, _ in named) != list(range(len(named))):
        raise ConfigError(
            f"id2label must name every class from 0 to {len(named) - 1} once; found the indices "
            f"{shown(sorted(index for index, _ in named)[:8])}{'…' if len(named) > 8 else ''}."
        )
    if config.num_labels is not None and config.num_labels != len(id2label):
        raise ConfigError(
            f"num_labels is {config.num_labels} but id2label names {len(id2label)} classes; give one of the two."
        )
    if label2id is None:
        label2id = {label: index for index, label in id2label.items()}
    object.__setattr__(config, "num_labels", len(id2label))
    object.__setattr__(config, "id2label", FrozenDict(id2label))
    object.__setattr__(config, "label2id", FrozenDict(label2id))


def _check_extra(config: MobileNetV2Config) -> None:
    """Freezes ``extra`` if it can be written back as JSON."""
    if not isinstance(config.extra, Mapping):
        _fail(config, "extra", "a mapping of what else belongs into config.json")
    for name, value in config.extra.items():
        try:
            entry = _thaw({name: value})
            plain = json.loads(json.dumps(entry, allow_nan=False)) == entry
        except (TypeError, ValueError, RecursionError):
            plain = False
        if not plain:
            raise ConfigError(f"{shown(name)} must be what JSON can hold; found {shown(value)}. Leave it out.")
    object.__setattr__(config, "extra", FrozenDict(config.extra))


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_thaw(item) for item in value]
    return value
