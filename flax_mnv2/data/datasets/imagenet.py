"""TFDS builder for ImageNet (ILSVRC 2012) straight from the official archives, without TensorFlow.

It has the features, labels and split names of TFDS's own ``imagenet2012``, and stores the JPEG files as they are.
"""

import dataclasses
import functools
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from flax_mnv2.data.archives.archive import fingerprint, identity, open_tree
from flax_mnv2.data.archives.tar import inner_files
from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.examples import LocalBuilder
from flax_mnv2.data.datasets.prepared import ARRAY_RECORD, CONVERTED_FOLDER, file_formats, is_prepared, prepared
from flax_mnv2.data.datasets.records import ClassificationDataset, opened
from flax_mnv2.errors import DataError

NUM_CLASSES = 1000
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


def load(name: str, data: Mapping[str, Any], data_dir: Path) -> ClassificationDataset:
    """Finds ImageNet, and builds a split from its archive when it is first asked for; see ``registry.Entry.load``.

    ``data["archive"]`` is the folder of the official archives, of which one is enough for its split. Empty: TFDS's own
    ``imagenet2012``, if it is prepared in ``data_dir`` as ArrayRecord, else what ``flax_mnv2.data.prepare`` built
    there, else the archives in the folder ``downloads/manual`` there.
    """
    archive = data.get("archive") or ""
    place = manual_dir(archive, data_dir)
    existing = None if archive else prepared_by_tfds(data_dir)
    if existing is not None:
        builders = opened(existing.info.splits, existing)
    else:
        builders = {
            split: functools.partial(
                prepared, functools.partial(make_builder, split, tar, data_dir, for_good=False), data_dir
            )
            for split, tar in find_archives(place).items()
        }
        if not archive:
            builders |= _built_for_good(data_dir)
    builders = {split: builders[split] for split in SPLITS if split in builders}
    if not builders:
        raise no_archives(place)
    return ClassificationDataset(name=name, labels=imagenet_labels(), builders=builders, as_stored=True)


@functools.cache
def imagenet_labels() -> tuple[str, ...]:
    """Returns the 1000 synset ids, sorted: the index is the label, as in TFDS and in the models' class names."""
    return tuple(tfds.core.tfds_path(f"{_TFDS_FILES}/labels.txt").read_text().split())


@functools.cache
def _validation_labels() -> tuple[str, ...]:
    """Returns synset ids of the 50,000 validation images, by the number in their file names."""
    return tuple(tfds.core.tfds_path(f"{_TFDS_FILES}/validation_labels.txt").read_text().split())


def manual_dir(folder: str | os.PathLike[str], data_dir: Path) -> Path:
    """Returns where the official archives lie: ``folder``, or else ``downloads/manual`` in ``data_dir``, as in TFDS."""
    return Path(folder).expanduser() if folder else data_dir / "downloads" / "manual"


def find_archives(place: Path) -> dict[str, Path]:
    """Returns the official archives by split, those that are there."""
    return {split: place / name for split, name in SPLITS.items() if (place / name).is_file()}


def no_archives(place: Path) -> DataError:
    """Returns what to say where :func:`find_archives` finds nothing."""
    return DataError(
        f"No ImageNet in {place}: expected the file {SPLITS['validation']} (50,000 images) or {SPLITS['train']} "
        f"(a tar of 1000 tars), or both. They come from {_HOMEPAGE}, where an account is needed. Put them there, "
        "or name their folder by --config.data.archive=FOLDER; they are not unpacked."
    )


def make_builder(split: str, archive: Path, data_dir: Path, *, for_good: bool) -> "Imagenet2012Archive":
    """Returns the builder of one split; one ``for_good`` is found whether its archive is still there or not.

    The config of others is named after a digest of the archive's path, size and time of change, so that two archives
    never share a prepared data set, and a changed one is built anew.
    """
    name = split if for_good else f"{split}_{fingerprint(split, identity(archive))}"
    config = ImagenetConfig(name=name, description=f"{split} from {archive}", split=split, archive=str(archive))
    return Imagenet2012Archive(config=config, data_dir=data_dir)


def _built_for_good(data_dir: Path) -> dict[str, Callable[[], tfds.core.DatasetBuilder]]:
    """Returns the splits that were built for good in ``data_dir``, as ``Dataset.builders``."""
    found: dict[str, Callable[[], tfds.core.DatasetBuilder]] = {}
    for split in SPLITS:
        folder = data_dir / Imagenet2012Archive.name / split / str(Imagenet2012Archive.VERSION)
        if is_prepared(folder):
            found |= opened([split], tfds.builder_from_directory(folder))
    return found


