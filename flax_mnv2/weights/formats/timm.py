"""timm's seven ``mobilenetv2_*`` ↔ tensors by Flax path; files of tensors, and its hub folders.

timm counts blocks by stage: ``blocks.0.0`` is the unexpanded block of our stem, ``blocks.2.1`` the second one of the
third stage. In an expanded block ``conv_pw`` expands and ``conv_pwl`` projects; in ``blocks.0.0`` ``conv_pw`` projects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flax_mnv2 import layer_plan as architecture
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.config.checks import GLOBAL_POOLS
from flax_mnv2.errors import ConfigError
from flax_mnv2.files import parse_json
from flax_mnv2.image_processing.processor import PROCESSOR_NAME, MobileNetV2ImageProcessor
from flax_mnv2.image_processing.settings import CHECKS, MAX_SIDE, RESAMPLE_NAMES
from flax_mnv2.weights.formats import pytorch
from flax_mnv2.weights.formats.base import CONFIG_NAME, Found
from flax_mnv2.weights.source import Checkpoint
from flax_mnv2.weights.tensors import Naming, Path, torch_naming

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
_TOP = {
    ("mobilenet_v2", "conv_stem", "first_conv", "convolution"): "conv_stem",
    ("mobilenet_v2", "conv_stem", "first_conv", "normalization"): "bn1",
    ("mobilenet_v2", "conv_1x1", "convolution"): "conv_head",
    ("mobilenet_v2", "conv_1x1", "normalization"): "bn2",
    ("classifier",): "classifier",
}
_UNEXPANDED = {"conv_3x3": ("conv_dw", "bn1"), "reduce_1x1": ("conv_pw", "bn2")}
_EXPANDED = {"expand_1x1": ("conv_pw", "bn1"), "conv_3x3": ("conv_dw", "bn2"), "reduce_1x1": ("conv_pwl", "bn3")}
CONFIG_KEY = "timm_config"  # where a folder's own config.json is kept in ours, to be written back
_FILTERS = {name: number for number, name in RESAMPLE_NAMES.items()}
_HARMLESS_ARGS = {
    "num_classes",
    "in_chans",
    "drop_rate",
    "drop_path_rate",
    "global_pool",
}  # of create_model: no other layers
_DEFAULT_PREPROCESSING = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": list(pytorch.IMAGENET_MEAN),
    "std": list(pytorch.IMAGENET_STD),
}


def naming(config: MobileNetV2Config) -> Naming:
    """Names in the network of ``config``, whose depth decides where a stage begins."""
    stages = _stage_of_block(config)

    def prefix_of(modules: Path) -> str | None:
        if modules in _TOP or modules[0] != "mobilenet_v2":
            return _TOP.get(modules)
        _, block, layer, kind = modules
        place, layers = ("0.0", _UNEXPANDED) if block == "conv_stem" else (stages.get(block), _EXPANDED)
        if place is None or layer not in layers:
            return None
        return f"blocks.{place}.{layers[layer][('convolution', 'normalization').index(kind)]}"

    return torch_naming(prefix_of, backbone=r"(conv_stem|bn1|blocks|conv_head|bn2)\.")


class TimmFormat(pytorch.PyTorchFormat):
    """A folder of timm's hub, or a state dict of one of its modules, in a file or in memory."""

    name = "timm"
    example = "conv_stem.weight, blocks.0.0.conv_dw.weight"
    naming = staticmethod(naming)
    built_by = f"the widths and depths of {', '.join(VARIANTS)}"

    def knows(self, names: Iterable[str]) -> bool:
        """By those of the stem or of the blocks."""
        return any(re.match(r"blocks\.\d+\.\d+\.|conv_stem\.weight$", name) for name in names)

    def recognises(self, found: Found) -> bool:
        """By the names of the tensors; a folder by its config."""
        if found.tensors is None:
            return is_config(found.values)
        return self.knows(found.tensors.unwrapped(self.knows).state)

    def config_of(self, state: Mapping[str, np.ndarray], values: Mapping[str, Any] | None = None) -> MobileNetV2Config:
        """Returns that of the variant that ``values`` name, or else of the one that ``state`` is like."""
        is_told = is_config(values)
        config = _variant_config(_variant_of(values) if is_told else _nearest_variant(state))
        fields = pytorch.state_fields(state, naming(config), default_labels=0)  # num_classes=0: no classifier
        classifier = state.get("classifier.weight")
        if classifier is not None and classifier.shape[1:] == (2 * config.layer_plan.last_channels,):
            fields["global_pool"] = "catavgmax"  # the only pooling that tensors show
        return config.replace(**(_fields_of(values, fields) if is_told else fields))

    def make_processor(self, found: Found) -> MobileNetV2ImageProcessor:
        """Returns what timm's evaluation transform does."""
        return processor_of_config(found.values if is_config(found.values) else {})

    def needs(self, state: Mapping[str, np.ndarray], config: MobileNetV2Config) -> tuple[str, dict[str, Any]]:
        """One of the variants."""
        return f"timm's {_nearest_variant(state)}", {"global_pool": config.global_pool}  # it has them all

    def texts(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Returns what timm's hub folder says beside the tensors."""
        variant = _nearest_variant(self.state_dict(checkpoint))
        return {CONFIG_NAME: folder_text(checkpoint.config, variant, _processor_of(checkpoint))}

    def left_behind(self, checkpoint: Checkpoint, *, is_file: bool) -> list[str]:
        """Returns what timm's evaluation transform cannot do, beside what no file can say."""
        notes, processor = super().left_behind(checkpoint, is_file=is_file), _processor_of(checkpoint)
        pool = checkpoint.config.global_pool
        if is_file and pool != "avg":
            notes.append(f"no tensor says global_pool: pass create_model(…, global_pool={pool!r})")
        if is_file or (processor is None and _kept_config(checkpoint.config)):
            return notes
        if processor is None:
            return [*notes, f"no {PROCESSOR_NAME}: timm's usual preprocessing is written"]
        theirs = processor_of_config(preprocessing_of(processor, 3))
        return notes + [
            f"timm cannot prepare images with {name}={getattr(processor, name)!r}: it resizes the shorter side, crops "
            "a square, scales by 1/255 and normalises"
            for name in CHECKS
            if name != "do_convert_rgb" and getattr(processor, name) != getattr(theirs, name)  # both do that anyway
        ]


def _processor_of(checkpoint: Checkpoint) -> MobileNetV2ImageProcessor | None:
    if checkpoint.processor_text is None:
        return None
    try:
        return MobileNetV2ImageProcessor.from_dict(parse_json(checkpoint.processor_text))
    except ValueError as error:
        raise ConfigError(f"The source's {PROCESSOR_NAME}: {error}") from None


def _variant_config(variant: str) -> MobileNetV2Config:
    fields = pytorch.SHARED_FIELDS | pytorch.WIDTH_RULE | VARIANTS[variant]
    return pytorch.with_fewest_own_fields(MobileNetV2Config(num_labels=2, **fields), search=False)


def _nearest_variant(state: Mapping[str, np.ndarray]) -> str:
    """Returns the variant that has the most widths of ``state``, and the fewest others."""

    def agreement(variant: str) -> int:
        config = _variant_config(variant)
        names, expected = naming(config), pytorch.norm_widths(config.layer_plan)
        widths = pytorch.state_widths(state, names, config.layer_plan)
        keys = {names.key_of(("params", *module, "normalization", "scale")) for module in expected}
        unexpected = sum(key.startswith("blocks.") and ".bn" in key and key.endswith(".weight") for key in state)
        unexpected -= sum(key in state and key.startswith("blocks.") for key in keys)
        return sum(widths.get(module) == width for module, width in expected.items()) - unexpected

    return max(VARIANTS, key=agreement)


def _stage_of_block(config: MobileNetV2Config) -> dict[str, str]:
    *middle, last = [repeats for _, repeats, _ in architecture.BLOCK_TABLE]
    repeats = [*(math.ceil(count * config.layer_depth_multiplier) for count in middle), last]
    places = [f"{stage}.{index}" for stage, count in enumerate(repeats, start=1) for index in range(count)]
    return {block.name: place for block, place in zip(config.layer_plan.blocks, places, strict=True)}


# ---- the config.json of hub folders ----------------------------------------------------------------------------------


def is_config(values: Mapping[str, Any] | None) -> bool:
    """Returns whether the contents of a ``config.json`` are timm's."""
    return bool(values) and "architecture" in values and "model_type" not in values


def _variant_of(values: Mapping[str, Any]) -> str:
    """Returns the variant that a config names, or a ConfigError where it or its settings are not ours."""
    name = str(values.get("architecture")).partition(".")[0]
    if name not in VARIANTS:
        raise ConfigError(
            f"The config.json is for timm's architecture {values.get('architecture')!r}; this library reads "
            f"{', '.join(VARIANTS)}."
        )
    unknown = sorted(set(_object(values, "model_args")) - _HARMLESS_ARGS)
    if _pool_of(values) not in GLOBAL_POOLS:
        unknown.append("global_pool")
    if unknown:
        raise ConfigError(
            f"The config.json builds timm's {name} with settings that this library does not have: {', '.join(unknown)}."
        )
    return name


def _pool_of(values: Mapping[str, Any]) -> str:
    """Returns how a config pools; timm's fast forms compute the same."""
    said = _object(values, "model_args").get("global_pool", values.get("global_pool", "avg"))
    return str(said).removeprefix("fast") or "avg" if said else "none"


def _fields_of(values: Mapping[str, Any], fields: Mapping[str, int]) -> dict[str, Any]:
    """Fields of our config: those that the tensors gave, and what timm's config says beside them."""
    fields = {**fields, "global_pool": _pool_of(values)}
    names = _label_names(values, fields["num_labels"])
    if names:
        del fields["num_labels"]
        fields["id2label"] = dict(enumerate(names))
    if "drop_rate" in _object(values, "model_args"):
        fields["classifier_dropout_prob"] = values["model_args"]["drop_rate"]
    size = _preprocessing(values)["input_size"][-1]
    return fields | {"image_size": size, "extra": {CONFIG_KEY: json.loads(json.dumps(values))}}


def processor_of_config(values: Mapping[str, Any]) -> MobileNetV2ImageProcessor:
    """Returns the image processor that does what timm's evaluation transform does, or a ConfigError."""
    said = _preprocessing(values)
    crop = said["input_size"][-1]
    try:
        return MobileNetV2ImageProcessor(
            size=math.floor(crop / said["crop_pct"]),
            crop_size=crop,
            resample=_FILTERS[said["interpolation"]],
            image_mean=said["mean"],
            image_std=said["std"],
        )
    except ConfigError as error:
        raise ConfigError(f"The preprocessing in the config.json of a timm folder: {error}") from None


def folder_text(config: MobileNetV2Config, variant: str, processor: MobileNetV2ImageProcessor | None) -> str:
    """Returns the ``config.json`` of a timm hub folder: the one that the weights came with, or a new one."""
    said = {} if processor is None else preprocessing_of(processor, config.num_channels)
    values = _kept_config(config)
    if values and _still_says(values, config, variant):
        if said and said != preprocessing_of(processor_of_config(values), config.num_channels):
            (values.get("pretrained_cfg") or values).update(said)
    else:
        values = {
            "architecture": variant,
            "num_classes": config.num_labels,
            "num_features": config.layer_plan.last_channels,
            "global_pool": config.global_pool,
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
        arguments = {"in_chans": (config.num_channels, 3), "global_pool": (config.global_pool, "avg")}
        if any(value != usual for value, usual in arguments.values()):
            values["model_args"] = {name: value for name, (value, usual) in arguments.items() if value != usual}
        names = [config.id2label[index] for index in sorted(config.id2label)]
        if names != [f"LABEL_{index}" for index in range(len(names))]:
            values["label_names"] = names
    return json.dumps(values, indent=2) + "\n"


def _still_says(values: Mapping[str, Any], config: MobileNetV2Config, variant: str) -> bool:
    """Returns whether timm's config builds the network of ours."""
    said = values.get("num_classes"), values.get("architecture"), _pool_of(values)
    channels = _object(values, "model_args").get("in_chans", 3)
    return (*said, channels) == (config.num_labels, variant, config.global_pool, config.num_channels)


def _kept_config(config: MobileNetV2Config) -> dict[str, Any]:
    """Returns the ``config.json`` of the timm folder that the weights came from; empty if they came from elsewhere."""
    kept = config.to_dict().get(CONFIG_KEY)
    return kept if isinstance(kept, dict) else {}


def preprocessing_of(processor: MobileNetV2ImageProcessor, num_channels: int) -> dict[str, Any]:
    """Returns those settings of an image processor that timm has a name for."""
    said: dict[str, Any] = {
        "interpolation": RESAMPLE_NAMES[processor.resample],
        "mean": processor.image_mean,
        "std": processor.image_std,
    }
    crop, edge = processor.crop_size["height"], processor.size.get("shortest_edge")
    if crop == processor.crop_size["width"]:
        said["input_size"] = [num_channels, crop, crop]
        if edge is not None:
            said["crop_pct"] = _crop_pct(crop, edge)
    return said


def _object(values: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    value = values.get(part) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{part} in the config.json of a timm folder must be an object.")
    return value


def _label_names(values: Mapping[str, Any], num_labels: int) -> list[str]:
    names = values.get("label_names")
    if not isinstance(names, list) or len(names) != num_labels:
        return []
    if not all(isinstance(name, (str, int)) for name in names):
        raise ConfigError("label_names in the config.json of a timm folder must be a list of names.")
    descriptions = _object(values, "label_descriptions")
    return [str(descriptions.get(name, name)) for name in names]


def _preprocessing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of timm's evaluation transform, its own where the config says nothing."""
    said = _DEFAULT_PREPROCESSING | {
        name: value
        for name, value in (_object(values, "pretrained_cfg") or values).items()
        if name in _DEFAULT_PREPROCESSING and value is not None  # null: timm's own
    }
    size, crop, interpolation = said["input_size"], said["crop_pct"], said["interpolation"]
    square = isinstance(size, list) and len(size) == 3 and isinstance(size[1], int) and size[1] == size[2]
    usable = square and 1 <= size[1] <= MAX_SIDE and isinstance(crop, (int, float)) and 0 < crop <= MAX_SIDE
    if not usable or not size[1] / crop <= MAX_SIDE or interpolation not in list(_FILTERS):
        raise ConfigError(
            "The config.json of a timm folder must have a square input_size, a crop_pct above 0 that resizes to at "
            f"most {MAX_SIDE} pixels, and an interpolation among {', '.join(_FILTERS)}; found {size!r}, {crop!r} and "
            f"{interpolation!r}."
        )
    return said


def _crop_pct(crop: int, edge: int) -> float:
    """Returns the quotient from which timm, which rounds ``crop / crop_pct`` down, computes ``edge`` again."""
    fraction = crop / edge
    while math.floor(crop / fraction) < edge:
        fraction = math.nextafter(fraction, 0.0)
    return fraction
