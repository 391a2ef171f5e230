"""timm's seven ``mobilenetv2_*`` ↔ tensors by Flax path, and the ``config.json`` of its hub folders.

timm counts blocks by stage: ``blocks.0.0`` is the unexpanded block of our stem, ``blocks.2.1`` the second one of the
third stage. In an expanded block ``conv_pw`` expands and ``conv_pwl`` projects; in ``blocks.0.0`` ``conv_pw`` projects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_mnv2 import layer_plan as architecture
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.image_processing.settings import MAX_SIDE, RESAMPLE_NAMES
from flax_mnv2.weights import pytorch
from flax_mnv2.weights.tensors import Naming, Path, torch_naming
from flax_mnv2.weights.widths import norm_widths, plan_differences

# Width, depth of the stages between the first and the last, and whether stem and head keep their width.
VARIANTS: dict[str, dict[str, Any]] = {
    "mobilenetv2_035": {"depth_multiplier": 0.35},
    "mobilenetv2_050": {"depth_multiplier": 0.5},
    "mobilenetv2_075": {"depth_multiplier": 0.75},
    "mobilenetv2_100": {"depth_multiplier": 1.0},
    "mobilenetv2_110d": {"depth_multiplier": 1.1, "layer_depth_multiplier": 1.2, "fixed_stem_and_head": True},
    "mobilenetv2_120d": {"depth_multiplier": 1.2, "layer_depth_multiplier": 1.4, "fixed_stem_and_head": True},
    "mobilenetv2_140": {"depth_multiplier": 1.4},
}
CONFIG_KEY = "timm_config"  # where a folder's own config.json is kept in ours, to be written back
_TOP = {
    ("mobilenet_v2", "conv_stem", "first_conv", "convolution"): "conv_stem",
    ("mobilenet_v2", "conv_stem", "first_conv", "normalization"): "bn1",
    ("mobilenet_v2", "conv_1x1", "convolution"): "conv_head",
    ("mobilenet_v2", "conv_1x1", "normalization"): "bn2",
    ("classifier",): "classifier",
}
_UNEXPANDED = {"conv_3x3": ("conv_dw", "bn1"), "reduce_1x1": ("conv_pw", "bn2")}
_EXPANDED = {"expand_1x1": ("conv_pw", "bn1"), "conv_3x3": ("conv_dw", "bn2"), "reduce_1x1": ("conv_pwl", "bn3")}
_FILTERS = {name: number for number, name in RESAMPLE_NAMES.items()}
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")  # timm's evaluation has them all
_HARMLESS_ARGS = {"num_classes", "in_chans", "drop_rate", "drop_path_rate"}  # of create_model: no other network
_DEFAULT_PREPROCESSING = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": list(pytorch.IMAGENET_MEAN),
    "std": list(pytorch.IMAGENET_STD),
}


def recognises(keys: Mapping[str, object]) -> bool:
    """Whether tensor names are timm's."""
    return any(key.startswith("blocks.") or key == "conv_stem.weight" for key in keys)


def naming(config: MobileNetV2Config) -> Naming:
    """Names in the network of ``config``, whose depth decides where a stage begins."""
    stages = _stage_of_block(config)

    def prefix_of(modules: Path) -> str:
        if modules in _TOP:
            return _TOP[modules]
        _, block, layer, kind = modules
        position = ("convolution", "normalization").index(kind)
        if block == "conv_stem":
            return f"blocks.0.0.{_UNEXPANDED[layer][position]}"
        stage, index = stages[block]
        return f"blocks.{stage}.{index}.{_EXPANDED[layer][position]}"

    return torch_naming(prefix_of)


def config_of(state: Mapping[str, np.ndarray], timm_config: Mapping[str, Any] | None = None) -> MobileNetV2Config:
    """The config of the variant that ``state`` is; where it is none, the nearest, so that a diff can say why not.

    Args:
      state: tensors by name.
      timm_config: contents of the ``config.json`` of timm's hub folder; the variant is then the one it names.

    Raises:
      ConfigError: ``timm_config`` is for another model, or for settings that this library does not have.
    """
    variant = _nearest_variant(state) if timm_config is None else _named_variant(timm_config)
    config = _variant_config(variant)
    fields = pytorch.state_fields(state, naming(config), default_labels=0)  # num_classes=0: no classifier
    if timm_config is None:
        return config.replace(**fields)
    rate = (timm_config.get("model_args") or {}).get("drop_rate", config.classifier_dropout_prob)
    names = _label_names(timm_config, fields["num_labels"])
    labels = {"id2label": dict(enumerate(names))} if names else {"num_labels": fields.pop("num_labels")}
    fields.pop("num_labels", None)
    size = _preprocessing(timm_config)["input_size"][-1]
    extra = {CONFIG_KEY: json.loads(json.dumps(timm_config))}
    return config.replace(**fields, **labels, classifier_dropout_prob=rate, image_size=size, extra=extra)


