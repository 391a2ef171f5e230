"""A folder of noisy photos, each class of one colour: small enough to learn in seconds."""

import pathlib

import numpy as np
from PIL import Image

COLORS = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}


def make_photos(root: pathlib.Path, **counts: int) -> pathlib.Path:
    """Writes ``root/SPLIT/CLASS/INDEX.jpg``, so many of each class as ``counts`` says for a split."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(color, 25, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{index}.jpg")
    return root
