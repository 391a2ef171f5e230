"""Masks of the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), which extends VOC's train split."""

import io
import os
from pathlib import Path, PurePosixPath

import numpy as np

from flax_mnv2.data.archives.archive import open_tree
from flax_mnv2.errors import DataError


class SbdMasks:
    """Class masks by image id, from SBD itself or from a ready-made ``SegmentationClassAug``.

    ``path`` is SBD's ``benchmark.tgz`` (or its unpacked folder), which has ``cls/ID.mat`` and lists its
    ids in ``train.txt`` and ``val.txt`` beside ``cls``; or an archive or folder of ``ID.png`` files, whose
    names are the ids. Use it as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        self._tree = open_tree(self.path, keep=_is_of_interest)
        names = self._tree.names()
        matlab = {PurePosixPath(name).stem: name for name in names if name.endswith(".mat")}
        masks = {PurePosixPath(name).stem: name for name in names if name.endswith(".png")}
        self._files = matlab or masks
        homes = {PurePosixPath(name).parent.parent for name in matlab.values()}
        self._lists = [name for name in names if name.endswith(".txt") and PurePosixPath(name).parent in homes]
        if not self._files or (matlab and len(self._lists) != 2):
            self._tree.close()
            raise DataError(
                f"{self.path} holds neither SBD (cls/*.mat with train.txt and val.txt beside cls) nor masks "
                "as PNG files. Give SBD's benchmark.tgz or a SegmentationClassAug folder or archive."
            )

    def __enter__(self) -> "SbdMasks":
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.close()

    def ids(self) -> set[str]:
        """Returns the ids with a mask: SBD's train and val, or every PNG."""
        if not self._lists:
            return set(self._files)
        return {image_id for name in self._lists for image_id in self._tree.read_lines(name)}

    def name(self, image_id: str) -> str:
        """Returns the archive and member of a mask, for messages."""
        return f"{self.path}: {self._files.get(image_id, image_id)}"

    def mask(self, image_id: str) -> np.ndarray | bytes:
        """Returns a mask: class indices as uint8 (H, W) from a ``.mat`` file, or the bytes of a PNG."""
        if image_id not in self._files:
            raise DataError(f"{self.path} lists the id {image_id!r} but holds no mask for it. Get the archive again.")
        name = self._files[image_id]
        data = self._tree.read(name)
        return _read_matlab(data, self.name(image_id)) if name.endswith(".mat") else data


def _is_of_interest(name: str) -> bool:
    path = PurePosixPath(name)
    if path.suffix == ".mat":
        return path.parent.name == "cls"
    return path.suffix == ".png" or path.name in ("train.txt", "val.txt")


def _read_matlab(data: bytes, name: str) -> np.ndarray:
    """``GTcls.Segmentation`` of a file in SBD's ``cls`` folder."""
    from scipy.io import loadmat

    try:
        mask = loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"].item()
        if mask.ndim != 2 or not np.array_equal(mask, mask.astype(np.uint8)):
            raise ValueError("it holds numbers that are no classes")
        return np.ascontiguousarray(mask, dtype=np.uint8)
    except Exception as error:  # scipy reports damage by whatever it stumbles over
        raise DataError(
            f"{name}: no readable GTcls.Segmentation ({type(error).__name__}: {error}). Get the archive again."
        ) from error
