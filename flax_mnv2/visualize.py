"""Pictures: of segmentations palette, overlay and predictions beside the truth; contact sheets; matrices and curves.

The grid of predictions, the sheet, matrix and curves need matplotlib, which is imported when they are drawn.
"""

from __future__ import annotations

import bisect
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPACITY, _BACKGROUND_OPACITY = 0.5, 0.25  # VOC's black would leave little of the photo
_MAX_LABEL_CHARACTERS = 40
_COMPRESS_LEVEL = 4  # twice as fast as Pillow's 6, for 3 % larger files
_INK, _PAPER, _BOUNDARY = (20, 20, 20), (255, 255, 255), (255, 255, 255)
_VOID, _HATCH_PERIOD, _HATCH_WIDTH = (255, 255, 255), 8, 3
_SHEET_WIDTH, _MIN_SHEET_WIDTH, _MAX_COLUMNS, _SHEET_GAP = 2800, 1000, 8, 8
_MIN_PANEL, _MAX_PANEL = 160, 384  # pixels of a panel's longer side: smaller ones are enlarged, larger ones reduced


class Segmented(Protocol):
    """An image (h, w, 3) uint8 with the classes (h, w) of its truth and of its prediction."""

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


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
    legend = _draw_legend(
        [(tuple(palette[index].tolist()), label, fraction) for index, label, fraction in classes],
        width=picture.width,
        font=ImageFont.load_default(size=max(14, round(max(picture.size) / 50))),
    )
    sheet = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), _PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(legend, (0, picture.height))
    sheet.save(path, compress_level=_COMPRESS_LEVEL)


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
    foot = _draw_legend(legend, width=width, font=font) if legend else Image.new("RGB", (0, 0))
    bottom = head.height + -(-len(tiles) // columns) * tile_height
    sheet = Image.new("RGB", (max(width, foot.width), bottom + foot.height), _PAPER)
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
                draw.text(middle, _cut(text, font, size[0]), fill=_INK, font=font, anchor="mm")
            y += size[1] + line_height * lines[row] + _SHEET_GAP
    sheet.save(path, format="PNG", compress_level=_COMPRESS_LEVEL)


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


def percent(fraction: float) -> str:
    """Returns a fraction (0 to 1) as ``12.3 %``; one that would round to nothing, as ``<0.1 %``."""
    return "<0.1 %" if 0 < fraction < 0.0005 else f"{100 * fraction:.1f} %"


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


def _draw_legend(
    entries: Sequence[tuple[tuple[int, ...], str, float]], *, width: int, font: ImageFont.FreeTypeFont
) -> Image.Image:
    """Draws colour, name and fraction of each class, in as many columns as fit ``width``."""
    gap, swatch, line_height = int(font.size // 2), round(1.1 * font.size), round(1.6 * font.size)
    texts = [f"{_shortened(label)}  {percent(fraction)}" for _, label, fraction in entries]
    column = swatch + 3 * gap + max(round(font.getlength(text)) for text in texts)
    num_columns = min(max(1, (width - gap) // column), len(entries))
    num_rows = -(-len(entries) // num_columns)
    legend = Image.new("RGB", (num_columns * column + gap, num_rows * line_height + 2 * gap), _PAPER)
    draw = ImageDraw.Draw(legend)
    for number, ((color, _, _), text) in enumerate(zip(entries, texts, strict=True)):
        left = gap + number % num_columns * column
        middle = gap + number // num_columns * line_height + line_height // 2
        top = middle - swatch // 2
        draw.rectangle((left, top, left + swatch - 1, top + swatch - 1), fill=color, outline=_INK)
        draw.text((left + swatch + gap, middle), text, fill=_INK, font=font, anchor="lm")
    return legend


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
    head = Image.new("RGB", (width, sum(heights) + 2 * _SHEET_GAP), _PAPER)
    draw, y = ImageDraw.Draw(head), _SHEET_GAP
    for (face, row), height in zip(rows, heights, strict=True):
        draw.text((_SHEET_GAP, y), row, fill=_INK, font=face)
        y += height
    return head


def _draw_line(text: str, *, font: ImageFont.FreeTypeFont, height: int) -> Image.Image:
    line = Image.new("RGB", (round(font.getlength(text)) + 2, height), _PAPER)
    ImageDraw.Draw(line).text((1, height // 2), text, fill=_INK, font=font, anchor="lm")
    return line


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Returns the text, its end replaced by an ellipsis where it is wider than ``width``."""
    if font.getlength(text) <= width:
        return text
    fitting = bisect.bisect_right(range(1, len(text)), width, key=lambda count: font.getlength(f"{text[:count]}…"))
    return f"{text[:fitting]}…"


def _shortened(label: str) -> str:
    return label if len(label) <= _MAX_LABEL_CHARACTERS else f"{label[: _MAX_LABEL_CHARACTERS - 1]}…"


def save_predictions(
    path: pathlib.Path, pictures: Sequence[Segmented], labels: Sequence[str], *, ignore_label: int = 255
) -> None:
    """Writes a PNG with a row per picture: image, truth, prediction; the legend names the classes that occur.

    ``ignore_label`` is shown in VOC's colour of the void class.
    """
    from matplotlib.patches import Patch

    palette = voc_palette()
    figure = _new_figure(10.5, 2.6 * len(pictures) + 0.9)
    rows = figure.subplots(len(pictures), 3, squeeze=False)
    present = set()
    for number, (axes, picture) in enumerate(zip(rows, pictures, strict=True)):
        present |= set(np.unique(picture.label)) | set(np.unique(picture.prediction))
        panels = (picture.image, palette[picture.label], palette[picture.prediction])
        for axis, title, panel in zip(axes, ("image", "truth", "prediction"), panels, strict=True):
            axis.imshow(panel)
            axis.set_axis_off()
            if number == 0:
                axis.set_title(title)
    names = {index: labels[index] for index in sorted(present) if index < len(labels)}
    if ignore_label in present:
        names[ignore_label] = "void"
    handles = [
        Patch(facecolor=palette[index] / 255, edgecolor="black", linewidth=0.5, label=name)
        for index, name in names.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(7, len(handles)), frameon=False)
    _write(figure, path, dpi=100)


def save_confusion_matrix(path: pathlib.Path, matrix: np.ndarray, labels: Sequence[str]) -> None:
    """Writes a PNG of a confusion matrix (C, C), counts by truth in rows, each row as fractions of its sum."""
    counts = np.asarray(matrix, np.float64)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    side = 3.0 + 0.42 * len(labels)
    figure = _new_figure(side + 1.0, side)
    axis = figure.subplots()
    image = axis.imshow(fractions, vmin=0.0, vmax=1.0, cmap="Blues")
    ticks = np.arange(len(labels))
    axis.set_xticks(ticks, labels, rotation=60, ha="right")
    axis.set_yticks(ticks, labels)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    for row, column in np.argwhere(fractions >= 0.005):
        color = "white" if fractions[row, column] > 0.6 else "black"
        text = f"{100 * fractions[row, column]:.0f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axis, label="fraction of the true class", shrink=0.8)
    _write(figure, path, dpi=110)


def save_curves(path: pathlib.Path, *panels: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Writes a PNG of panels, one below the other, each with named curves of (step, value)."""
    panels = [panel for panel in panels if panel]
    figure = _new_figure(8.0, 3.2 * len(panels))
    for axis, curves in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
        for name, points in curves.items():
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, label=name, linewidth=1.5, marker="o" if len(points) <= 50 else "", markersize=3)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axis.set_xlabel("step")
    _write(figure, path, dpi=110)


def _write(figure: Figure, path: pathlib.Path, *, dpi: int) -> None:
    """Writes a figure as a PNG; ``Figure.savefig`` would draw it twice, once to find out how large it is."""
    figure.set_dpi(dpi)
    figure.canvas.print_png(path, pil_kwargs={"compress_level": _COMPRESS_LEVEL})


def _new_figure(width: float, height: float) -> Figure:
    """Returns a figure in inches that no window and no global state belongs to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
