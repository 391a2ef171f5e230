"""The ``config.json`` of timm's hub folders ↔ fields of our config and the image processor."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from typing import Any

from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.errors import ConfigError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.image_processing.settings import CHECKS, MAX_SIDE, RESAMPLE_NAMES
from flax_mnv2.weights.formats.pytorch import IMAGENET_MEAN, IMAGENET_STD

CONFIG_KEY = "timm_config"  # where a folder's own config.json is kept in ours, to be written back
_FILTERS = {name: number for number, name in RESAMPLE_NAMES.items()}
_HARMLESS_ARGS = {"num_classes", "in_chans", "drop_rate", "drop_path_rate"}  # of create_model: no other network
_DEFAULT_PREPROCESSING = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
}


def recognises(values: Mapping[str, Any] | None) -> bool:
    """Whether the contents of a ``config.json`` are timm's."""
    return bool(values) and "architecture" in values and "model_type" not in values


def variant_of(values: Mapping[str, Any], variants: Container[str]) -> str:
    """The variant that a config names, or a ConfigError where it or its settings are not ours."""
    for part in ("model_args", "label_descriptions"):
        _object(values, part)
    name = str(values.get("architecture")).partition(".")[0]
    if name not in variants:
        raise ConfigError(
            f"The config.json is for timm's architecture {values.get('architecture')!r}; this library reads "
            f"{', '.join(variants)}."
        )
    settings = {"global_pool": values.get("global_pool", "avg")} | dict(_object(values, "model_args"))
    unknown = sorted(set(settings) - _HARMLESS_ARGS - ({"global_pool"} if settings["global_pool"] == "avg" else set()))
    if unknown:
        raise ConfigError(
            f"The config.json builds timm's {name} with settings that this library does not have: {', '.join(unknown)}."
        )
    return name


def fields_of(values: Mapping[str, Any], fields: Mapping[str, int]) -> dict[str, Any]:
    """Fields of our config: those that the tensors gave, and what timm's config says beside them."""
    fields = dict(fields)
    names = _label_names(values, fields["num_labels"])
    if names:
        del fields["num_labels"]
        fields["id2label"] = dict(enumerate(names))
    if "drop_rate" in _object(values, "model_args"):
        fields["classifier_dropout_prob"] = values["model_args"]["drop_rate"]
    size = _preprocessing(values)["input_size"][-1]
    return fields | {"image_size": size, "extra": {CONFIG_KEY: json.loads(json.dumps(values))}}


def make_processor(values: Mapping[str, Any]) -> MobileNetV2ImageProcessor:
    """The image processor that does what timm's evaluation transform does, or a ConfigError."""
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


def unsaid_settings(processor: MobileNetV2ImageProcessor) -> list[str]:
    """Names of the settings of ``processor`` that timm's evaluation transform would have otherwise."""
    theirs = make_processor(preprocessing_of(processor, 3))
    return [name for name in CHECKS if getattr(processor, name) != getattr(theirs, name)]


def folder_text(config: MobileNetV2Config, variant: str, processor: MobileNetV2ImageProcessor | None) -> str:
    """The ``config.json`` of a timm hub folder: the one that the weights came with, or a new one."""
    said = {} if processor is None else preprocessing_of(processor, config.num_channels)
    values = kept_config(config)
    if values.get("num_classes") == config.num_labels and values.get("architecture") == variant:
        if said and said != preprocessing_of(make_processor(values), config.num_channels):
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
    kept = config.to_dict().get(CONFIG_KEY)
    return kept if isinstance(kept, dict) else {}


def preprocessing_of(processor: MobileNetV2ImageProcessor, num_channels: int) -> dict[str, Any]:
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
    """The settings of timm's evaluation transform, its own where the config says nothing."""
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


def _crop_side(processor: MobileNetV2ImageProcessor) -> int | None:
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    return height if height == width else None


def _crop_pct(crop: int, edge: int) -> float:
    """The quotient from which timm, which rounds ``crop / crop_pct`` down, computes ``edge`` again."""
    fraction = crop / edge
    while math.floor(crop / fraction) < edge:
        fraction = math.nextafter(fraction, 0.0)
    return fraction
