"""How many pixels each class has, and what an odd count says of the convention that masks were written by."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flax_mnv2.data.labels.names import LabelNames
from flax_mnv2.errors import DataError

_BORDER = 0.012  # of an image's longer side: VOC's borders around objects are about 5 pixels to each side, of 500
# Names of class 0 in masks that may well be labelled all over.
_NOTHING = re.compile(
    r"[\W_]*(background|bg|back|void|un(labell?ed|known|defined)|others?|none|nothing|ignored?)[\W_]*", re.I
)
_SOLID = 0.005  # fraction of all pixels: ignored areas of this size are no accidents


class LabelHistogram:
    """Counts the pixels of every class in masks, those that are ignored, and those well inside ignored areas."""

    def __init__(self, num_classes: int, ignore_label: int):
        self._num_classes, self._ignore_label = num_classes, ignore_label
        self._counts = np.zeros(256, np.int64)
        self._solid = 0

    def add(self, mask: np.ndarray) -> None:
        """Counts a mask, uint8 (H, W) of class indices and the ignore label."""
        counts = np.bincount(mask.ravel(), minlength=256)
        self._counts += counts
        if counts[self._ignore_label]:
            width = 2 * max(2, round(_BORDER * max(mask.shape))) + 1
            ignored = (mask == self._ignore_label).astype(np.uint8)
            self._solid += int(np.count_nonzero(cv2.erode(ignored, np.ones((width, width), np.uint8))))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers: ``pixels`` by class, ``ignored``, and ``solid``, of these what no border explains."""
        pixels = self._counts[: self._num_classes].copy()
        if self._ignore_label < self._num_classes:
            pixels[self._ignore_label] = 0
        return {"pixels": pixels.tolist(), "ignored": int(self._counts[self._ignore_label]), "solid": self._solid}


def absent(labels: Sequence[str], histogram: Mapping[str, Any], ignore_label: int) -> list[str]:
    """Returns the names of classes without a pixel, but for one that is ignored."""
    pixels = enumerate(zip(labels, histogram["pixels"], strict=True))
    return [label for index, (label, count) in pixels if not count and index != ignore_label]


def check_convention(
    path: str | Path, labels: LabelNames, ignore_label: int, histograms: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises a DataError where the histograms of all splits say that masks mean something else than classes by index.

    So they do where the ignore label stands in for a class that has no pixel, and where class 0 has none although it is
    no background and no colours tell the classes apart.
    """
    names = labels.names
    total = {
        name: np.sum([histogram[name] for histogram in histograms.values()], axis=0)
        for name in ("pixels", "ignored", "solid")
    }
    missing, splits = absent(names, total, ignore_label), ", ".join(histograms)
    number = int(total["pixels"].sum() + total["ignored"])
    if not missing or not number:
        return
    alone = len(names) - len(missing) <= 1  # one class is left: then thin lines are objects too, cracks for example
    if total["ignored"] and (alone or total["solid"] >= _SOLID * number):
        first = names.index(missing[0])
        values = {0: 0, ignore_label: first} if len(names) == 2 else {ignore_label: first}
        example = ",".join(f"{value}:{index}" for value, index in values.items())
        raise DataError(
            f"{path}: class {first} {missing[0]!r}{_more(missing)} has no pixel in {splits}, while the ignore label "
            f"{ignore_label} fills {total['ignored'] / number:.0%} of the masks. If {ignore_label} is a class, say "
            f"which for every value: --config.data.label_map={example}{'' if len(names) == 2 else ',…'}; if it is "
            "to be ignored: --config.data.label_map=as_is."
        )
    if missing[0] == names[0] and ignore_label != 0 and not labels.colors and not _NOTHING.fullmatch(names[0]):
        raise DataError(
            f"{path}: class 0 {missing[0]!r} has no pixel in {splits}. If masks count classes from 1 and 0 has none, "
            "set --config.data.reduce_labels=True; if their values are right, --config.data.label_map=as_is."
        )


def format_table(
    labels: Sequence[str], columns: Mapping[str, Sequence[int]], extra: Mapping[str, Sequence[int]]
) -> list[str]:
    """Returns an aligned table: a row per class and of ``extra`` rows, a column per split, in per cent of its sum."""
    rows = {label: [counts[index] for counts in columns.values()] for index, label in enumerate(labels)}
    rows |= {name: list(counts) for name, counts in extra.items()}
    totals = np.sum(list(rows.values()), axis=0)
    width = max(len("class"), *map(len, rows))
    lines = [f"{'class':<{width}}" + "".join(f"  {split:>10}" for split in columns)]
    for name, counts in rows.items():
        cells = [f"{count / total:.3%}" if count else "-" for count, total in zip(counts, totals, strict=True)]
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>10}" for cell in cells))
    return lines


def format_cells(labels: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns an aligned table: a row per target, a column of cells per split."""
    width = max(map(len, (*labels, "target")))
    rows = [("target", list(columns))]
    rows += [(label, [cells[at] for cells in columns.values()]) for at, label in enumerate(labels)]
    return [f"{name:<{width}}" + "".join(f"  {cell:>18}" for cell in cells) for name, cells in rows]


def shortened(names: Sequence[str], limit: int) -> str:
    """Returns up to ``limit`` names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
