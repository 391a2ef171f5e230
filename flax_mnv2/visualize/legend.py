"""What pictures share: colours, and a legend of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (20, 20, 20), (255, 255, 255)
COMPRESS_LEVEL = 4  # of PNG files: twice as fast as Pillow's 6, for 3 % larger files
_MAX_LABEL_CHARACTERS = 40


def voc_palette(num_colors: int = 256) -> np.ndarray:
    """Returns the colours of PASCAL VOC's masks, (num_colors, 3) uint8.

    The bits of the index, three at a time from the lowest, become the bits of red, green and blue from the
    highest (the VOC development kit's ``VOClabelcolormap``). All differ, beyond 256 too.
    """
    index = np.arange(num_colors)
    palette = np.zeros((num_colors, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def percent(fraction: float) -> str:
    """Returns a fraction (0 to 1) as ``12.3 %``; one that would round to nothing, as ``<0.1 %``."""
    return "<0.1 %" if 0 < fraction < 0.0005 else f"{100 * fraction:.1f} %"


def draw_legend(
    entries: Sequence[tuple[tuple[int, ...], str, float]], *, width: int, font: ImageFont.FreeTypeFont
) -> Image.Image:
    """Draws colour, name and fraction of each class, in as many columns as fit ``width``."""
    gap, swatch, line_height = int(font.size // 2), round(1.1 * font.size), round(1.6 * font.size)
    texts = [f"{_shortened(label)}  {percent(fraction)}" for _, label, fraction in entries]
    column = swatch + 3 * gap + max(round(font.getlength(text)) for text in texts)
    num_columns = min(max(1, (width - gap) // column), len(entries))
    num_rows = -(-len(entries) // num_columns)
    legend = Image.new("RGB", (num_columns * column + gap, num_rows * line_height + 2 * gap), PAPER)
    draw = ImageDraw.Draw(legend)
    for number, ((color, _, _), text) in enumerate(zip(entries, texts, strict=True)):
        left = gap + number % num_columns * column
        middle = gap + number // num_columns * line_height + line_height // 2
        top = middle - swatch // 2
        draw.rectangle((left, top, left + swatch - 1, top + swatch - 1), fill=color, outline=INK)
        draw.text((left + swatch + gap, middle), text, fill=INK, font=font, anchor="lm")
    return legend


def _shortened(label: str) -> str:
    return label if len(label) <= _MAX_LABEL_CHARACTERS else f"{label[: _MAX_LABEL_CHARACTERS - 1]}…"
