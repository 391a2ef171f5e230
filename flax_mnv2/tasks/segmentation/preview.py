"""What a contact sheet shows of a segmentation run's training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from flax_mnv2.data.datasets.records import ExampleSource
from flax_mnv2.data.decode import decode_image
from flax_mnv2.visualize import Panel, class_color, overlay_mask, percent


def describe_augmentation(config: ml_collections.ConfigDict) -> str:
    """Returns the settings that change training images, in words."""
    data = config.data
    height, width = data.crop_size
    how = f"in steps of {data.scale_step:g}" if data.scale_step else "any between"
    scale = f"scale {data.min_scale:g} to {data.max_scale:g}, {how}"
    return " · ".join([scale, f"crop {height}×{width}", "flip" if data.flip else "no flip"])


def contact_sheet(
    source: ExampleSource, seen: Sequence[Any], labels: Sequence[str], *, ignore_label: int
) -> dict[str, Any]:
    """Returns originals with names, inputs, inputs under their masks; the legend has the classes that occur."""
    tiles = []
    for example in seen:
        stored = source[example.index]
        void = float(np.mean(example.target == ignore_label))
        painted = overlay_mask(example.image, example.target, labels, ignore_label=ignore_label)
        original = Panel(decode_image(stored["image"]), (stored["image_id"],))
        tiles.append((original, Panel(example.image), Panel(painted, (f"void {percent(void)}",))))
    counts = np.bincount(np.concatenate([example.target.ravel() for example in seen]), minlength=256)
    names = {**dict(enumerate(labels)), ignore_label: "void"}
    legend = [
        (class_color(index, ignore_label=ignore_label), names[index], counts[index] / counts.sum())
        for index in map(int, np.flatnonzero(counts))
    ]
    return {"tiles": tiles, "rows": ("original", "network input", "with its mask"), "legend": legend}
