"""Masks as annotation tools write them → class indices."""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from flax_mnv2.data.decode import check_encoded
from flax_mnv2.data.labels.names import Color, LabelNames
from flax_mnv2.errors import ConfigError, DataError

AS_IS = "as_is"
IGNORE = "ignore"

_GREY, _DEEP, _COLORED = ("1", "L", "P"), ("I", "I;16", "I;16B"), ("RGB", "RGBA", "LA")  # Pillow's modes
_VOC_VOID = (224, 224, 192)  # the colour that VOC's palette has for 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRule:
    """What the values and colours of masks mean.

    Attributes:
      labels: the classes; their colours say what masks in colours mean.
      ignore_label: the value of pixels without a class, before and after.
      values: class, or ``ignore_label``, by value in the mask; None: values are classes.
      reduce_labels: 0 becomes ``ignore_label`` and other values one less, as by the image processor's option.
      as_is: the user says that values are classes, so that nobody asks whether they can be.
    """

    labels: LabelNames
    ignore_label: int
    values: Mapping[int, int] | None = None
    reduce_labels: bool = False
    as_is: bool = False

    @property
    def is_explicit(self) -> bool:
        """Whether the user has said how masks are to be read."""
        return self.as_is or self.reduce_labels or self.values is not None or bool(self.labels.colors)

    def classes(self, data: bytes) -> np.ndarray:
        """Decodes a PNG mask to uint8 (H, W) of class indices and ``ignore_label``.

        A DataError for what is no whole PNG, and for values and colours that are no class; it has no name and no full
        stop, for the caller to complete.
        """
        pixels, palette = _decode(data)
        if pixels.ndim == 3 and not self.labels.colors:
            if not (pixels == pixels[..., :1]).all():
                raise DataError(
                    f"expected class indices (a grey or palette PNG), found the colours {_listed(_colors(pixels))}. "
                    "Give a --config.data.labels file with lines 'name:R,G,B'"
                )
            pixels = pixels[..., 0]  # grey, as three channels
        if pixels.ndim == 3:
            return self._by_color(pixels)
        table = self._by_palette(palette, np.unique(pixels).tolist())
        return self._by_value(pixels) if table is None else table[pixels]

    def _by_palette(self, palette: Sequence[Color], found: Sequence[int]) -> np.ndarray | None:
        """Returns class by index, uint8 (256,), where the palette shows the classes' colours; else indices count."""
        indices = [index for index in found if index != self.ignore_label]
        if not palette or not all(palette[index] in self.labels.colors for index in indices):
            return None
        table = np.full(256, self.ignore_label, np.uint8)
        table[indices] = [self.labels.colors.index(palette[index]) for index in indices]
        return table

    def _by_color(self, pixels: np.ndarray) -> np.ndarray:
        codes = _code(pixels.astype(np.int32))
        known = {_VOC_VOID: self.ignore_label} | {color: index for index, color in enumerate(self.labels.colors)}
        ordered = sorted(known, key=_code)
        table = np.array([_code(color) for color in ordered])
        place = np.minimum(np.searchsorted(table, codes), len(table) - 1)
        if (table[place] != codes).any():
            unknown = _colors(pixels[table[place] != codes])
            raise DataError(
                f"the mask has the colour{'s' * (len(unknown) > 1)} {_listed(unknown)}, which --config.data.labels "
                "has no class for. Add lines 'name:R,G,B', or correct the mask"
            )
        return np.array([known[color] for color in ordered], np.uint8)[place]

    def _by_value(self, pixels: np.ndarray) -> np.ndarray:
        count, found = len(self.labels.names), np.unique(pixels).tolist()
        mapping = self._mapping(count)
        unknown = [value for value in found if value not in mapping]
        if unknown:
            least = int(self.reduce_labels)
            expected = _listed(sorted(self.values)) if self.values else f"{least} … {count - 1 + least}"
            raise DataError(
                f"the mask has the value{'s' * (len(unknown) > 1)} {_listed(unknown)}, expected {expected} "
                f"({_listed(self.labels.names, 4)}) or the ignore label {self.ignore_label}. "
                f"{self._advice(found, unknown)}"
            )
        if all(value == target for value, target in mapping.items()):
            return pixels.astype(np.uint8, copy=False)
        table = np.zeros(max(found) + 1, np.uint8)
        table[found] = [mapping[value] for value in found]
        return table[pixels]

    def _mapping(self, count: int) -> dict[int, int]:
        """Class, or the ignore label, by value."""
        own = {self.ignore_label: self.ignore_label}
        if self.values is not None:
            return own | dict(self.values)
        if self.reduce_labels:
            return {value + 1: value for value in range(count)} | {0: self.ignore_label} | own
        return {value: value for value in range(count)} | own

    def _advice(self, found: Sequence[int], unknown: Sequence[int]) -> str:
        count = len(self.labels.names)
        if self.is_explicit:
            return "Correct the mask, or config.data.label_map, .reduce_labels or .labels"
        if unknown == [count]:
            return (
                "If 0 has no class and classes count from 1, set --config.data.reduce_labels=True; if 0 is the "
                "background, name it first in --config.data.labels"
            )
        if len(found) <= count:
            example = ",".join(f"{value}:{index}" for index, value in enumerate(found))
            return f"Say what values mean, such as --config.data.label_map={example}, or correct the mask or the labels"
        return "Correct the mask, or the labels (--config.data.labels, .num_classes, .ignore_label, .label_map)"