def prepared_by_tfds(data_dir: Path) -> tfds.core.DatasetBuilder | None:
    """Returns TFDS's own ``imagenet2012`` in ``data_dir``, or None where it has not been prepared.

    Of several versions the newest that is stored as ArrayRecord, be it converted or not; a DataError if there is none.
    """
    place = data_dir / "imagenet2012"
    found = [
        path.parent for where in ("", CONVERTED_FOLDER) for path in (place / where).glob("*.*.*/dataset_info.json")
    ]
    if not found:
        return None
    found.sort(key=lambda path: tfds.core.Version(path.name), reverse=True)
    readable = [path for path in found if ARRAY_RECORD in file_formats(path)]
    if not readable:
        raise DataError(
            f"{found[0]} is stored as {' and '.join(file_formats(found[0]))}, which has no random access. Convert it, "
            f"once and without TensorFlow: python -m flax_mnv2.data.prepare convert {shlex.quote(str(found[0]))}"
        )
    folder = readable[0]
    builder = tfds.builder_from_directory(folder)
    builder.info.set_file_format(ARRAY_RECORD, override=True, override_if_initialized=True)  # of several
    if tuple(builder.info.features["label"].names) != imagenet_labels():
        raise DataError(f"{folder} has other labels than ImageNet's 1000 synset ids; it is another data set.")
    return builder


@dataclasses.dataclass(eq=False, kw_only=True)
class ImagenetConfig(tfds.core.BuilderConfig):
    """Which split to build, and the archive that holds it."""

    split: str = ""
    archive: str = ""


class Imagenet2012Archive(LocalBuilder):
    """One split of ImageNet, in the order of its archive, whose images are decoded as the field does: as stored."""

    as_stored = True

    def _info(self) -> tfds.core.DatasetInfo:
        return self._classification_info(
            description="ILSVRC 2012: images of 1000 classes.",
            labels=imagenet_labels(),
            encoding_format="jpeg",
            homepage="https://image-net.org/",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the archives are the user's own
        return self._noted({self.builder_config.split: self._generate_examples()})

    def _generate_examples(self) -> Iterator[dict]:
        config = self.builder_config
        read = {"train": _train_images, "validation": _validation_images}[config.split]
        with open_tree(config.archive) as tree:
            for file_name, label, image in read(tree):
                yield {"image": image, "label": label, "file_name": file_name}


def _train_images(tree: FileTree) -> Iterator[tuple[str, str, bytes]]:
    """(file name, synset id, JPEG) of every image in a tar of tars ``nXXXXXXXX.tar``."""
    known = set(imagenet_labels())
    for name in _names(tree):
        path = PurePosixPath(name)
        if path.suffix != ".tar" or path.stem not in known:
            raise _unexpected(tree, name, "nXXXXXXXX.tar, named after one of the 1000 synsets")
        for inner, image in inner_files(tree, name):
            file_name = PurePosixPath(inner).name
            if not file_name.startswith(f"{path.stem}_"):
                raise _unexpected(tree, f"{name}: {inner}", f"{path.stem}_NUMBER.JPEG")
            yield file_name, path.stem, image


def _validation_images(tree: FileTree) -> Iterator[tuple[str, str, bytes]]:
    """(file name, synset id, JPEG) of every image; the synset ids are TFDS's list, by the number in the name."""
    labels = _validation_labels()
    for name in _names(tree):
        file_name = PurePosixPath(name).name
        match = _VALIDATION_NAME.fullmatch(file_name)
        if not match or not 1 <= int(match[1]) <= len(labels):
            raise _unexpected(tree, name, f"ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{len(labels):08d}.JPEG")
        yield file_name, labels[int(match[1]) - 1], tree.read(name)


def _names(tree: FileTree) -> list[str]:
    names = tree.names()
    if not names:
        raise DataError(f"{tree.path} holds no files. Copy or download it again from {_HOMEPAGE}.")
    return names


def _unexpected(tree: FileTree, name: str, expected: str) -> DataError:
    return DataError(
        f"{tree.path} holds {name}, expected {expected}. It is not the official archive ({_HOMEPAGE}); for other "
        "images use --config.data.dataset=image_folder."
    )
