"""The examples of an evaluation that are kept one by one, brought together from all processes in the end."""

from collections.abc import Mapping

import jax
import numpy as np

from flax_mnv2.tasks.base import HostBatch

_NAME_BYTES = 256  # file names travel between hosts as arrays of this width


class KeptExamples:
    """What ``Task.evaluate_batch`` gave of the examples, with their file names; ``gathered`` has those of all hosts."""

    def __init__(self) -> None:
        self._batches: list[dict[str, np.ndarray]] = []

    def add(self, batch: HostBatch, examples: Mapping[str, np.ndarray]) -> None:
        """Takes those of this process's ``batch``, which has ``index`` (below 0: a filler) and ``file_name``."""
        names = np.char.encode(batch["file_name"], "utf-8").astype(f"S{_NAME_BYTES}")
        fixed_width = names.view(np.uint8).reshape(len(names), _NAME_BYTES)
        self._batches.append({"index": batch["index"].astype(np.int32), "file_name": fixed_width, **examples})

    def gathered(self) -> dict[str, np.ndarray]:
        """Returns all in the order of the split without fillers; every process calls it, as often as the others."""
        from jax.experimental import multihost_utils

        mine = {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}
        rows = multihost_utils.process_allgather(mine, tiled=True) if jax.process_count() > 1 else mine
        order = np.argsort(rows["index"], kind="stable")
        order = order[rows["index"][order] >= 0]
        return {name: np.asarray(values)[order] for name, values in rows.items()}


def file_name(row: np.ndarray) -> str:
    """Returns the name in one row of the gathered ``file_name``."""
    return row.tobytes().rstrip(b"\0").decode("utf-8", "replace")
