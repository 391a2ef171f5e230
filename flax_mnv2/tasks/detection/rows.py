"""Rows of detection batches, made from encoded examples, by what can be pickled. Damaged ones are named."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from flax_mnv2.data.augment.detection import DetectionAugment
from flax_mnv2.data.decode import decode_rgb
from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.data.loader.batches import Batch, Source
from flax_mnv2.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRow:
    """Position in a split of ``DetectionExample`` and a generator → one augmented example.

    Boxes fill ``max_boxes`` rows; where there are more, the largest are taken if ``take_largest``, else the example is
    a bad one.
    """

    source: Source
    augment: DetectionAugment
    max_boxes: int
    take_largest: bool
    num_classes: int | None = None

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        """Returns ``image`` uint8 (h, w, 3), the fields of ``_filled_up`` and ``index`` int64, the position."""
        example = self.source[index]
        image, objects = _decode(example, self.num_classes)
        image, boxes, rows = self.augment(image, objects["bbox"], rng, ignored=objects["ignored"])
        labels, ignored = objects["label"][rows], objects["ignored"][rows]
        if len(boxes) > self.max_boxes:
            if not self.take_largest:
                raise BadExampleError(
                    example["image_id"],
                    f"it has {len(boxes)} boxes, and config.data.max_boxes is {self.max_boxes}. Set that higher, or "
                    "--config.data.too_many_boxes=largest",
                )
            sizes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
            largest = np.sort(np.argsort(-sizes, kind="stable")[: self.max_boxes])
            boxes, labels, ignored = boxes[largest], labels[largest], ignored[largest]
        return {"image": image, **_filled_up(boxes, labels, ignored, self.max_boxes), "index": np.int64(index)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRow:
    """Position in a split → one whole image, prepared as the processor does, with its boxes in ``max_boxes`` rows."""

    source: Source
    prepare: Callable[[Image.Image], np.ndarray]
    size: tuple[int, int]  # of what ``prepare`` gives
    max_boxes: int
    num_classes: int | None = None

    def __call__(self, index: int) -> Batch:
        """Returns the fields of a training row; ``area`` (B,) float32 in pixels, ``mask`` bool, ``shape`` int32 (2,),
        the image's own height and width, ``file_name`` str, the image's id.

        A position after the split gives a filler with ``mask`` False and index -1.
        """
        if index >= len(self.source):
            nothing = {"bbox": np.zeros((0, 4)), "label": np.zeros(0), "ignored": np.zeros(0), "area": np.zeros(0)}
            return self._row(np.zeros((*self.size, 3), np.uint8), nothing, position=-1, shape=(1, 1), name="")
        example = self.source[index]
        image, objects = _decode(example, self.num_classes)
        prepared = self.prepare(Image.fromarray(image))
        return self._row(prepared, objects, position=index, shape=image.shape[:2], name=example["image_id"])

    def _row(self, image: np.ndarray, objects: Any, *, position: int, shape: tuple[int, ...], name: str) -> Batch:
        area = np.zeros(self.max_boxes, np.float32)
        area[: len(objects["area"])] = objects["area"]
        return {
            "image": image,
            **_filled_up(objects["bbox"], objects["label"], objects["ignored"], self.max_boxes),
            "area": area,
            "mask": np.bool_(position >= 0),
            "index": np.int64(position),
            "shape": np.array(shape, np.int32),
            "file_name": np.str_(name),
        }


def _filled_up(boxes: np.ndarray, labels: np.ndarray, ignored: np.ndarray, rows: int) -> Batch:
    """``boxes`` float32 (B, 4) corners, ``class_labels`` int32 (B,), -1 where there is none, ``ignored`` bool (B,)."""
    count = len(boxes)
    filled = {
        "boxes": np.zeros((rows, 4), np.float32),
        "class_labels": np.full(rows, -1, np.int32),
        "ignored": np.zeros(rows, bool),
    }
    filled["boxes"][:count], filled["class_labels"][:count], filled["ignored"][:count] = boxes, labels, ignored
    return filled


def _decode(example: Any, num_classes: int | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    objects = example["objects"]
    try:
        labels = objects["label"]
        if num_classes is not None and labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
            raise DataError(
                f"it has labels up to {labels.max()}, expected 0 … {num_classes - 1}. Prepare the data again"
            )
        return np.asarray(decode_rgb(example["image"])), objects
    except DataError as error:
        raise BadExampleError(example["image_id"], str(error)) from error
