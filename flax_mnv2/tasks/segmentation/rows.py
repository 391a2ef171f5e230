"""Rows of segmentation batches, made from encoded examples, by what can be pickled. Damaged ones are named."""

import dataclasses
from typing import Any

import numpy as np

from flax_mnv2.data.augment.segmentation import IMAGE_PADDING, pad_to, random_crop, random_flip, random_scale
from flax_mnv2.data.decode import check_mask, decode_image, decode_mask
from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.data.loader.batches import Batch, Source
from flax_mnv2.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRow:
    """Position in a split and a generator → one augmented example of ``crop_size``.

    The factor of random resizing lies from ``min_scale`` to ``max_scale``, in steps of ``scale_step``; 0 draws any.
    Masks hold values from 0 to below ``num_classes`` (None takes any) and ``ignore_label``, which padding has too.
    """

    source: Source
    crop_size: tuple[int, int]
    min_scale: float
    max_scale: float
    scale_step: float
    flip: bool
    ignore_label: int
    num_classes: int | None = None

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        """Returns ``image`` uint8 (h, w, 3), ``label`` uint8 (h, w) and ``index`` int64, the position."""
        image, label = _decode(self.source[index], self.num_classes, self.ignore_label)
        image, label = random_scale(
            image, label, rng, min_scale=self.min_scale, max_scale=self.max_scale, step=self.scale_step
        )
        image, label = pad_to(image, label, size=self.crop_size, ignore_label=self.ignore_label)
        image, label = random_crop(image, label, rng, size=self.crop_size)
        if self.flip:
            image, label = random_flip(image, label, rng)
        return {"image": image, "label": label, "index": np.int64(index)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRow:
    """Position in a split → one whole example, padded at the bottom and right to ``size``."""

    source: Source
    size: tuple[int, int]
    ignore_label: int
    num_classes: int | None = None

    def __call__(self, index: int) -> Batch:
        """Returns ``image`` uint8 (h, w, 3), ``label`` uint8 (h, w), ``mask`` bool, ``index`` int64, the position, and
        ``size`` int32 (2,), the true height and width.

        A position after the split gives a filler without a label, with ``mask`` False and index -1. An example larger
        than the canvas raises a DataError.
        """
        if index >= len(self.source):
            image = np.full((*self.size, 3), IMAGE_PADDING, np.uint8)
            label = np.full(self.size, self.ignore_label, np.uint8)
            return _eval_row(image, label, position=-1, size=self.size)
        example = self.source[index]
        image, label = _decode(example, self.num_classes, self.ignore_label)
        size = label.shape
        if size[0] > self.size[0] or size[1] > self.size[1]:
            raise DataError(
                f"Example {example['image_id']!r} is {size[0]}x{size[1]} (heightxwidth), larger than the "
                f"evaluation size {self.size[0]}x{self.size[1]}. Set --config.data.eval_size to at least its "
                "size."
            )
        image, label = pad_to(image, label, size=self.size, ignore_label=self.ignore_label)
        return _eval_row(image, label, position=index, size=size)


def _eval_row(image: np.ndarray, label: np.ndarray, *, position: int, size: tuple[int, ...]) -> Batch:
    return {
        "image": image,
        "label": label,
        "mask": np.bool_(position >= 0),
        "index": np.int64(position),
        "size": np.array(size, np.int32),
    }


def _decode(example: Any, num_classes: int | None, ignore_label: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        image, mask = decode_image(example["image"]), decode_mask(example["segmentation_mask"])
        check_mask(mask, image.shape[:2], num_classes=num_classes, ignore_label=ignore_label)
    except DataError as error:
        raise BadExampleError(example["image_id"], str(error)) from error
    return image, mask
