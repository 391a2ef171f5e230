"""The data sets by name: from ``config.data`` to a prepared data set. A new one is a module here and a row below."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax_mnv2.data.datasets import image_folder, imagenet, shapes, voc
from flax_mnv2.data.datasets.detection import sources as boxes
from flax_mnv2.data.datasets.image_table import builder as image_table
from flax_mnv2.data.datasets.prepared import default_data_dir
from flax_mnv2.data.datasets.records import (
    ClassificationDataset,
    Dataset,
    DetectionDataset,
    MultiLabelDataset,
    RegressionDataset,
    SegmentationDataset,
)
from flax_mnv2.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the table.

    Attributes:
      kind: class of what it gives, by the kind of its examples.
      load: (name, ``config.data``, folder of prepared data sets) → the data set, built if it is not there yet. Raises
        ConfigError for a wrong field, and DataError for data that is missing, damaged or cannot be stored.
      summary: what it is, in a few words.
      fields: those of ``config.data`` that it reads, beside ``dataset`` and ``data_dir``, and what they are. Where
        ``labels`` is not among them, they are the data's own.
      fixed: what other fields must say if they say anything.
      official: whether everybody's archive is taken where the user names none; so with all that have ``fixed``.
    """

    kind: type[Dataset]
    load: Callable[[str, Mapping[str, Any], Path], Dataset]
    summary: str
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    official: bool = False


_VOC = {"num_classes": len(voc.VOC_LABELS), "ignore_label": voc.VOC_IGNORE_LABEL}
_TABLE = {
    "archive": "folder, tar or zip of the images",
    "table": "CSV of a row per image, or folder of JSON files; a path, or a name in the archive (default: found there)",
    "holdout": "fraction of train to evaluate on, where there is no other split (default: 0.1)",
}
_BAD_EXAMPLES = {
    "bad_examples": "fail: bad files stop the preparation, which names all; or skip: leave them out (default: fail)",
    "max_bad_examples": "files that skip may leave out (default: 100)",
}
_VOC_ARCHIVE = "VOC's official tar, or its folder (default: downloads/manual in the data_dir, else fetched)"
_BOXES = {
    "bad_examples": "fail: what is wrong with boxes or images stops; skip: they are left out (default: fail)",
    "max_bad_examples": "boxes and images that skip may leave out (default: 100)",
}
_OWN_BOXES = {"holdout": "fraction of train to evaluate on, where there is no other split (default: 0.1)", **_BOXES}
_VOC_BOXES = {"archive": "folder of VOC's official tars (default: downloads/manual in the data_dir, else fetched)"}

DATASETS: dict[str, Entry] = {
    "imagenet2012": Entry(
        kind=ClassificationDataset,
        load=imagenet.load,
        summary="ImageNet (ILSVRC 2012) from its official archives",
        fields={"archive": "folder of the official archives (default: downloads/manual in the data_dir)"},
        fixed={"num_classes": imagenet.NUM_CLASSES},
    ),
    "image_folder": Entry(
        kind=ClassificationDataset,
        load=image_folder.load,
        summary="images in folders by split and class, of your own",
        fields={
            "archive": "folder, tar or zip of train/CLASS/IMAGE …",
            "holdout": "fraction of train to evaluate on, where there is no other split (default: 0.1)",
            "eval_split": "split to evaluate on (default: val); others are left out where they cannot be used",
            **_BAD_EXAMPLES,
        },
    ),
    image_table.MULTI_LABEL: Entry(
        kind=MultiLabelDataset,
        load=image_table.load,
        summary="images with any number of classes each, by a table of your own",
        fields={**_TABLE, "labels": "the classes, a,b,c (default: all columns of 0 and 1, or all labels that occur)"},
    ),
    image_table.REGRESSION: Entry(
        kind=RegressionDataset,
        load=image_table.load,
        summary="images with numbers, by a table of your own",
        fields={**_TABLE, "labels": "the columns to predict, a,b (default: all)"},
    ),
    "voc_segmentation/2012": Entry(
        kind=SegmentationDataset,
        load=voc.load,
        summary="PASCAL VOC 2012: images and class masks",
        fields={"archive": _VOC_ARCHIVE, **_BAD_EXAMPLES},
        fixed=_VOC,
    ),
    "voc_segmentation/2012_aug": Entry(
        kind=SegmentationDataset,
        load=voc.load,
        summary="PASCAL VOC 2012 with the masks of SBD: images and class masks",
        fields={
            "archive": _VOC_ARCHIVE,
            "sbd_archive": "SBD's benchmark.tgz, or its masks as PNG",
            **_BAD_EXAMPLES,
        },
        fixed=_VOC,
    ),
    "voc_segmentation/custom": Entry(
        kind=SegmentationDataset,
        load=voc.load,
        summary="images and class masks in VOC's layout, of your own",
        fields={
            "archive": "folder, tar or zip in VOC's layout",
            "labels": "a label file (a name per line, CVAT's, labelme's, CSV, JSON), or a,b,c",
            "num_classes": "in place of --labels",
            "ignore_label": "pixels without a class (default: 255)",
            "label_map": "what values in masks mean, such as 0:0,255:1; as_is: they are classes, ask no more",
            "reduce_labels": "0 in masks has no class, and others count from 1",
            "train_split": "list to train on (default: train); no other than this and the next is read",
            "eval_split": "list to evaluate on (default: val)",
            **_BAD_EXAMPLES,
        },
    ),
    "shapes_segmentation": Entry(
        kind=SegmentationDataset,
        load=shapes.load,
        summary="drawn shapes and class masks, for trying things out",
        fixed={"num_classes": len(shapes.SHAPES_LABELS), "ignore_label": shapes.SHAPES_IGNORE_LABEL},
    ),
    "coco_detection": Entry(
        kind=DetectionDataset,
        load=boxes.load_coco,
        summary="COCO 2017, or images of your own with boxes in COCO's JSON",
        fields={
            "archive": "folder, tar or zip, or folder of COCO's zips (default: downloads/manual in the data_dir)",
            **_OWN_BOXES,
        },
        official=True,
    ),
    **{
        f"voc_detection/{year}": Entry(
            kind=DetectionDataset,
            load=boxes.load_voc,
            summary=f"PASCAL VOC {year}: images with boxes{splits}",
            fields={**_VOC_BOXES, **_BOXES},
            fixed={"num_classes": len(boxes.VOC_CLASSES)},
        )
        for year, splits in (("2007", ""), ("2012", ""), ("2007+2012", "; both trainval as train, 2007's test as val"))
    },
    "voc_detection/custom": Entry(
        kind=DetectionDataset,
        load=boxes.load_voc,
        summary="images of your own with boxes in VOC's XML",
        fields={
            "archive": "folder, tar or zip with Annotations/*.xml",
            "labels": "a text file with one name per line, or a,b,c (default: those in the files, sorted)",
            **_OWN_BOXES,
        },
    ),
    "yolo": Entry(
        kind=DetectionDataset,
        load=boxes.load_yolo,
        summary="images of your own with boxes in YOLO's text files",
        fields={"archive": "folder, tar or zip with data.yaml", **_OWN_BOXES},
    ),
}


