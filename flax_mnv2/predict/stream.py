"""Files through a predictor in batches: read ahead in threads, bounded in memory, stopped by no bad file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from flax_mnv2.errors import DataError
from flax_mnv2.image_processing.reading import read_picture
from flax_mnv2.tasks.prediction import Example, Predictor

MAX_READERS = 8


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file: a prediction, or the reason why there is none."""

    file: pathlib.Path
    prediction: Any = None
    error: str | None = None


def predict_files(predictor: Predictor, files: Sequence[pathlib.Path], *, batch_size: int) -> Iterator[Outcome]:
    """Predicts for each file; predictions come in the order of the files, failures when they are met.

    Every batch has the same number of rows, at most ``batch_size``, the last being filled up with zeros, so one program
    is compiled for each shape of the examples; files are spread so that little is filled up. At most two batches of
    photos are in memory.
    """
    num_batches = -(-len(files) // batch_size)
    num_rows = -(-len(files) // max(num_batches, 1))
    pool = ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1))
    try:
        waiting: deque[tuple[pathlib.Path, Future]] = deque()
        batch: list[tuple[pathlib.Path, Example]] = []
        for file in files:
            waiting.append((file, pool.submit(_read, predictor, file)))
            if len(waiting) > num_rows:
                yield from _take(predictor, waiting, batch, num_rows)
        while waiting:
            yield from _take(predictor, waiting, batch, num_rows)
        yield from _run(predictor, batch, num_rows)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(predictor: Predictor, file: pathlib.Path) -> Example:
    return predictor.prepare(read_picture(file, "image"))


def _take(predictor: Predictor, waiting: deque, batch: list, num_rows: int) -> Iterator[Outcome]:
    """Moves the first that waits into the batch, which runs when it is full or the shape changes."""
    file, future = waiting.popleft()
    try:
        example = future.result()
    except DataError as error:
        yield Outcome(file, error=str(error))
        return
    if batch and batch[0][1].pixels.shape != example.pixels.shape:
        yield from _run(predictor, batch, num_rows)
    batch.append((file, example))
    if len(batch) == num_rows:
        yield from _run(predictor, batch, num_rows)


def _run(predictor: Predictor, batch: list, num_rows: int) -> Iterator[Outcome]:
    """Runs the batch and empties it."""
    if not batch:
        return
    pixels = np.zeros((num_rows, *batch[0][1].pixels.shape), np.float32)
    for row, (_, example) in enumerate(batch):
        pixels[row] = example.pixels
    answers = predictor.compute(pixels)
    for row, (file, example) in enumerate(batch):
        yield Outcome(file, predictor.finish(example, answers[row]))
    batch.clear()
