"""Evaluations whose metrics need every output: what all processes have kept, in the order of the split."""

from __future__ import annotations

import abc
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flax_mnv2.tasks.base import Evaluator, HostBatch

_NAME_BYTES = 256  # file names travel between hosts as arrays of this width


class VectorEvaluator(Evaluator):
    """Keeps labels and outputs of all examples; a subclass computes from them."""

    def __init__(self, labels: Sequence[str]):
        """``labels`` are the model's names of the targets."""
        self._labels = tuple(labels)
        self._batches: list[dict[str, np.ndarray]] = []
        self._all: dict[str, np.ndarray] = {}

    def needs_examples(self, batch: HostBatch) -> bool:
        """Returns True: every example is kept."""
        return True

    def add(self, batch: HostBatch, sums: Any, examples: Mapping[str, np.ndarray]) -> None:
        """Takes one batch."""
        del sums
        names = np.char.encode(batch["file_name"], "utf-8").astype(f"S{_NAME_BYTES}")
        fixed_width = names.view(np.uint8).reshape(len(names), _NAME_BYTES)
        self._batches.append({"index": batch["index"].astype(np.int32), "file_name": fixed_width, **examples})

    def examples(self) -> dict[str, np.ndarray]:
        """Returns ``file_name``, ``label`` and ``output`` of all, from all processes, which call it together once."""
        if not self._all:
            from jax.experimental import multihost_utils

            mine = {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}
            rows = multihost_utils.process_allgather(mine, tiled=True) if jax.process_count() > 1 else mine
            order = np.argsort(rows["index"], kind="stable")
            order = order[rows["index"][order] >= 0]
            self._all = {name: np.asarray(values)[order] for name, values in rows.items()}
        return self._all

    def write_files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """Writes ``predictions.jsonl``."""
        rows, path = self.examples(), folder / "predictions.jsonl"
        if jax.process_index() != 0:
            return {}
        with path.open("w", encoding="utf-8") as file:
            for name, label, output in zip(rows["file_name"], rows["label"], rows["output"], strict=True):
                file_name = name.tobytes().rstrip(b"\0").decode("utf-8", "replace")
                row = {"file_name": file_name, **self.row(label, output)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return {"predicted": path}

    @abc.abstractmethod
    def row(self, label: np.ndarray, output: np.ndarray) -> dict[str, Any]:
        """Returns one example's label and output, both (C,), as ``predictions.jsonl`` has them."""


def or_none(value: float) -> float | None:
    """Returns a number as JSON has it: nothing for NaN."""
    return None if np.isnan(value) else float(value)


def rounded(value: float) -> float:
    """Returns six digits of a number, which are enough for a file."""
    return float(f"{value:.6g}")


def format_columns(title: str, names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Returns a head, a rule, a line for each name with its index, and a rule; NaN is a dash."""
    cells = [f"{index:>4} {name}" for index, name in enumerate(names)]
    width = max(len(title) + 5, *map(len, cells))
    head = f"{'     ' + title:<{width}}" + "".join(f"  {column:>10}" for column in columns)
    lines = [head, "-" * len(head)]
    for index, cell in enumerate(cells):
        lines.append(f"{cell:<{width}}" + "".join(f"  {_cell(values[index]):>10}" for values in columns.values()))
    return [*lines, "-" * len(head)]


def _cell(value: Any) -> str:
    if isinstance(value, (int, np.integer)):
        return str(value)
    return "-" if np.isnan(value) else f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"
