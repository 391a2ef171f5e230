"""Rows of classification batches, made from encoded examples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from flax_mnv2.data.decode import decode_rgb
from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.data.loader.batches import Batch, Source
from flax_mnv2.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRow:
    """Position in a split and a generator → one augmented example; it can be pickled.

    Attributes:
      source: the split, of :class:`~flax_mnv2.data.datasets.records.LabeledExample`.
      transform: encoded image and a generator → uint8 (h, w, 3), all of one size; it can be pickled.
      num_classes: labels are 0 … ``num_classes - 1``; None takes any.
    """

    source: Source
    transform: Callable[[bytes, np.random.Generator], np.ndarray]
    num_classes: int | None = None

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        """``image`` uint8 (h, w, 3), ``label`` int32 and ``index`` int64, the position.

        Raises:
          BadExampleError: the example is damaged, or its label is out of range.
        """
        example = self.source[index]
        image = _prepare(example, lambda data: self.transform(data, rng), self.num_classes)
        return {"image": image, "label": np.int32(example["label"]), "index": np.int64(index)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRow:
    """Position in a split → one example; it can be pickled.

    Attributes:
      source: as in :class:`TrainRow`.
      transform: decoded RGB image → uint8 (height, width, 3); it can be pickled.
      size: height and width that ``transform`` gives.
      num_classes: as in :class:`TrainRow`.
    """

    source: Source
    transform: Callable[[Image.Image], np.ndarray]
    size: tuple[int, int]
    num_classes: int | None = None

    def __call__(self, index: int) -> Batch:
        """One row; that of a position after the split is a filler: black, label 0, index -1, no name.

        Returns:
          ``image`` uint8 (h, w, 3), ``label`` int32, ``mask`` bool, False for fillers, ``index`` int64, the position,
          and ``file_name`` str.

        Raises:
          BadExampleError: the example is damaged, or its label is out of range.
        """
        if index >= len(self.source):
            return _eval_row(np.zeros((*self.size, 3), np.uint8), label=0, position=-1, file_name="")
        example = self.source[index]
        image = _prepare(example, lambda data: self.transform(decode_rgb(data)), self.num_classes)
        return _eval_row(image, label=example["label"], position=index, file_name=example["file_name"])


def _eval_row(image: np.ndarray, *, label: int, position: int, file_name: str) -> Batch:
    return {
        "image": image,
        "label": np.int32(label),
        "mask": np.bool_(position >= 0),
        "index": np.int64(position),
        "file_name": np.str_(file_name),
    }


def _prepare(example: Any, prepare: Callable[[bytes], np.ndarray], num_classes: int | None) -> np.ndarray:
    label = example["label"]
    try:
        if num_classes is not None and not 0 <= label < num_classes:
            raise DataError(f"its label is {label}, expected 0 … {num_classes - 1}. Prepare the data set again")
        return prepare(example["image"])
    except DataError as error:
        raise BadExampleError(example["file_name"], str(error)) from error