def load_segmentation(data: Mapping[str, Any]) -> SegmentationDataset:
    """Prepares a data set of images with masks if it is not yet prepared, and opens it; see :func:`load`."""
    return load(data, SegmentationDataset)


def load_classification(data: Mapping[str, Any]) -> ClassificationDataset:
    """Finds a data set of images with labels, and prepares it: ImageNet by split when asked for; see :func:`load`."""
    return load(data, ClassificationDataset)


def load_detection(data: Mapping[str, Any]) -> DetectionDataset:
    """Prepares a data set of images with boxes if it is not yet prepared, and opens it; see :func:`load`."""
    return load(data, DetectionDataset)


def load(data: Mapping[str, Any], kind: type[Dataset] = Dataset) -> Any:
    """Opens a data set of the wanted kind, and builds it first where it is not prepared yet.

    ``data`` is ``config.data``, or any mapping with ``dataset``, one of :data:`DATASETS`; with ``data_dir``, where
    prepared data sets live ("" is ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``); and with the fields that the data
    set's own module describes. Absent fields are empty, others are ignored. A ConfigError where a field is wrong, a
    DataError where the data is missing, damaged or inconsistent, or cannot be stored.
    """
    name, names = data.get("dataset", ""), names_of(kind)
    if name not in names:
        wanted = f" for {kind.kind}" if kind is not Dataset else ""
        raise ConfigError(f"config.data.dataset is {name!r}, expected one of {', '.join(names)}{wanted}.")
    entry = DATASETS[name]
    if data.get("labels") and "labels" not in entry.fields:
        raise ConfigError(f"config.data.labels is set, but the labels of {name} are fixed. Set it to ''.")
    _check_fixed(name, data, entry.fixed)
    dataset = entry.load(name, data, default_data_dir(data.get("data_dir") or ""))
    _check_fixed(name, data, {"num_classes": len(dataset.labels)})
    return dataset


def names_of(kind: type[Dataset] = Dataset) -> tuple[str, ...]:
    """Returns the names of the data sets of a kind."""
    return tuple(name for name, entry in DATASETS.items() if issubclass(entry.kind, kind))


def known_num_classes(name: str) -> int:
    """Returns the number of classes of a data set, or 0 where only the data itself tells."""
    return DATASETS[name].fixed.get("num_classes", 0) if name in DATASETS else 0


def _check_fixed(name: str, data: Mapping[str, Any], fixed: Mapping[str, int]) -> None:
    for key, expected in fixed.items():
        value = data.get(key)
        if value not in (None, expected) and not (key == "num_classes" and value == 0):
            raise ConfigError(f"config.data.{key} is {value}, but {name} has {expected}.")
