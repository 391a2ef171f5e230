"""TFDS builder for ImageNet (ILSVRC 2012) straight from the official archives, without TensorFlow.

TFDS's own ``imagenet2012`` needs TensorFlow to build. This one has the same features, labels and split names, reads
the archives where they lie, and stores the JPEG files as they are.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from flax_mnv2.data import archive as archive_lib
from flax_mnv2.errors import DataError

SPLITS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
_HOMEPAGE = "https://image-net.org/download-images"
_TFDS_FILES = "datasets/imagenet2012"  # in the tensorflow_datasets package
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_CITATION = """@article{ILSVRC15,
  author = {Russakovsky, O. and Deng, J. and Su, H. and Krause, J. and Satheesh, S. and Ma, S. and Huang, Z. and
    Karpathy, A. and Khosla, A. and Bernstein, M. and Berg, A. C. and Fei-Fei, L.},
  title = {{ImageNet Large Scale Visual Recognition Challenge}},
  journal = {International Journal of Computer Vision}, year = {2015}, volume = {115}, number = {3},
  pages = {211--252}}"""


@functools.cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1000 synset ids, sorted; the index is the label (the order of TFDS, and of the models' class names)."""
    return tuple(tfds.core.tfds_path(f"{_TFDS_FILES}/labels.txt").read_text().split())


@functools.cache
def _validation_labels() -> tuple[str, ...]:
    """Synset ids of the 50,000 validation images, by the number in their file names."""
    return tuple(tfds.core.tfds_path(f"{_TFDS_FILES}/validation_labels.txt").read_text().split())


def find_archives(folder: str | os.PathLike[str], data_dir: Path) -> dict[str, Path]:
    """The official archives by split, those that are there.

    Args:
      folder: where they lie; empty is ``downloads/manual`` in ``data_dir``, TFDS's place for such files.
      data_dir: folder of prepared data sets.

    Raises:
      DataError: neither is there.
    """
    place = Path(folder).expanduser() if folder else data_dir / "downloads" / "manual"
    found = {split: place / name for split, name in SPLITS.items() if (place / name).is_file()}
    if not found:
        raise DataError(
            f"No ImageNet in {place}: expected the file {SPLITS['validation']} (50,000 images) or {SPLITS['train']} "
            f"(a tar of 1000 tars), or both. They come from {_HOMEPAGE}, where an account is needed. Put them there, "
            "or name their folder by --config.data.archive=FOLDER; they are not unpacked."
        )
    return found


def make_builder(split: str, archive: Path, data_dir: Path) -> "Imagenet2012Archive":
    """The builder of one split.

    Its config is named after a digest of the archive's path, size and time of change, so that two archives never
    share a prepared data set, and a changed one is built anew.
    """
    key = hashlib.sha256(f"{split}\0{archive_lib.identity(archive)}".encode()).hexdigest()
    config = ImagenetConfig(
        name=f"{split}_{key[:10]}", description=f"{split} from {archive}", split=split, archive=str(archive)
    )
    return Imagenet2012Archive(config=config, data_dir=data_dir)


def prepared_by_tfds(data_dir: Path) -> tfds.core.DatasetBuilder | None:
    """TFDS's own ``imagenet2012``, its newest version in ``data_dir``, or None where it has not been prepared.

    Raises:
      DataError: it is stored in a format without random access, or has other labels.
    """
    found = [path.parent for path in (data_dir / "imagenet2012").glob("*.*.*/dataset_info.json")]
    if not found:
        return None
    folder = max(found, key=lambda path: tfds.core.Version(path.name))
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise DataError(
            f"{folder} is stored as {file_format}, which has no random access. Prepare it with "
            "file_format='array_record', or give the official archives: --config.data.archive=FOLDER."
        )
    if tuple(builder.info.features["label"].names) != imagenet_labels():
        raise DataError(f"{folder} has other labels than ImageNet's 1000 synset ids; it is another data set.")
    return builder


@dataclasses.dataclass(eq=False, kw_only=True)
class ImagenetConfig(tfds.core.BuilderConfig):
    """Which split to build, and the archive that holds it."""

    split: str = ""
    archive: str = ""


class Imagenet2012Archive(tfds.core.GeneratorBasedBuilder):
    """One split of ImageNet, in the order of its archive; made by :func:`make_builder`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (TFDS reads a plain class attribute)

    def __init__(self, *, file_format: Any = None, **kwargs: Any):
        super().__init__(file_format=file_format or "array_record", **kwargs)

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        del version
        return builder_config  # spares the user TFDS's warning that it is not one of the built-in configs

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="ILSVRC 2012: images of 1000 classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=imagenet_labels()),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            homepage="https://image-net.org/",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the archives are the user's own
        return {self.builder_config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        read = {"train": _train_images, "validation": _validation_images}[config.split]
        tree = archive_lib.open_tree(config.archive)
        try:
            for index, (file_name, label, image) in enumerate(read(tree)):
                yield index, {"image": image, "label": label, "file_name": file_name}
        finally:
            tree.close()


def _train_images(tree: archive_lib.FileTree) -> Iterator[tuple[str, str, bytes]]:
    """(file name, synset id, JPEG) of every image in a tar of tars ``nXXXXXXXX.tar``."""
    known = set(imagenet_labels())
    for name in _names(tree):
        path = PurePosixPath(name)
        if path.suffix != ".tar" or path.stem not in known:
            raise _unexpected(tree, name, "nXXXXXXXX.tar, named after one of the 1000 synsets")
        for inner, image in archive_lib.inner_files(tree, name):
            file_name = PurePosixPath(inner).name
            if not file_name.startswith(f"{path.stem}_"):
                raise _unexpected(tree, f"{name}: {inner}", f"{path.stem}_NUMBER.JPEG")
            yield file_name, path.stem, image


def _validation_images(tree: archive_lib.FileTree) -> Iterator[tuple[str, str, bytes]]:
    """(file name, synset id, JPEG) of every image; the synset ids are TFDS's list, by the number in the name."""
    labels = _validation_labels()
    for name in _names(tree):
        file_name = PurePosixPath(name).name
        match = _VALIDATION_NAME.fullmatch(file_name)
        if not match or not 1 <= int(match[1]) <= len(labels):
            raise _unexpected(tree, name, f"ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{len(labels):08d}.JPEG")
        yield file_name, labels[int(match[1]) - 1], tree.read(name)


def _names(tree: archive_lib.FileTree) -> list[str]:
    names = tree.names()
    if not names:
        raise DataError(f"{tree.path} holds no files. Copy or download it again from {_HOMEPAGE}.")
    return names


def _unexpected(tree: archive_lib.FileTree, name: str, expected: str) -> DataError:
    return DataError(
        f"{tree.path} holds {name}, expected {expected}. It is not the official archive ({_HOMEPAGE}); for other "
        "images there is no data set yet."
    )
