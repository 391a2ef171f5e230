"""Pictures for tests: photos of one colour, a few drawn shapes, smooth photos, and files made to exhaust memory."""

import io
import pathlib
import struct
import zlib

import numpy as np
import pytest
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


def prepare_shapes(data_dir: pathlib.Path, *, val: int = 16) -> pathlib.Path:
    """Prepares the data set of drawn shapes in ``data_dir``, 96 to train and ``val``; returns ``data_dir``."""
    from flax_mnv2.data.datasets import shapes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SHAPES_NUM_EXAMPLES", {"train": 96, "val": val})
        shapes.load("shapes_segmentation", {}, data_dir)
    return data_dir


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height=40, width=60, seed=0):
    """A smooth picture, so that JPEG compresses it as it does photos."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def png(width, height, *, bits=1, colour=0, pixels=b""):
    """A PNG whose header says what it likes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


BOMB = png(60_000, 60_000, pixels=bytes(2_000_000))  # two kilobytes; 450 MB as stored, 10.8 GB as RGB


def make_table(root: pathlib.Path, *, train: int, val: int) -> pathlib.Path:
    """Writes photos of two colours side by side, ``labels.csv`` of which there are and ``numbers.csv`` of their areas.

    Numbers are the fraction of the width that is red, and a price that follows from it, from 100,000 on.
    """
    rng, names = np.random.default_rng(0), sorted(COLORS)
    labels, numbers = ["image,labels,split"], ["image,split,red,price"]
    (root / "img").mkdir(parents=True)
    for index in range(train + val):
        first, second, boundary = rng.integers(3), rng.integers(3), int(rng.integers(8, 40))
        pixels = rng.normal(0, 15, (40, 48, 3))
        pixels[:, :boundary] += COLORS[names[first]]
        pixels[:, boundary:] += COLORS[names[second]]
        name, split = f"{index}.jpg", "train" if index < train else "val"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / "img" / name, quality=95)
        red = sum(width for at, width in ((first, boundary), (second, 48 - boundary)) if names[at] == "red") / 48
        labels.append(f"{name},{'|'.join(sorted({names[first], names[second]}))},{split}")
        numbers.append(f"{name},{split},{red:.4f},{100_000 + 30_000 * red:.0f}")
    (root / "labels.csv").write_text("\n".join(labels))
    (root / "numbers.csv").write_text("\n".join(numbers))
    return root
