"""Runs an evaluation: every example once, sums added on the host, the first examples kept for pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from flax_mnv2.training.parallel import Parallel, prefetch
from flax_mnv2.training.progress import Progress

_ON_DEVICE = ("image", "label", "mask")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One example with its prediction, unpadded.

    Attributes:
      image: (h, w, 3) uint8.
      label: (h, w) uint8.
      prediction: (h, w) uint8.
    """

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation yields.

    Attributes:
      sums: the task's sums over all examples, int64.
      num_examples: examples counted, on all hosts.
      pictures: the first examples of the split (those that this process holds).
    """

    sums: Any
    num_examples: int
    pictures: list[Picture]


def evaluate(
    task: Any,
    parallel: Parallel,
    eval_step: Any,
    variables: Any,
    dataset: Any,
    *,
    split: str,
    num_pictures: int = 0,
) -> Evaluation:
    """Evaluates ``variables`` on a whole split.

    Args:
      task: gives the batches.
      parallel: puts them on the devices.
      eval_step: compiled step of the task.
      variables: the model's, replicated.
      dataset: the task's data set.
      split: its split.
      num_pictures: how many of the first examples to keep.

    Raises:
      RuntimeError: examples were lost or counted twice.
    """
    sums, counted, pictures = None, 0, {}
    total = len(dataset.source(split))
    batch_size = task.config.eval.batch_size
    with (
        task.eval_batches(dataset, split=split) as batches,
        Progress(-(-total // batch_size), f"evaluating {split}", batch_size) as progress,
    ):

        def put(batch):
            return batch, parallel.put_batch({name: batch[name] for name in _ON_DEVICE})

        for host_batch, device_batch in prefetch(batches, put):
            batch_sums, examples = eval_step(variables, device_batch)
            batch_sums = jax.tree.map(lambda value: np.asarray(value, np.int64), batch_sums)
            sums = batch_sums if sums is None else jax.tree.map(np.add, sums, batch_sums)
            counted += int(host_batch["mask"].sum())
            if np.any(host_batch["mask"] & (host_batch["index"] < num_pictures)):
                pictures |= _pictures(host_batch, parallel.fetch(examples), num_pictures)
            progress.advance()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        counted = int(multihost_utils.process_allgather(np.int32(counted)).sum())
    if counted != total:
        raise RuntimeError(f"The evaluation saw {counted} examples of {total} in {split}.")
    return Evaluation(sums, counted, [pictures[index] for index in sorted(pictures)])


def _pictures(batch: dict[str, np.ndarray], predictions: np.ndarray, limit: int) -> dict[int, Picture]:
    rows = zip(batch["index"], batch["mask"], batch["size"], batch["image"], batch["label"], predictions, strict=True)
    return {
        int(index): Picture(image[:height, :width], label[:height, :width], prediction[:height, :width])
        for index, valid, (height, width), image, label, prediction in rows
        if valid and index < limit
    }
