"""``MobileNetV2Config``: the architecture in the fields of Hugging Face's ``config.json``.

Field names, defaults and meanings are those of ``transformers``, so a config moves between the two libraries unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from flax.core import FrozenDict

from flax_mnv2.config import checks
from flax_mnv2.config.common import COMMON_DEFAULTS, DTYPE_KEYS, WRITTEN_IN_FULL
from flax_mnv2.config.deeplab import DeepLabSpec, as_spec
from flax_mnv2.config.detection import DetectionSpec
from flax_mnv2.config.quantization import QuantizationSpec, as_quantization
from flax_mnv2.errors import ConfigError
from flax_mnv2.files import read_json, shown, write_text
from flax_mnv2.hub import resolve_folder
from flax_mnv2.layer_plan import FeatureSpec, LayerPlan, make_layer_plan

CONFIG_NAME = "config.json"


def _as_in_transformers(cls: type) -> type:
    """Lets a frozen dataclass take any keyword, kept in ``extra``, and names ``replace`` where a field is assigned."""
    init = cls.__init__

    @functools.wraps(init)
    def take_any(self: Any, **values: Any) -> None:
        others = values.keys() - {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(others - COMMON_DEFAULTS.keys())
        if unknown:
            warnings.warn(
                f"{cls.__name__} has no field {', '.join(unknown)}; kept and written back, without an effect here.",
                stacklevel=2,
            )
        extra = {name: values.pop(name) for name in others}
        init(self, **values | ({"extra": {**values.get("extra", {}), **extra}} if extra else {}))

    def refuse(self: Any, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(
            f"A {cls.__name__} does not change; write config = config.replace({name}={shown(value)}), and make the "
            "model of it."
        )

    cls.__init__, cls.__setattr__ = take_any, refuse
    return cls


@_as_in_transformers
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
        shrink the map further, blocks dilate instead. What is never reached runs at 32, with a warning.
      first_layer_is_expansion: the first convolution doubles as the expansion of the first block.
      finegrained_output: the last 1×1 convolution keeps 1280 channels when α < 1.
      hidden_act: activation, one of ``flax_mnv2.config.checks.ACTIVATIONS``, or a function of arrays, elementwise.
      tf_padding: TensorFlow's SAME padding (asymmetric at stride 2 and even sizes); off, PyTorch's symmetric.
      classifier_dropout_prob: fraction of features dropped before the classifier while training. The default,
        0.8, is Hugging Face's, which took TF-slim's probability of *keeping* for one of dropping; training
        recipes set 0.2 (classification) or 0.1 (segmentation).
      initializer_range: standard deviation of the normal initialiser of every kernel.
      layer_norm_eps: epsilon of batch normalisation in the backbone (the DeepLab head has 1e-5).
      semantic_loss_ignore_index: label that the segmentation loss leaves out.
      output_hidden_states: whether models return the outputs of all blocks where a call does not say.
      return_dict: whether they return an output with names, or a tuple, where a call does not say.
      num_labels: classes of the head; follows from ``id2label`` where that is given, else 2.
      id2label: class index → name.
      label2id: name → class index, which may be a string of digits; names may repeat, then the last index stands.
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
      dilation_rule: which blocks dilate, once strides are removed: ``"tf"``, all after the block whose stride it was;
        ``"smp"``, that block too; ``"mmseg"``, the first block of each stage and no other. Ours.
      pad_block_input: pad the input of each block before its expansion, not what the depthwise convolution gets, and
        the image not at all (VainF's DeepLab); with ``tf_padding=False``. Ours.
      deeplab: the segmentation head, a ``DeepLabSpec``, its fields as a mapping, or the name of one of
        ``config.deeplab.PRESETS``; None is Hugging Face's. Ours.
      detection: maps, anchors and losses of a detector, a ``DetectionSpec`` or its fields as a mapping; None is the
        original's. Ours.
      quantization: how weights and activations are quantised in training, a ``QuantizationSpec``, its fields as a
        mapping, or ``"int8"`` or ``"uint8"``; None for a network in floating point. Ours.
      extra: keys of a ``config.json`` that are not listed here, kept so that they are written back. Each is read as an
        attribute too, and keywords that are no fields go here: those that every config of transformers has
        (``architectures``, ``dtype``, ``output_attentions``, …), others with a warning.

    Raises:
      ConfigError: a field has the wrong type or is out of range, or labels disagree with ``num_labels``.
    """

    model_type: ClassVar[str] = "mobilenet_v2"

    num_channels: int = 3
    image_size: int | tuple[int, int] = 224
    depth_multiplier: float = 1.0
    depth_divisible_by: int = 8
    min_depth: int = 8
    expand_ratio: float = 6.0
    output_stride: int = 32
    first_layer_is_expansion: bool = True
    finegrained_output: bool = True
    hidden_act: str | Callable[..., Any] = "relu6"
    tf_padding: bool = True
    classifier_dropout_prob: float = 0.8
    initializer_range: float = 0.02
    layer_norm_eps: float = 0.001
    semantic_loss_ignore_index: int = 255
    output_hidden_states: bool = False
    return_dict: bool = True
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
    dilation_rule: str = "tf"
    pad_block_input: bool = False
    deeplab: DeepLabSpec | None = None
    detection: DetectionSpec | None = None
    quantization: QuantizationSpec | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=FrozenDict, hash=False)

    def __post_init__(self):
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in checks.CHECKS and (value is not None or field.default is not None):
                values[field.name] = checks.CHECKS[field.name](field.name, value)
        labels = checks.resolve_labels(self.num_labels, self.id2label, self.label2id)
        checks.check_problem_type(self.problem_type, labels[0])
        values |= zip(("num_labels", "id2label", "label2id"), labels, strict=True)
        values["extra"] = checks.check_extra(self.extra)
        values |= {"deeplab": as_spec(self.deeplab), "quantization": as_quantization(self.quantization)}
        checks.check_padding(pad_block_input=self.pad_block_input, tf_padding=self.tf_padding)
        if self.detection is not None and not isinstance(self.detection, DetectionSpec):
            values["detection"] = DetectionSpec.from_dict(self.detection)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        others = {**COMMON_DEFAULTS, **vars(self).get("extra", {})}
        if name not in others:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in DTYPE_KEYS:
            return next((others[key] for key in DTYPE_KEYS if others[key] is not None), None)
        return others[name]

    @property
    def use_return_dict(self) -> bool:
        """Former name of ``return_dict``."""
        return self.return_dict

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

    def replace(self, **changes: Any) -> MobileNetV2Config:
        """Returns a copy with some fields changed; a new ``num_labels`` or ``id2label`` drops the old names.

        Raises:
          ConfigError: a value is out of range, or its name is no field, no key that every config of transformers has,
            and none in ``extra``.
        """
        unknown = sorted(name for name in changes if not self._has_key(name))
        if unknown:
            known = (field.name for field in dataclasses.fields(self))
            raise ConfigError(
                f"MobileNetV2Config has no field {', '.join(unknown)}; its fields are {', '.join(known)}."
            )
        if {"num_labels", "id2label"} & changes.keys():
            changes = {"num_labels": None, "id2label": None, "label2id": None, **changes}
        fields = {name: changes[name] for name in changes if name in (*_public_fields(), "extra")}
        others = {name: changes[name] for name in changes if name not in fields}
        if others:
            fields["extra"] = {**fields.get("extra", self.extra), **others}
        return dataclasses.replace(self, **fields)

    def _has_key(self, name: str) -> bool:
        return name in (*_public_fields(), "extra", *COMMON_DEFAULTS, *self.extra)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | pathlib.Path,
        *,
        revision: str | None = None,
        cache_dir: str | pathlib.Path | None = None,
        **options: Any,
    ) -> MobileNetV2Config:
        """Reads the config of a model.

        Args:
          pretrained_model_name_or_path: a folder, a ``config.json`` itself, or a hub id such as
            ``google/mobilenet_v2_1.0_224``.
          revision: branch, tag or commit of a hub id.
          cache_dir: where downloads are kept; None is huggingface_hub's default.
          **options: as for ``from_dict``.

        Returns:
          The config, or a pair as ``from_dict`` does.

        Raises:
          CheckpointError: no such folder or hub id.
          ConfigError: the file is missing, is not JSON, does not describe a MobileNetV2, or an override is wrong.
        """
        path = pathlib.Path(pretrained_model_name_or_path)
        if not path.is_file():
            path = (
                resolve_folder(
                    pretrained_model_name_or_path, revision=revision, cache_dir=cache_dir, files=(CONFIG_NAME,)
                )
                / CONFIG_NAME
            )
        return cls._read(path, **options)

    @classmethod
    def from_json_file(cls, path: str | pathlib.Path) -> MobileNetV2Config:
        """Reads a ``config.json``.

        Raises:
          ConfigError: the file is missing, is not JSON, or does not describe a MobileNetV2.
        """
        return cls._read(pathlib.Path(path))

    @classmethod
    def _read(cls, path: pathlib.Path, **options: Any) -> Any:
        try:
            values = read_json(path)
        except FileNotFoundError:
            raise ConfigError(f"No model config at {path}; expected a {CONFIG_NAME} beside the weights.") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"Cannot read the model config {path}: {error}") from None
        try:
            return cls.from_dict(values, **options)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, return_unused_kwargs: bool = False, **overrides: Any
    ) -> MobileNetV2Config:
        """Builds a config from the contents of a ``config.json``; keys it does not know go to ``extra``.

        Args:
          values: those contents.
          return_unused_kwargs: whether to return what of the overrides is no key of the config; otherwise there is a
            warning of it.
          **overrides: fields to change, such as ``tf_padding=False``.

        Returns:
          The config; with ``return_unused_kwargs`` (config, unused overrides).

        Raises:
          ConfigError: not a mapping, another ``model_type``, or a field that does not pass the checks.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"A model config must be a JSON object; found {type(values).__name__}.")
        values = dict(values)
        model_type = values.pop("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ConfigError(
                f"The config is for model_type {shown(model_type)}; this library reads {cls.model_type!r}. "
                "Check that the folder or hub id is the one you meant."
            )
        fields = {name: values.pop(name) for name in _public_fields() if name in values}
        config = cls(**fields, extra=values)
        for name in DTYPE_KEYS:
            if overrides.get(name) == "auto":  # as the file says
                del overrides[name]
        unused = {name: overrides.pop(name) for name in list(overrides) if not config._has_key(name)}
        config = config.replace(**overrides) if overrides else config
        if return_unused_kwargs:
            return config, unused
        if unused:
            warnings.warn(f"{cls.__name__} has no field {', '.join(unused)}; left out.", stacklevel=2)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns every field of Hugging Face's, and ours where they are not their default."""
        shared = {name: getattr(self, name) for name in (*WRITTEN_IN_FULL, *_WRITTEN_IF_SET)}
        return checks.thaw(shared) | self.to_diff_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the contents of a ``config.json``: what ``to_dict`` has without what any config has by default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = {"model_type": self.model_type, **checks.thaw(self.extra)}
        for name in _public_fields():
            value = getattr(self, name)
            if name == "num_labels" or (name in _WRITTEN_IF_SET + _OWN_FIELDS and value == defaults[name]):
                continue  # transformers derives num_labels from id2label
            values[name] = checks.thaw(value)
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns the text of a ``config.json`` that this library and transformers read.

        Args:
          use_diff: whether to leave out what any config has by default.

        Raises:
          ConfigError: ``hidden_act`` is a function.
        """
        if callable(self.hidden_act):
            raise ConfigError(
                f"hidden_act is a function, {shown(self.hidden_act)}, which a {CONFIG_NAME} cannot hold. Save it with "
                f"one of {', '.join(checks.ACTIVATIONS)}, and set the function again after loading."
            )
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, path: str | pathlib.Path, use_diff: bool = True) -> None:
        """Writes a ``config.json``; arguments and errors as for ``to_json_string``."""
        write_text(pathlib.Path(path), self.to_json_string(use_diff))

    def save_pretrained(self, folder: str | pathlib.Path) -> None:
        """Writes ``config.json`` into a folder, which is made if it is not there; errors as for ``to_json_string``."""
        folder = pathlib.Path(folder)
        if folder.is_file():
            raise ConfigError(f"{folder} is a file, where a folder is needed; name another place.")
        text = self.to_json_string()
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_NAME, text)


# A config.json has these only where they differ from their default: what every config of transformers has, …
_WRITTEN_IF_SET = ("output_hidden_states", "return_dict", "problem_type")
# … and what Hugging Face does not know.
_OWN_FIELDS = (
    "batch_norm_momentum",
    "head_batch_norm_momentum",
    "classifier_initializer_range",
    "pool_window",
    "global_pool",
    "layer_depth_multiplier",
    "fixed_stem_and_head",
    "stem_residual",
    "round_widths",
    "dilation_rule",
    "pad_block_input",
    "deeplab",
    "detection",
    "quantization",
)


def _public_fields() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(MobileNetV2Config) if field.name != "extra")
