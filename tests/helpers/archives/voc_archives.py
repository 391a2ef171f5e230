"""Tiny data sets in VOC layout, as dicts from member name to bytes, and writers for every kind of archive."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = "VOCdevkit/VOC2012"
DEFAULT_SPLITS = {"train": ["a", "b", "c"], "val": ["d", "e"], "trainval": ["a", "b", "c", "d", "e"]}


def jpeg(height: int = 20, width: int = 30, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "JPEG")


def palette_png(mask: np.ndarray) -> bytes:
    """A palette PNG as VOC has them: the index is the class, the colour is not."""
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putdata(mask.astype(np.uint8).ravel().tolist())
    image.putpalette([(index * 37 + channel * 91) % 256 for index in range(256) for channel in range(3)])
    return encode(image, "PNG")


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def mask_array(height: int = 20, width: int = 30, num_classes: int = 3) -> np.ndarray:
    mask = np.arange(height * width).reshape(height, width) % num_classes
    mask[0] = 255
    return mask.astype(np.uint8)


def voc_files(
    *, splits: dict[str, list[str]] | None = None, root: str = ROOT, num_classes: int = 3
) -> dict[str, bytes]:
    """Members of a data set whose images are 20 + i rows high for the i-th id in alphabetical order."""
    splits = DEFAULT_SPLITS if splits is None else splits
    prefix = f"{root}/" if root else ""
    files = {
        f"{prefix}ImageSets/Segmentation/{name}.txt": "".join(f"{image_id}\n" for image_id in ids).encode()
        for name, ids in splits.items()
    }
    for index, image_id in enumerate(sorted({image_id for ids in splits.values() for image_id in ids})):
        mask = mask_array(20 + index, 30, num_classes)
        files[f"{prefix}JPEGImages/{image_id}.jpg"] = jpeg(20 + index, 30, seed=index)
        files[f"{prefix}SegmentationClass/{image_id}.png"] = palette_png(mask)
    return files


def sbd_files(train: list[str], val: list[str], sizes: dict[str, tuple[int, int]]) -> dict[str, bytes]:
    """Members of SBD's benchmark.tgz: ``sizes`` maps ids to (height, width); masks are all class 7."""
    from scipy.io import savemat

    files = {
        "benchmark_RELEASE/dataset/train.txt": "\n".join(train).encode(),
        "benchmark_RELEASE/dataset/val.txt": "\n".join(val).encode(),
        "benchmark_RELEASE/other/train.txt": b"not a list of ids",
    }
    for image_id in {*train, *val}:
        buffer = io.BytesIO()
        boundaries = np.full((20, 1), 0.0).astype(object)
        mask = np.full(sizes[image_id], 7, np.uint8)
        savemat(buffer, {"GTcls": {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": 7}})
        files[f"benchmark_RELEASE/dataset/cls/{image_id}.mat"] = buffer.getvalue()
        files[f"benchmark_RELEASE/dataset/inst/{image_id}.mat"] = b"instances are not read"
        files[f"benchmark_RELEASE/dataset/img/{image_id}.jpg"] = b"nor are these"
    return files


def write(path: Path, files: dict[str, bytes]) -> Path:
    """Write a folder (no suffix), .tar, .tgz, .tar.gz or .zip."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif path.suffix in (".tar", ".tgz", ".gz"):
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in files.items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return path
