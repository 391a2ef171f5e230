"""Predictions beside the truth, confusion matrices and curves, by matplotlib, which is imported when they are drawn."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flax_mnv2.visualize.legend import COMPRESS_LEVEL, voc_palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Segmented(Protocol):
    """An image (h, w, 3) uint8 with the classes (h, w) of its truth and of its prediction."""

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


def save_predictions(
    path: pathlib.Path,
    pictures: Sequence[Segmented],
    labels: Sequence[str],
    *,
    ignore_label: int = 255,
    captions: Sequence[str] = (),
) -> None:
    """Writes a PNG with a row per picture: image, truth, prediction; the legend names the classes that occur.

    ``ignore_label`` is shown in VOC's colour of the void class. ``captions`` stand below the predictions.
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
        if captions:
            axes[-1].text(0.5, -0.02, captions[number], transform=axes[-1].transAxes, ha="center", va="top")
    names = {index: labels[index] for index in sorted(present) if index < len(labels)}
    if ignore_label in present:
        names[ignore_label] = "void"
    handles = [
        Patch(facecolor=palette[index] / 255, edgecolor="black", linewidth=0.5, label=_literal(name))
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
    names = [_literal(label) for label in labels]
    axis.set_xticks(ticks, names, rotation=60, ha="right")
    axis.set_yticks(ticks, names)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    for row, column in np.argwhere(fractions >= 0.005):
        color = "white" if fractions[row, column] > 0.6 else "black"
        text = f"{100 * fractions[row, column]:.0f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axis, label="fraction of the true class", shrink=0.8)
    _write(figure, path, dpi=110)


def save_curves(
    path: pathlib.Path, *panels: Mapping[str, Sequence[tuple[float, float]]], x_label: str = "step"
) -> None:
    """Writes a PNG of panels, one below the other, each with named curves of (x, y)."""
    panels = [panel for panel in panels if panel]
    figure = _new_figure(8.0, 3.2 * len(panels))
    for axis, curves in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
        for name, points in curves.items():
            steps, values = zip(*points, strict=True)
            axis.plot(
                steps,
                values,
                label=_literal(name),
                linewidth=1.5,
                marker="o" if len(points) <= 50 else "",
                markersize=3,
            )
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axis.set_xlabel(x_label)
    _write(figure, path, dpi=110)


def _literal(text: str) -> str:
    """Returns text in which matplotlib finds no formula, whatever a user has called a class."""
    return text.replace("$", r"\$")


def _write(figure: Figure, path: pathlib.Path, *, dpi: int) -> None:
    """Writes a figure as a PNG; ``Figure.savefig`` would draw it twice, once to find out how large it is."""
    figure.set_dpi(dpi)
    figure.canvas.print_png(path, pil_kwargs={"compress_level": COMPRESS_LEVEL})


def _new_figure(width: float, height: float) -> Figure:
    """Returns a figure in inches that no window and no global state belongs to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
