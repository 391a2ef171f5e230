"""From ``config.data`` to a data set of images with boxes: official archives, and those of one's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax_mnv2.data.archives.archive import archive_stem, open_tree
from flax_mnv2.data.archives.joined import JoinedTree
from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.detection.annotations import Annotations, Mistakes, hold_out, read_labels
from flax_mnv2.data.datasets.detection.builder import DetectionBuilder, Source, open_dataset
from flax_mnv2.data.datasets.detection.coco import read_coco
from flax_mnv2.data.datasets.detection.voc import read_voc
from flax_mnv2.data.datasets.detection.yolo import read_yolo
from flax_mnv2.data.datasets.preparation import images_and_holdout
from flax_mnv2.data.datasets.records import DetectionDataset
from flax_mnv2.data.datasets.voc import VOC2012_FILE, VOC_LABELS
from flax_mnv2.data.prepare.download import OfficialFile, obtain
from flax_mnv2.errors import DataError

VOC_CLASSES = VOC_LABELS[1:]  # those of boxes: without background

_COCO_URL = "http://images.cocodataset.org"
_COCO_FILES = {  # of the 2017 edition: name, where it is offered, size
    "annotations_trainval2017.zip": ("annotations", "241 MB"),
    "train2017.zip": ("zips", "18 GB"),
    "val2017.zip": ("zips", "1 GB"),
}

_VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC"
# Digests as in torchvision.datasets.VOCDetection.
_VOC_2007_FILES = tuple(
    OfficialFile(
        name=name,
        urls=(f"{_VOC_URL}/voc2007/{name}",),
        size=None,
        size_text=size_text,
        algorithm="md5",
        digest=digest,
    )
    for name, size_text, digest in (
        ("VOCtrainval_06-Nov-2007.tar", "about 460 MB", "c52e279531787c972589f7e41ab4ae64"),
        ("VOCtest_06-Nov-2007.tar", "about 451 MB", "b6e924de25625d8de591ea690078ad9f"),
    )
)


def _list(year: int, split: str) -> str:
    return f"VOCdevkit/VOC{year}/ImageSets/Main/{split}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Edition:
    """An official VOC: its archives, and the lists of ids of each split."""

    files: Sequence[OfficialFile]
    splits: Mapping[str, Sequence[str]]


_EDITIONS = {
    "2007": _Edition(
        files=_VOC_2007_FILES,
        splits={split: (_list(2007, split),) for split in ("train", "val", "trainval", "test")},
    ),
    "2012": _Edition(
        files=(VOC2012_FILE,), splits={split: (_list(2012, split),) for split in ("train", "val", "trainval")}
    ),
    "2007+2012": _Edition(
        files=(*_VOC_2007_FILES, VOC2012_FILE),
        splits={"train": (_list(2007, "trainval"), _list(2012, "trainval")), "val": (_list(2007, "test"),)},
    ),
}


class CocoDetection(DetectionBuilder):
    """Images with boxes from COCO's JSON."""


class VocDetection(DetectionBuilder):
    """Images with boxes from VOC's XML."""


class Yolo(DetectionBuilder):
    """Images with boxes from YOLO's text files."""


def load_coco(name: str, data: Mapping[str, Any], data_dir: Path) -> DetectionDataset:
    """Opens COCO 2017, or data with COCO's JSON, and stores it first where it is not yet; see ``registry.Entry.load``.

    ``data["archive"]`` is a folder, tar or zip, or a folder of COCO's official zips; "" is ``downloads/manual`` in
    ``data_dir``. ``data["holdout"]`` is the fraction of train that becomes ``val`` where there is no other split.
    """
    archive = data.get("archive") or ""
    folder = Path(archive).expanduser() if archive else data_dir / "downloads" / "manual"
    if archive and not any((folder / file).is_file() for file in _COCO_FILES):
        return open_dataset(name, CocoDetection, _own(name, data, read_coco), data, data_dir)
    source = Source(stem="2017", open=functools.partial(_open_coco, folder), read=read_coco)
    return open_dataset(name, CocoDetection, source, data, data_dir)


def load_voc(name: str, data: Mapping[str, Any], data_dir: Path) -> DetectionDataset:
    """Opens an official VOC, or data with VOC's XML, and stores it first where it is not yet.

    ``data`` has for ``custom`` the ``archive``, ``labels`` (a text file with one name per line, or names separated by
    commas; without any, those in the files) and ``holdout``; for the others optionally ``archive``, the folder of the
    official tars (default: ``downloads/manual`` in ``data_dir``, else fetched).
    """
    edition = _EDITIONS.get(name.partition("/")[2])
    if edition is None:
        labels = read_labels(data.get("labels") or "")
        source = _own(name, data, functools.partial(read_voc, labels=labels), *labels)
    else:
        read = functools.partial(read_voc, labels=VOC_CLASSES, splits=edition.splits)
        opener = functools.partial(_open_voc, edition.files, data.get("archive") or "", data_dir)
        source = Source(stem=name.partition("/")[2].replace("+", "_"), open=opener, read=read)
    return open_dataset(name, VocDetection, source, data, data_dir)


def load_yolo(name: str, data: Mapping[str, Any], data_dir: Path) -> DetectionDataset:
    """Opens data with YOLO's text files, and stores it first where it is not yet; ``archive`` and ``holdout``."""
    return open_dataset(name, Yolo, _own(name, data, read_yolo), data, data_dir)


def _own(
    name: str, data: Mapping[str, Any], read: Callable[[FileTree, Mistakes], Annotations], *settings: object
) -> Source:
    """Returns the source of an archive of the user's own."""
    path, holdout = images_and_holdout(name, data)
    return Source(
        stem=archive_stem(path),
        paths=(path,),
        open=functools.partial(open_tree, path),
        read=functools.partial(_read_own, read, holdout),
        settings=(holdout, *settings),
    )


def _read_own(
    read: Callable[[FileTree, Mistakes], Annotations], holdout: float, tree: FileTree, mistakes: Mistakes
) -> Annotations:
    annotations = read(tree, mistakes)
    return dataclasses.replace(annotations, splits=hold_out(annotations.splits, holdout))


def _open_coco(folder: Path) -> FileTree:
    missing = [file for file in _COCO_FILES if not (folder / file).is_file()]
    if missing:
        files = ", ".join(f"{_COCO_URL}/{_COCO_FILES[file][0]}/{file} ({_COCO_FILES[file][1]})" for file in missing)
        raise DataError(
            f"COCO 2017 is not complete in {folder}: download {files} and put them there, packed as they are. For your "
            "own data, or an unpacked COCO, give its path as --config.data.archive."
        )
    return JoinedTree([folder / file for file in _COCO_FILES])


def _open_voc(files: Sequence[OfficialFile], archive: str, data_dir: Path) -> FileTree:
    manual = data_dir / "downloads" / "manual"
    folder = Path(archive).expanduser() if archive else manual
    missing = [file.name for file in files if archive and not (folder / file.name).is_file()]
    if missing:
        raise DataError(
            f"There is no file {folder / missing[0]}. Give the folder of {' and '.join(file.name for file in files)} "
            "as --config.data.archive, or '' to have them downloaded; for other data use voc_detection/custom."
        )
    return JoinedTree([obtain(file, places=[folder / file.name], target=manual) for file in files])