def make_processor(timm_config: Mapping[str, Any] | None = None) -> MobileNetV2ImageProcessor:
    """The image processor that does what timm's evaluation transform does.

    Raises:
      ConfigError: ``timm_config``, as for ``config_of``, has a setting of the wrong form or out of its range.
    """
    values = _preprocessing(timm_config or {})
    crop = values["input_size"][-1]
    try:
        return MobileNetV2ImageProcessor(
            size=math.floor(crop / values["crop_pct"]),
            crop_size=crop,
            resample=_FILTERS[values["interpolation"]],
            image_mean=values["mean"],
            image_std=values["std"],
        )
    except ConfigError as error:
        raise ConfigError(f"The preprocessing in the config.json of a timm folder: {error}") from None


def unsaid_settings(processor: MobileNetV2ImageProcessor) -> list[str]:
    """Names of the settings of ``processor`` that timm's evaluation transform cannot have."""
    unsaid = [name for name in _STEPS if not getattr(processor, name)]
    if processor.do_rescale and not math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-6):
        unsaid.append("rescale_factor")
    if processor.do_resize and "shortest_edge" not in processor.size:
        unsaid.append("size")
    if processor.do_center_crop and _crop_side(processor) is None:
        unsaid.append("crop_size")
    return unsaid


def check_target(config: MobileNetV2Config, task: str) -> str:
    """The variant that has the layers of ``config``.

    Raises:
      ConfigError: timm has no such network; the message names the fields.
    """
    plan, stride = config.layer_plan, config.output_stride
    plans = {name: _variant_config(name).replace(output_stride=stride).layer_plan for name in VARIANTS}
    widths = norm_widths(plan).items()
    nearest = max(plans, key=lambda name: len(widths & norm_widths(plans[name]).items()))
    pytorch.check_target(f"timm's {nearest}", config, task, plan_differences(needed=plans[nearest], found=plan))
    return nearest


def folder_config_text(config: MobileNetV2Config, variant: str, processor: MobileNetV2ImageProcessor | None) -> str:
    """The ``config.json`` of a timm hub folder: the one that the weights came with, or a new one.

    Args:
      config: of the model.
      variant: its name in timm.
      processor: what prepares its images, if that is known.

    Raises:
      ConfigError: the one that the weights came with is damaged.
    """
    said = {} if processor is None else _from_processor(processor, config.num_channels)
    kept = kept_config(config)
    if kept.get("num_classes") == config.num_labels and kept.get("architecture") == variant:
        values = kept
        if said and said != _from_processor(make_processor(kept), config.num_channels):
            (values.get("pretrained_cfg") or values).update(said)
    else:
        values = {
            "architecture": variant,
            "num_classes": config.num_labels,
            "num_features": config.layer_plan.last_channels,
            "global_pool": "avg",
            "pretrained_cfg": {
                **_DEFAULT_PREPROCESSING,
                "input_size": [config.num_channels, 224, 224],
                **said,
                "num_classes": config.num_labels,
                "pool_size": [7, 7],
                "first_conv": "conv_stem",
                "classifier": "classifier",
            },
        }
        if config.num_channels != 3:
            values["model_args"] = {"in_chans": config.num_channels}
        names = [config.id2label[index] for index in sorted(config.id2label)]
        if names != [f"LABEL_{index}" for index in range(len(names))]:
            values["label_names"] = names
    return json.dumps(values, indent=2) + "\n"


def kept_config(config: MobileNetV2Config) -> dict[str, Any]:
    """The ``config.json`` of the timm folder that the weights came from; empty if they came from elsewhere."""
    kept = config.extra.get(CONFIG_KEY)
    return _plain(kept) if isinstance(kept, Mapping) else {}


def _variant_config(variant: str) -> MobileNetV2Config:
    fields = pytorch.SHARED_FIELDS | pytorch.WIDTH_RULE | VARIANTS[variant]
    return pytorch.with_fewest_own_fields(MobileNetV2Config(num_labels=2, **fields), search=False)


