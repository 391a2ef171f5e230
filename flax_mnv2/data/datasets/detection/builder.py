"""TFDS builder for images with boxes, whatever their annotations were written in; it needs no TensorFlow."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from flax_mnv2.data.archives.archive import fingerprint, identity
from flax_mnv2.data.archives.tree import FileTree
from flax_mnv2.data.datasets.detection.annotations import AnnotatedImage, Annotations, Mistakes, checked
from flax_mnv2.data.datasets.examples import LocalBuilder, read_images
from flax_mnv2.data.datasets.preparation import (
    BOXES,
    LEFT_OUT,
    Outcome,
    check_left_out,
    left_out_of,
    max_left_out,
)
from flax_mnv2.data.datasets.prepared import check_apart, is_prepared, prepared
from flax_mnv2.data.datasets.records import DetectionDataset
from flax_mnv2.data.decode import decode_rgb
from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import read_orientation


class DetectionBuilder(LocalBuilder, skip_registration=True):
    """Images, as they are, with their boxes; ``tree`` is closed when the data set is built."""

    def __init__(
        self, *, tree: FileTree, annotations: Annotations, mistakes: Mapping[str, Sequence[str]], **kwargs: Any
    ):
        self._tree, self._annotations, self._mistakes = tree, annotations, mistakes
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = self._annotations.labels
        box = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=labels),
            "ignored": np.bool_,
            "area": np.float32,
            "id": np.int64,
        }
        features = {
            "image": tfds.features.Image(),
            "image_id": tfds.features.Text(),
            "file_name": tfds.features.Text(),
            "height": np.int32,
            "width": np.int32,
            "objects": tfds.features.Sequence(box),
        }
        metadata = tfds.core.MetadataDict(
            labels=list(labels),
            category_ids=list(self._annotations.category_ids),
            integer_ids=self._annotations.integer_ids,
            max_boxes={},
            boxes={},
        )
        description = f"Images with boxes of {len(labels)} classes."
        return self._described(features, ("image", "objects"), metadata=metadata, description=description)

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Builds the data set unless it is there; nothing is left behind where an image is damaged or does not fit."""
        with self._tree:
            super().download_and_prepare(**kwargs)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the images are the user's own, or have been found
        if BOXES in self._mistakes:
            self.info.metadata[LEFT_OUT][BOXES] = self._mistakes[BOXES]
        splits = self._annotations.splits.items()
        return self._noted({split: self._generate_examples(split, images) for split, images in splits})

    def _generate_examples(self, split: str, images: Sequence[AnnotatedImage]) -> Iterator[Outcome]:
        yield from map(DataError, self._mistakes.get(split, ()))
        most, prefix, counts = 0, f"{self._tree.path}: ", [0] * len(self._annotations.labels)
        read = read_images(self._tree, [image.file for image in images], prefix=prefix)
        for image, data in zip(images, read, strict=True):
            outcome = data if isinstance(data, DataError) else _example(image, data, prefix)
            if not isinstance(outcome, DataError):
                most = max(most, len(outcome["objects"]))
                for box in outcome["objects"]:
                    counts[box["label"]] += 1
            yield outcome
        if not most and self._max_left_out:  # else all bad images are named in the end
            raise DataError(f"{prefix}no image with a box is left of the split {split}.")
        self.info.metadata["max_boxes"][split], self.info.metadata["boxes"][split] = most, counts


def _example(image: AnnotatedImage, data: bytes, prefix: str) -> Outcome:
    """Returns what is stored of an image, or what is wrong with it; ``data`` can be decoded."""
    height, width = _upright_size(data)
    if image.size not in (None, (height, width)):
        return DataError(
            f"{prefix}{image.file} is {width}x{height} (width x height), its annotation says "
            f"{image.size[1]}x{image.size[0]}. Annotate the image as it is."
        )
    objects = []
    for box in image.boxes:
        y_min, x_min, y_max, x_max = box.corners
        area = (y_max - y_min) * height * (x_max - x_min) * width if box.area is None else box.area
        bbox = tfds.features.BBox(y_min, x_min, y_max, x_max)
        objects.append({"bbox": bbox, "label": box.label, "ignored": box.ignored, "area": area, "id": box.id})
    return {
        "image": data,
        "image_id": image.image_id,
        "file_name": image.file,
        "height": height,
        "width": width,
        "objects": objects,
    }


def _upright_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) of an image as it is seen; a JPEG is not decoded for it."""
    if not data.startswith(b"\xff\xd8\xff"):
        return decode_rgb(data).size[::-1]
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        width, height = image.size
    return (width, height) if read_orientation(data) >= 5 else (height, width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set comes from.

    Attributes:
      stem: what its prepared folder is called, before a digest.
      paths: archives and folders of the user's own that it is read from; none of official ones.
      open: gives their files.
      read: the annotations among these; damage to single boxes and images goes to the mistakes.
      settings: of the user that change the result.
    """

    stem: str
    open: Callable[[], FileTree]
    read: Callable[[FileTree, Mistakes], Annotations]
    paths: Sequence[Path] = ()
    settings: Sequence[object] = ()


def open_dataset(
    name: str, builder: type[DetectionBuilder], source: Source, data: Mapping[str, Any], data_dir: Path
) -> DetectionDataset:
    """Opens a data set, and builds it first where it is not there yet.

    It is known by a digest of paths, sizes and times of change of its archives, of its settings, and of whether
    mistakes are left out, so that a changed one is built anew.
    """
    limit = max_left_out(data)
    found = prepared(lambda: _make(builder, source, data_dir, limit), data_dir)
    return DetectionDataset.of(found, name=name, left_out=left_out_of(found, limit))


def _make(builder: type[DetectionBuilder], source: Source, data_dir: Path, limit: int) -> tfds.core.DatasetBuilder:
    """Returns the builder: one that only reads, where the data set is prepared."""
    for path in source.paths:
        check_apart(path, data_dir)
    name = f"{source.stem}_{fingerprint(limit > 0, *map(identity, source.paths), *source.settings)}"
    target = data_dir / builder.name / name / str(builder.VERSION)
    if is_prepared(target):
        return tfds.builder_from_directory(target)
    tree, mistakes = source.open(), Mistakes()
    try:
        annotations = source.read(tree, mistakes)
        check_left_out(mistakes.found, limit)  # before images are read, which takes long
        checked(annotations, tree.path)
    except BaseException:
        tree.close()
        raise
    what = f"images of {tree.path}: {', '.join(annotations.splits)}"
    return builder(
        tree=tree,
        annotations=annotations,
        mistakes=mistakes.found,
        config=tfds.core.BuilderConfig(name=name, description=what),
        data_dir=data_dir,
        max_left_out=limit,
    )