def parse_label_map(text: str, names: Sequence[str], ignore_label: int) -> dict[int, int] | None:
    """Returns classes by value in the mask from text such as ``0:0,255:1``; None from an empty one and from ``as_is``.

    A class is an index, a name, or ``ignore``. A ConfigError for anything else.
    """
    if text in ("", AS_IS):
        return None
    targets = {str(index): index for index in range(len(names))} | {IGNORE: ignore_label}
    targets |= {name: index for index, name in enumerate(names)}
    mapping: dict[int, int] = {}
    for part in text.split(","):
        value, _, target = (piece.strip() for piece in part.partition(":"))
        if not value.isdecimal() or int(value) > 65535 or target not in targets or int(value) in mapping:
            raise ConfigError(
                f"config.data.label_map has {part.strip()[:80]!r}, expected VALUE:CLASS, each value of the masks once "
                f"and as CLASS 0 … {len(names) - 1}, a name or {IGNORE}; such as 0:0,255:1, or {AS_IS} alone."
            )
        mapping[int(value)] = targets[target]
    return mapping


def _decode(data: bytes) -> tuple[np.ndarray, list[Color]]:
    """Returns values (H, W) or colours (H, W, 3), and the palette, which is empty where there is none."""
    try:
        check_encoded(data)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            mode, pixels = image.mode, np.array(image)
            palette = np.reshape(image.getpalette("RGB"), (-1, 3)).tolist() if mode == "P" else []
    except Exception as error:  # Pillow's readers raise many types
        raise DataError(f"not a readable PNG mask ({error or type(error).__name__}). Replace the file") from error
    if mode in _GREY:
        return pixels.astype(np.uint8, copy=False), [tuple(color) for color in palette]
    if mode in _DEEP and pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels, []
    if mode not in _COLORED or (mode != "RGB" and (pixels[..., -1] != 255).any()):
        raise DataError(
            "expected a mask of one channel (grey or palette PNG), or in colours, found mode "
            f"{mode}{' with transparent pixels' if mode in _COLORED else ''}. Convert it to class indices"
        )
    return pixels[..., 0] if mode == "LA" else pixels[..., :3], []


def _code(color):
    """One number for a colour: of a tuple, or of an array (…, 3)."""
    red, green, blue = color if isinstance(color, tuple) else np.moveaxis(color, -1, 0)
    return (red << 16) + (green << 8) + blue


def _colors(pixels: np.ndarray) -> list[str]:
    unique = np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0).tolist()
    return [f"({','.join(map(str, color))})" for color in unique]


def _listed(values: Sequence[object], most: int = 8) -> str:
    return ", ".join(map(str, values[:most])) + (" …" if len(values) > most else "")
