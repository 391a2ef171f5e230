"""Pictures of segmentations: palette, grid of predictions beside the truth, confusion matrix.

Needs matplotlib, so ``import flax_mnv2`` leaves this module alone.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch


class Segmented(Protocol):
    """An image (h, w, 3) uint8 with the classes (h, w) of its truth and of its prediction."""

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


def voc_palette(num_colors: int = 256) -> np.ndarray:
    """The colours of PASCAL VOC's masks, (num_colors, 3) uint8.

    The bits of the index, three at a time from the lowest, become the bits of red, green and blue from the
    highest (the VOC development kit's ``VOClabelcolormap``).
    """
    index = np.arange(num_colors)
    palette = np.zeros((num_colors, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def save_predictions(
    path: pathlib.Path, pictures: Sequence[Segmented], labels: Sequence[str], *, ignore_label: int = 255
) -> None:
    """Writes a PNG with a row per picture: image, truth, prediction; the legend names the classes that occur.

    Args:
      path: the file.
      pictures: at least one.
      labels: class names by index.
      ignore_label: shown in VOC's colour of the void class.
    """
    palette = voc_palette()
    figure = Figure(figsize=(10.5, 2.6 * len(pictures) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
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
    figure.savefig(path, dpi=100)


def save_confusion_matrix(path: pathlib.Path, matrix: np.ndarray, labels: Sequence[str]) -> None:
    """Writes a PNG of a confusion matrix, each row (truth) as shares of its pixels.

    Args:
      path: the file.
      matrix: (C, C) counts, truth in rows.
      labels: class names by index.
    """
    counts = np.asarray(matrix, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    side = 3.0 + 0.42 * len(labels)
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues")
    ticks = np.arange(len(labels))
    axis.set_xticks(ticks, labels, rotation=60, ha="right")
    axis.set_yticks(ticks, labels)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
        share = shares[row, column]
        color = "white" if share > 0.6 else "black"
        axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axis, label="share of the true class's pixels", shrink=0.8)
    figure.savefig(path, dpi=110)
