"""Pictures of boxes with their labels."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flax_mnv2.visualize.legend import COMPRESS_LEVEL, INK, PAPER, voc_palette

Row = tuple[np.ndarray, str, int]  # (x_min, y_min, x_max, y_max) in pixels, text, class
_GAP, _PANEL_PX = 8, 480


@dataclasses.dataclass(frozen=True)
class BoxPicture:
    """An image (h, w, 3) uint8, its width to its height when it is drawn, and boxes as fractions: truth and found."""

    image: np.ndarray
    aspect: float
    truth: Sequence[Row]
    found: Sequence[Row]


def draw_boxes(photo: np.ndarray | Image.Image, rows: Sequence[Row]) -> Image.Image:
    """Returns a photo (H, W, 3) uint8 with boxes and their texts, the first row on top."""
    picture = (photo if isinstance(photo, Image.Image) else Image.fromarray(photo)).convert("RGB")
    longer = max(picture.size)
    width, font = max(2, round(longer / 250)), ImageFont.load_default(size=max(12, round(longer / 45)))
    draw = ImageDraw.Draw(picture)
    for box, text, index in reversed(rows):
        color = tuple(voc_palette()[(index + 1) % 256].tolist())
        x_min, y_min, x_max, y_max = (float(side) for side in box)
        draw.rectangle((x_min, y_min, max(x_max, x_min), max(y_max, y_min)), outline=color, width=width)
        left, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        height = bottom + 2
        y = y_min - height if y_min >= height else y_min
        draw.rectangle((x_min, y, x_min + right - left + 4, y + height), fill=color)
        ink = INK if sum(color) > 330 else PAPER
        draw.text((x_min + 2, y), text, fill=ink, font=font)
    return picture


def save_boxes(path: pathlib.Path, photo: np.ndarray, rows: Sequence[Row]) -> None:
    """Writes a PNG of a photo (H, W, 3) uint8, at its own size, with boxes and their texts."""
    draw_boxes(photo, rows).save(path, compress_level=COMPRESS_LEVEL)


def save_box_pictures(path: pathlib.Path, pictures: Sequence[BoxPicture]) -> None:
    """Writes a PNG with a row per picture: what is true on the left, what was found on the right."""
    sizes = [_size(picture.aspect) for picture in pictures]
    font = ImageFont.load_default(size=16)
    head = 16 + 2 * _GAP
    heights = [height + _GAP for _, height in sizes]
    sheet = Image.new("RGB", (2 * _PANEL_PX + 3 * _GAP, head + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("truth", "detections")):
        draw.text((_GAP + column * (_PANEL_PX + _GAP), _GAP), title, fill=INK, font=font)
    y = head
    for picture, size, height in zip(pictures, sizes, heights, strict=True):
        photo = Image.fromarray(picture.image).resize(size, Image.Resampling.BICUBIC)
        for column, rows in enumerate((picture.truth, picture.found)):
            scaled = [(np.asarray(box) * [*size, *size], text, index) for box, text, index in rows]
            sheet.paste(draw_boxes(photo, scaled), (_GAP + column * (_PANEL_PX + _GAP), y))
        y += height
    sheet.save(path, compress_level=COMPRESS_LEVEL)


def _size(aspect: float) -> tuple[int, int]:
    return (_PANEL_PX, round(_PANEL_PX / aspect)) if aspect >= 1 else (round(_PANEL_PX * aspect), _PANEL_PX)
