"""Rows of classification batches, made from encoded examples, by what can be pickled. Damaged ones are named."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from flax_mnv2.data.decode import decode_rgb
from flax_mnv2.data.loader.bad_examples import BadExampleError
from flax_mnv2.data.loader.batches import Batch, Source
from flax_mnv2.errors import DataError


@dataclasses.dataclass(frozen=True)
class TrainRow:
    """Position in a split of ``LabeledExample`` and a generator → one augmented example.

    ``transform`` makes uint8 (h, w, 3), all of one size, of an encoded image and a generator. Labels are from 0 to
    below ``num_classes``; None takes any.
    """

    source: Source
    transform: Callable[[bytes, np.random.Generator], np.ndarray]
    num_classes: int | None = None

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        """Returns ``image`` uint8 (h, w, 3), ``label`` int32 and ``index`` int64, the position."""
        example = self.source[index]
        image = _prepare(example, lambda data: self.transform(data, rng), self.num_classes)
        return {"image": image, "label": np.int32(example["label"]), "index": np.int64(index)}


@dataclasses.dataclass(frozen=True)
class EvalRow:
    """Position in a split → one example; ``transform`` makes uint8 (height, width, 3) of a decoded RGB image.

    ``as_stored`` is ``decode_rgb``'s.
    """

    source: Source
    transform: Callable[[Image.Image], np.ndarray]
    size: tuple[int, int]
    num_classes: int | None = None
    as_stored: bool = False

    def __call__(self, index: int) -> Batch:
        """Returns ``image`` uint8 (h, w, 3), ``label`` int32, ``mask`` bool, ``index`` int64 and ``file_name`` str.

        A position after the split gives a filler: black, label 0, ``mask`` False, index -1, no name.
        """
        if index >= len(self.source):
            return _eval_row(np.zeros((*self.size, 3), np.uint8), label=0, position=-1, file_name="")
        example = self.source[index]
        decode = functools.partial(decode_rgb, as_stored=self.as_stored)
        image = _prepare(example, lambda data: self.transform(decode(data)), self.num_classes)
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
