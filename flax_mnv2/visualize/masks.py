"""Segmentations: palette, masks, photos in the colours of their classes."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFont

from flax_mnv2.visualize.legend import COMPRESS_LEVEL, PAPER, draw_legend, voc_palette

_OPACITY, _BACKGROUND_OPACITY = 0.5, 0.25  # VOC's black would leave little of the photo
_BOUNDARY = (255, 255, 255)
_VOID, _HATCH_PERIOD, _HATCH_WIDTH = (255, 255, 255), 8, 3


def save_mask(path: pathlib.Path, mask: np.ndarray) -> None:
    """Writes class indices (H, W) as a PNG: uint8 with VOC's palette, other types as 16-bit grey."""
    if mask.dtype == np.uint8:
        image = Image.fromarray(mask)
        image.putpalette(voc_palette().tobytes())
    else:
        image = Image.fromarray(mask.astype(np.uint16))
    image.save(path)


def save_overlay(
    path: pathlib.Path, photo: np.ndarray, mask: np.ndarray, classes: Sequence[tuple[int, str, float]]
) -> None:
    """Writes a PNG of a photo (H, W, 3) in the colours of its classes (H, W), above a legend of them.

    The photo keeps its pixels' size and lies in the top left corner; where the legend needs more width than a small
    photo has, there is white beside it. ``classes`` are index, name and fraction (0 to 1) of one or more to list.
    """
    palette = voc_palette(int(mask.max()) + 1)
    opacity = np.full(len(palette), _OPACITY)
    opacity[[index for index, label, _ in classes if label == "background"]] = _BACKGROUND_OPACITY
    picture = _blend(photo, mask, palette, opacity)
    legend = draw_legend(
        [(tuple(palette[index].tolist()), label, fraction) for index, label, fraction in classes],
        width=picture.width,
        font=ImageFont.load_default(size=max(14, round(max(picture.size) / 50))),
    )
    sheet = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(legend, (0, picture.height))
    sheet.save(path, compress_level=COMPRESS_LEVEL)


def overlay_mask(photo: np.ndarray, mask: np.ndarray, labels: Sequence[str], *, ignore_label: int) -> np.ndarray:
    """Returns a photo (H, W, 3) uint8 in the colours of its classes (H, W) uint8, white stripes where it has none."""
    opacity = np.full(256, _OPACITY)
    opacity[[index for index, label in enumerate(labels) if label == "background"]] = _BACKGROUND_OPACITY
    opacity[ignore_label] = 0.0
    picture = np.array(_blend(photo, mask, voc_palette(), opacity))
    stripes = np.add.outer(*map(np.arange, mask.shape)) % _HATCH_PERIOD < _HATCH_WIDTH
    picture[stripes & (mask == ignore_label)] = _VOID
    return picture


def class_color(index: int, *, ignore_label: int) -> tuple[int, int, int]:
    """Returns the colour that stands for a class of :func:`overlay_mask` in a legend."""
    return _VOID if index == ignore_label else tuple(voc_palette()[index].tolist())


def _blend(photo: np.ndarray, mask: np.ndarray, palette: np.ndarray, opacity: np.ndarray) -> Image.Image:
    """Returns a photo under the colours of its classes, with a thin white line between these.

    ``palette`` (C, 3) uint8 and ``opacity`` (C,), 0 to 1, are by class.
    """
    alpha = Image.fromarray(np.round(255 * opacity).astype(np.uint8)[mask])
    picture = Image.composite(Image.fromarray(palette[mask]), Image.fromarray(photo), alpha)
    line = np.zeros(mask.shape, bool)
    line[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    line[:-1] |= mask[:-1] != mask[1:]
    for _ in range(max(mask.shape) // 1200):  # one pixel up to this size, in proportion above
        line[:, 1:] |= line[:, :-1]
        line[1:] |= line[:-1]
    picture.paste(_BOUNDARY, mask=Image.fromarray(line))
    return picture
