"""Checks of the image processor's settings, each of which also brings a value into its one form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flax_mnv2.errors import ConfigError
from flax_mnv2.files import shown
from flax_mnv2.image_processing.reading import CHANNELS_FIRST, CHANNELS_LAST, NO_CHANNELS
from flax_mnv2.image_processing.steps import MAX_PIXELS

MAX_SIDE = 65_535
# Pillow's numbers; those of later releases are left out, as older ones and transformers do not know them.
RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """Returns ``value``, or that of an enumeration's member, if it is one of ``choices``; True is not taken for 1."""
    value = getattr(value, "value", value)
    if isinstance(value, bool) is not isinstance(choices[0], bool) or value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}; found {shown(value)}.")
    return value


def _check_flag(name: str, value: Any) -> bool:
    return check_choice(name, value, (True, False))


def check_data_format(name: str, value: Any, *, none: bool = False) -> str | None:
    """Checks where channels are: a string or a member of transformers' ``ChannelDimension``; None stays.

    ``none`` allows ``"none"``, for an image without channels.
    """
    choices = (CHANNELS_LAST, CHANNELS_FIRST, NO_CHANNELS)
    return None if value is None else check_choice(name, value, choices if none else choices[:2])


def _check_convert_rgb(name: str, value: Any) -> bool:
    if value is not True:
        raise ConfigError(f"{name} must be True or left out, as every image becomes RGB; found {shown(value)}.")
    return value


def _check_resample(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in RESAMPLE_NAMES:
        listed = ", ".join(f"{number} ({label})" for number, label in RESAMPLE_NAMES.items())
        raise ConfigError(f"{name} must be one of Pillow's filters {listed}; found {shown(value)}.")
    return int(value)


def _check_pixels(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= MAX_SIDE:
        raise ConfigError(f"{name} must be a whole number of pixels from 1 to {MAX_SIDE}; found {shown(value)}.")
    return int(value)


def _check_sides(name: str, value: Any, forms: Sequence[set[str]]) -> dict[str, int]:
    """Returns a size in the first form from an int, in the last (height, width) from a pair, or in any of them."""
    if isinstance(value, (int, np.integer)):
        value = dict.fromkeys(sorted(forms[0]), value)
    elif type(value).__name__ == "SizeDict":  # transformers' own, which is no mapping
        value = dict(value)
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    if not isinstance(value, Mapping) or set(value) not in forms:
        expected = " or ".join("{" + ", ".join(f'"{key}": …' for key in sorted(form)) + "}" for form in forms)
        raise ConfigError(f"{name} must be {expected}, in pixels; found {shown(value)}.")
    return {key: _check_pixels(f"{name}[{shown(key)}]", side) for key, side in sorted(value.items())}


def _check_size(name: str, value: Any) -> dict[str, int]:
    return _check_sides(name, value, ({"shortest_edge"}, {"height", "width"}))


def _check_crop_size(name: str, value: Any) -> dict[str, int]:
    sides = _check_sides(name, value, ({"height", "width"},))
    if sides["height"] * sides["width"] > MAX_PIXELS:
        raise ConfigError(f"{name} must have at most {MAX_PIXELS:,} pixels; found {shown(value)}.")
    return sides


def check_target_sizes(values: Any) -> list[tuple[int, int]]:
    """Returns (height, width) in pixels of every image, from a list of pairs or an array of (images, 2)."""
    try:
        return [_check_target_size(value) for value in values]
    except TypeError:  # nothing to iterate over
        raise ConfigError(f"target_sizes must be a list of (height, width); found {shown(values)}.") from None


def _check_target_size(value: Any) -> tuple[int, int]:
    try:
        sides = np.asarray(value).tolist()
    except ValueError:  # lists of several lengths
        sides = None
    if not isinstance(sides, list) or len(sides) != 2:
        raise ConfigError(f"Each of target_sizes must be (height, width); found {shown(value)}.")
    height, width = _check_pixels("target_sizes height", sides[0]), _check_pixels("target_sizes width", sides[1])
    if height * width > MAX_PIXELS:
        raise ConfigError(f"Each of target_sizes must have at most {MAX_PIXELS:,} pixels; found {height}×{width}.")
    return height, width


def _is_finite(value: Any) -> bool:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    try:
        return number and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _check_factor(name: str, value: Any) -> float:
    if not _is_finite(value) or value <= 0:
        raise ConfigError(f"{name} must be a positive number, such as 1/255; found {shown(value)}.")
    return float(value)


def _check_channels(name: str, value: Any) -> list[float]:
    values = [value] * 3 if _is_finite(value) else value
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != 3 or not all(map(_is_finite, values)):
        raise ConfigError(f"{name} must be three finite numbers, for R, G and B, or one for all; found {shown(value)}.")
    return [float(item) for item in values]


def _check_std(name: str, value: Any) -> list[float]:
    values = _check_channels(name, value)
    if min(values) <= 0:
        raise ConfigError(f"{name} must be above 0, as the image is divided by it; found {shown(value)}.")
    return values


CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "do_resize": _check_flag,
    "size": _check_size,
    "resample": _check_resample,
    "do_center_crop": _check_flag,
    "crop_size": _check_crop_size,
    "do_rescale": _check_flag,
    "rescale_factor": _check_factor,
    "do_normalize": _check_flag,
    "image_mean": _check_channels,
    "image_std": _check_std,
    "do_reduce_labels": _check_flag,
    "do_convert_rgb": _check_convert_rgb,
}


def check_setting(name: str, value: Any) -> Any:
    """Returns a setting in its one form; None stays, of whatever setting."""
    return None if value is None else CHECKS[name](name, value)


def reject_unknown(settings: Mapping[str, Any]) -> None:
    """Raises a ConfigError that names what is no setting of the image processor."""
    unknown = sorted(set(settings) - set(CHECKS))
    if unknown:
        raise ConfigError(f"MobileNetV2ImageProcessor has no setting {', '.join(unknown)}; it has {', '.join(CHECKS)}.")
