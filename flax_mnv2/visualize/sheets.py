"""Contact sheets: many examples side by side, under a title."""

from __future__ import annotations

import bisect
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from flax_mnv2.visualize.legend import COMPRESS_LEVEL, INK, PAPER, draw_legend

_SHEET_WIDTH, _MIN_SHEET_WIDTH, _MAX_COLUMNS, _SHEET_GAP = 2800, 1000, 8, 8
_PANEL_SIDE, _PANEL_COLUMNS, _CAPTION_SIZE = 200, 4, 14
_MIN_PANEL, _MAX_PANEL = 160, 384  # pixels of a panel's longer side: smaller ones are enlarged, larger ones reduced


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture in a contact sheet: (h, w, 3) uint8, and the lines of text below it."""

    image: np.ndarray
    caption: tuple[str, ...] = ()


def save_contact_sheet(
    path: pathlib.Path,
    tiles: Sequence[Sequence[Panel]],
    *,
    rows: Sequence[str],
    title: Sequence[str],
    legend: Sequence[tuple[tuple[int, int, int], str, float]] = (),
) -> None:
    """Writes a PNG of many examples side by side, each a column of panels, under a title.

    Panels whose longer side is from 160 to 384 pixels keep their pixels; smaller ones are enlarged by a whole factor
    and larger ones reduced by one. All but the first of a column must have one size; the first is fitted into it.
    Columns stand in pairs. ``rows`` says what the panels of a tile, two at least, are from the top; the first line of
    the title is larger; the legend below has colour, name and fraction (0 to 1) of classes.
    """
    size = _panel_size(tiles[0][-1].image)
    font_size = max(13, size[0] // 13)
    font, line_height = _wide_font(font_size), round(1.3 * font_size)
    columns = min(_MAX_COLUMNS, max(2, _SHEET_WIDTH // (size[0] + _SHEET_GAP) // 2 * 2), len(tiles))
    lines = [max(len(tile[row].caption) for tile in tiles) for row in range(len(rows))]
    tile_height = sum(size[1] + line_height * count + _SHEET_GAP for count in lines) + 2 * _SHEET_GAP
    left = 2 * _SHEET_GAP + line_height  # of the first column, beside the names
    width = max(left + columns * (size[0] + _SHEET_GAP) + _SHEET_GAP, _MIN_SHEET_WIDTH)
    head = _draw_title(title, width=width, font=font, large=_wide_font(round(1.3 * font_size)))
    foot = draw_legend(legend, width=width, font=font) if legend else Image.new("RGB", (0, 0))
    bottom = head.height + -(-len(tiles) // columns) * tile_height
    sheet = Image.new("RGB", (max(width, foot.width), bottom + foot.height), PAPER)
    sheet.paste(head, (0, 0))
    sheet.paste(foot, (0, bottom))
    draw = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        column, x = number % columns, left + number % columns * (size[0] + _SHEET_GAP)
        y = head.height + number // columns * tile_height
        for row, panel in enumerate(tile):
            picture = _fitted(panel.image, size)
            sheet.paste(picture, (x + (size[0] - picture.width) // 2, y + size[1] - picture.height))
            if column == 0:
                name = _draw_line(rows[row], font=font, height=line_height).rotate(90, expand=True)
                sheet.paste(name, (_SHEET_GAP, y + (size[1] - name.height) // 2))
            for line, text in enumerate(panel.caption):
                middle = (x + size[0] // 2, y + size[1] + round((line + 0.5) * line_height))
                draw.text(middle, _cut(text, font, size[0]), fill=INK, font=font, anchor="mm")
            y += size[1] + line_height * lines[row] + _SHEET_GAP
    sheet.save(path, format="PNG", compress_level=COMPRESS_LEVEL)


def save_panels(path: pathlib.Path, panels: Sequence[Panel]) -> None:
    """Writes a PNG of pictures in rows, each fitted into a square, with the lines of its caption below."""
    side, line_height, font = _PANEL_SIDE, round(1.3 * _CAPTION_SIZE), _wide_font(_CAPTION_SIZE)
    columns = min(_PANEL_COLUMNS, len(panels))
    width, height = side + _SHEET_GAP, side + line_height * max(len(panel.caption) for panel in panels) + 2 * _SHEET_GAP
    sheet = Image.new("RGB", (columns * width + _SHEET_GAP, -(-len(panels) // columns) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        x, y = _SHEET_GAP + number % columns * width, _SHEET_GAP + number // columns * height
        picture = _fitted(panel.image, (side, side))
        sheet.paste(picture, (x + (side - picture.width) // 2, y + side - picture.height))
        for line, text in enumerate(panel.caption):
            top = y + side + line * line_height + 2
            draw.text((x, top), _cut(text, font, side), fill=INK, font=font)
    sheet.save(path, format="PNG", compress_level=COMPRESS_LEVEL)


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    """Returns width and height at which panels like ``image`` are drawn."""
    height, width = image.shape[:2]
    longer = max(height, width)
    larger, smaller = max(1, _MIN_PANEL // longer), -(-longer // _MAX_PANEL)
    return -(-width * larger // smaller), -(-height * larger // smaller)


def _fitted(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Fits a picture into ``size`` (width, height): blocks of its pixels where they fill it exactly, else filtered."""
    picture = Image.fromarray(image)
    factor = size[0] // picture.width
    if size == (factor * picture.width, factor * picture.height):
        return picture.resize(size, Image.Resampling.NEAREST)
    return ImageOps.contain(picture, size, Image.Resampling.LANCZOS)


def _wide_font(size: int) -> ImageFont.FreeTypeFont:
    """Returns the font of matplotlib, which has the letters of most alphabets; Pillow's has those of English."""
    import matplotlib

    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _draw_title(
    lines: Sequence[str], *, width: int, font: ImageFont.FreeTypeFont, large: ImageFont.FreeTypeFont
) -> Image.Image:
    """Draws lines of text, broken between words where they are too long; the first in the large font."""
    rows = []
    for number, line in enumerate(lines):
        face, row = font if number else large, ""
        for word in line.split(" "):
            longer = f"{row} {word}".strip()
            if row and face.getlength(longer) > width - 2 * _SHEET_GAP:
                rows.append((face, row))
                longer = word
            row = longer
        rows.append((face, row))
    heights = [round(1.4 * face.size) for face, _ in rows]
    head = Image.new("RGB", (width, sum(heights) + 2 * _SHEET_GAP), PAPER)
    draw, y = ImageDraw.Draw(head), _SHEET_GAP
    for (face, row), height in zip(rows, heights, strict=True):
        draw.text((_SHEET_GAP, y), row, fill=INK, font=face)
        y += height
    return head


def _draw_line(text: str, *, font: ImageFont.FreeTypeFont, height: int) -> Image.Image:
    line = Image.new("RGB", (round(font.getlength(text)) + 2, height), PAPER)
    ImageDraw.Draw(line).text((1, height // 2), text, fill=INK, font=font, anchor="lm")
    return line


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Returns the text, its end replaced by an ellipsis where it is wider than ``width``."""
    if font.getlength(text) <= width:
        return text
    fitting = bisect.bisect_right(range(1, len(text)), width, key=lambda count: font.getlength(f"{text[:count]}…"))
    return f"{text[:fitting]}…"
