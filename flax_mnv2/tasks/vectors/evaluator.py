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
from flax_mnv2.tasks.kept_examples import KeptExamples, file_name


class VectorEvaluator(Evaluator):
    """Keeps labels and outputs of all examples; a subclass computes from them."""

    def __init__(self, labels: Sequence[str]):
        """``labels`` are the model's names of the targets."""
        self._labels = tuple(labels)
        self._kept = KeptExamples()
        self._all: dict[str, np.ndarray] = {}

    def needs_examples(self, batch: HostBatch) -> bool:
        """Returns True: every example is kept."""
        return True

    def add(self, batch: HostBatch, sums: Any, examples: Mapping[str, np.ndarray]) -> None:
        """Takes one batch."""
        del sums
        self._kept.add(batch, examples)

    def examples(self) -> dict[str, np.ndarray]:
        """Returns ``file_name``, ``label`` and ``output`` of all, from all processes, which call it together once."""
        if not self._all:
            self._all = self._kept.gathered()
        return self._all

    def write_files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """Writes ``predictions.jsonl``."""
        rows, path = self.examples(), folder / "predictions.jsonl"
        if jax.process_index() != 0:
            return {}
        with path.open("w", encoding="utf-8") as file:
            for name, label, output in zip(rows["file_name"], rows["label"], rows["output"], strict=True):
                row = {"file_name": file_name(name), **self.row(label, output)}
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