def _stage_of_block(config: MobileNetV2Config) -> dict[str, tuple[int, int]]:
    *middle, last = [repeats for _, repeats, _ in architecture.BLOCK_TABLE]
    repeats = [*(math.ceil(count * config.layer_depth_multiplier) for count in middle), last]
    places = [(stage, index) for stage, count in enumerate(repeats, start=1) for index in range(count)]
    return {block.name: place for block, place in zip(config.layer_plan.blocks, places, strict=True)}


def _nearest_variant(state: Mapping[str, np.ndarray]) -> str:
    def agreement(variant: str) -> int:
        config = _variant_config(variant)
        names, plan = naming(config), norm_widths(config.layer_plan)
        widths = pytorch.state_widths(state, names, tuple(plan))
        expected = {names.key_of(("params", *module, "normalization", "scale")) for module in plan}
        unexpected = sum(key.startswith("blocks.") and ".bn" in key and key.endswith(".weight") for key in state)
        unexpected -= sum(key in state and key.startswith("blocks.") for key in expected)
        return sum(widths.get(module) == width for module, width in plan.items()) - unexpected

    return max(VARIANTS, key=agreement)


def _named_variant(timm_config: Mapping[str, Any]) -> str:
    for part in ("model_args", "label_descriptions"):
        _object(timm_config, part)
    name = str(timm_config.get("architecture")).partition(".")[0]
    if name not in VARIANTS:
        raise ConfigError(
            f"The config.json is for timm's architecture {timm_config.get('architecture')!r}; this library reads "
            f"{', '.join(VARIANTS)}."
        )
    settings = {"global_pool": timm_config.get("global_pool", "avg")} | dict(timm_config.get("model_args") or {})
    unknown = sorted(set(settings) - _HARMLESS_ARGS - ({"global_pool"} if settings["global_pool"] == "avg" else set()))
    if unknown:
        raise ConfigError(
            f"The config.json builds timm's {name} with settings that this library does not have: {', '.join(unknown)}."
        )
    return name


def _object(timm_config: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    value = timm_config.get(part) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{part} in the config.json of a timm folder must be an object.")
    return value


def _label_names(timm_config: Mapping[str, Any], num_labels: int) -> list[str]:
    names = timm_config.get("label_names")
    if not isinstance(names, list) or len(names) != num_labels:
        return []
    if not all(isinstance(name, (str, int)) for name in names):
        raise ConfigError("label_names in the config.json of a timm folder must be a list of names.")
    descriptions = timm_config.get("label_descriptions") or {}
    return [str(descriptions.get(name, name)) for name in names]


def _preprocessing(timm_config: Mapping[str, Any]) -> dict[str, Any]:
    values = _DEFAULT_PREPROCESSING | {
        name: value
        for name, value in (_object(timm_config, "pretrained_cfg") or timm_config).items()
        if name in _DEFAULT_PREPROCESSING and value is not None  # null: timm's own
    }
    size, crop, interpolation = values["input_size"], values["crop_pct"], values["interpolation"]
    square = isinstance(size, list) and len(size) == 3 and isinstance(size[1], int) and size[1] == size[2]
    usable = square and 1 <= size[1] <= MAX_SIDE and isinstance(crop, (int, float)) and 0 < crop <= MAX_SIDE
    if not usable or not size[1] / crop <= MAX_SIDE or interpolation not in list(_FILTERS):
        raise ConfigError(
            "The config.json of a timm folder must have a square input_size, a crop_pct above 0 that resizes to at "
            f"most {MAX_SIDE} pixels, and an interpolation among {', '.join(_FILTERS)}; found {size!r}, {crop!r} and "
            f"{interpolation!r}."
        )
    return values


def _from_processor(processor: MobileNetV2ImageProcessor, num_channels: int) -> dict[str, Any]:
    """Those settings of an image processor that timm has a name for."""
    said: dict[str, Any] = {
        "interpolation": RESAMPLE_NAMES[processor.resample],
        "mean": processor.image_mean,
        "std": processor.image_std,
    }
    crop, edge = _crop_side(processor), processor.size.get("shortest_edge")
    if crop is not None:
        said["input_size"] = [num_channels, crop, crop]
        if edge is not None:
            said["crop_pct"] = _crop_pct(crop, edge)
    return said


def _crop_side(processor: MobileNetV2ImageProcessor) -> int | None:
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    return height if height == width else None


def _crop_pct(crop: int, edge: int) -> float:
    """The quotient from which timm, which rounds ``crop / crop_pct`` down, computes ``edge`` again."""
    fraction = crop / edge
    while math.floor(crop / fraction) < edge:
        fraction = math.nextafter(fraction, 0.0)
    return fraction


def _plain(value: Any) -> Any:
    """Frozen mappings and tuples → what JSON writes."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
