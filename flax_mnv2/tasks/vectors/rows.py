"""Rows of batches whose labels are vectors, made by what can be pickled. Damaged examples are named."""

import dataclasses
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
    """Position in a split of ``VectorExample`` and a generator → one augmented example.

    ``transform`` makes uint8 (h, w, 3), all of one size, of an encoded image and a generator.
    """

    source: Source
    transform: Callable[[bytes, np.random.Generator], np.ndarray]

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        """Returns ``image`` uint8 (h, w, 3), ``label`` float32 (C,) and ``index`` int64, the position."""
        example = self.source[index]
        image = _prepared(example, lambda data: self.transform(data, rng))
        return {"image": image, "label": example["label"], "index": np.int64(index)}


@dataclasses.dataclass(frozen=True)
class EvalRow:
    """Position in a split → one example; ``transform`` makes uint8 (height, width, 3) of a decoded RGB image."""

    source: Source
    transform: Callable[[Image.Image], np.ndarray]
    size: tuple[int, int]
    num_targets: int

    def __call__(self, index: int) -> Batch:
        """Returns ``image`` uint8 (h, w, 3), ``label`` float32 (C,), ``mask``, ``index`` int64 and ``file_name``.

        A position after the split gives a filler: black, zeros, ``mask`` False, index -1, no name.
        """
        if index >= len(self.source):
            example = {"label": np.zeros(self.num_targets, np.float32), "file_name": ""}
            image, index = np.zeros((*self.size, 3), np.uint8), -1
        else:
            example = self.source[index]
            image = _prepared(example, lambda data: self.transform(decode_rgb(data)))
        return {
            "image": image,
            "label": example["label"],
            "mask": np.bool_(index >= 0),
            "index": np.int64(index),
            "file_name": np.str_(example["file_name"]),
        }


def _prepared(example: Any, prepare: Callable[[bytes], np.ndarray]) -> np.ndarray:
    try:
        return prepare(example["image"])
    except DataError as error:
        raise BadExampleError(example["file_name"], str(error)) from error
