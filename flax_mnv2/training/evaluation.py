"""Runs an evaluation: every example once, sums added on the host, single examples kept where they are wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from flax_mnv2.tasks.registry import Dataset, Task
from flax_mnv2.training.logging.progress import Progress
from flax_mnv2.training.parallel import Parallel, prefetch


class Keeper(Protocol):
    """Collects from single examples what a report needs."""

    def wants(self, batch: dict[str, np.ndarray]) -> bool:
        """Whether to fetch what the evaluation step keeps of this batch."""

    def add(self, batch: dict[str, np.ndarray], examples: Any) -> None:
        """Takes a batch and what the step kept of it, both this process's share."""

    def result(self) -> Any:
        """What was collected, in the order of the split; called once, on every process."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation yields.

    Attributes:
      sums: the task's sums over all examples, int64.
      num_examples: examples counted, on all hosts.
      num_bad: damaged examples left out, on all hosts (``config.data.bad_examples``).
      bad_examples: those of this host, by position in the split; name and reason.
      kept: what the keeper collected, None without one.
    """

    sums: Any
    num_examples: int
    num_bad: int
    bad_examples: Mapping[int, str]
    kept: Any


def evaluate(
    task: Task,
    parallel: Parallel,
    eval_step: Any,
    variables: Any,
    dataset: Dataset,
    *,
    split: str,
    keeper: Keeper | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates ``variables`` on a whole split.

    Args:
      task: gives the batches.
      parallel: puts them on the devices.
      eval_step: compiled step of the task.
      variables: the model's, replicated.
      dataset: the task's data set.
      split: its split.
      keeper: collects from single examples; None for the sums alone.
      stop: asked before every batch, whether to give up.

    Returns:
      What was found; None if it was given up.

    Raises:
      RuntimeError: examples were lost or counted twice.
    """
    sums, counted = None, 0
    total = len(dataset.source(split))
    batch_size = task.config.eval.batch_size
    with (
        task.eval_batches(dataset, split=split) as batches,
        Progress(-(-total // batch_size), f"evaluating {split}", batch_size) as progress,
    ):

        def put(batch):
            return batch, parallel.put_batch({name: batch[name] for name in (*task.batch_fields, "mask")})

        for host_batch, device_batch in prefetch(batches, put):
            if stop():
                return None
            batch_sums, examples = eval_step(variables, device_batch)
            batch_sums = jax.tree.map(lambda value: np.asarray(value, np.int64), batch_sums)
            sums = batch_sums if sums is None else jax.tree.map(np.add, sums, batch_sums)
            counted += int(host_batch["mask"].sum())
            if keeper is not None and keeper.wants(host_batch):
                keeper.add(host_batch, parallel.fetch(examples))
            progress.advance()
    bad = len(batches.bad_examples)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        shares = multihost_utils.process_allgather(np.array([counted, bad], np.int32))
        counted, bad = (int(number) for number in shares.reshape(-1, 2).sum(axis=0))
    if counted + bad != total:
        raise RuntimeError(f"The evaluation saw {counted} examples of {total} in {split}, and {bad} bad ones.")
    return Evaluation(sums, counted, bad, batches.bad_examples, None if keeper is None else keeper.result())
