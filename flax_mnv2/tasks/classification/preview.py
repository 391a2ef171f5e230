"""What a contact sheet shows of a classifier's training images."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from flax_mnv2.data.datasets.records import ExampleSource
from flax_mnv2.data.decode import decode_image
from flax_mnv2.visualize import Panel, percent


def describe_augmentation(config: ml_collections.ConfigDict) -> str:
    """Returns the settings that change training images, in words."""
    data = config.data
    flip = "flip" if data.flip else "no flip"
    if data.train_crop == "pad":
        parts = [f"pad {data.crop_padding} and crop", flip]
    else:
        area, aspect = (f"{low:.3g} to {high:.3g}" for low, high in (data.crop_area, data.crop_aspect))
        parts = [f"Inception crop of area {area}, aspect {aspect}", flip]
    if any(data.color_jitter):
        names = ("brightness", "contrast", "saturation", "hue")
        parts.append("jitter of " + ", ".join(f"{n} {v:.3g}" for n, v in zip(names, data.color_jitter, strict=True)))
    if data.auto_augment == "trivial_augment_wide":
        parts.append("TrivialAugmentWide")
    elif data.auto_augment:
        deviation = f" ± {data.randaugment_magnitude_std:g}" if data.auto_augment == "timm_randaugment" else ""
        name = "timm's RandAugment" if deviation else "RandAugment"
        parts.append(f"{name}: {data.randaugment_ops} ops of magnitude {data.randaugment_magnitude:g}{deviation}")
    if data.random_erasing:
        fill = {"constant": "the mean colour", "pixel": "noise"}[data.random_erasing_fill]
        parts.append(f"erasing {data.random_erasing:g} with {fill}")
    mixing = [
        f"{name} {alpha:g}" for name, alpha in (("MixUp", data.mixup_alpha), ("CutMix", data.cutmix_alpha)) if alpha
    ]
    if mixing:
        parts.append(" or ".join(mixing) + ", one of them a batch" * (len(mixing) == 2))
    if data.augment_repeats > 1:
        parts.append(f"{data.augment_repeats} versions of an image in a batch")
    if config.label_smoothing:
        parts.append(f"label smoothing {config.label_smoothing:g} (not in the percentages)")
    return " · ".join(parts)


def contact_sheet(source: ExampleSource, seen: Sequence[Any], labels: Sequence[str]) -> dict[str, Any]:
    """Returns originals with file names above, inputs with labels below; percentages where several labels have one."""
    tiles = []
    for example in seen:
        stored = source[example.index]
        truth = stored["label"]
        present = sorted(np.flatnonzero(example.target), key=lambda index: index != truth)  # its own label first
        caption = [f"{percent(example.target[index])} {labels[index]}" for index in present]
        caption = caption if len(present) > 1 else [labels[truth]]
        original = Panel(decode_image(stored["image"]), (pathlib.PurePath(stored["file_name"]).name,))
        tiles.append((original, Panel(example.image, tuple(caption))))
    return {"tiles": tiles, "rows": ("original", "network input")}
