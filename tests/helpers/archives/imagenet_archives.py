"""Tiny stand-ins for ImageNet's official archives: tars of tars, and tars of numbered validation images."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN_NAME, VALIDATION_NAME = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
SYNSETS = ("n01440764", "n01443537", "n15075141")  # labels 0, 1 and 999


def jpeg(height: int = 40, width: int = 60, seed: int = 0, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode=None if mode != "CMYK" else mode).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def train_files(per_class: int = 2) -> dict[str, bytes]:
    """Members of the training archive."""
    return {
        f"{synset}.tar": tar({f"{synset}_{i}.JPEG": jpeg(seed=100 * number + i) for i in range(1, per_class + 1)})
        for number, synset in enumerate(SYNSETS)
    }


def validation_files(count: int = 5) -> dict[str, bytes]:
    """Members of the validation archive."""
    return {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(seed=900 + i) for i in range(1, count + 1)}


def write(folder: Path, *, train: dict[str, bytes] | None = None, validation: dict[str, bytes] | None = None) -> Path:
    """Writes the archives that are given; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, files in ((TRAIN_NAME, train), (VALIDATION_NAME, validation)):
        if files is not None:
            (folder / name).write_bytes(tar(files))
    return folder
