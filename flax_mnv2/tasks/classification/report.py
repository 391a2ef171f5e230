"""What an evaluation of a classifier shows: a table, a line per image, and for few classes the confusion matrix."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flax_mnv2.metrics import ClassificationMetrics

_NAME_BYTES = 256  # file names travel between hosts as arrays of this width


class Predictions:
    """Keeps the likeliest classes of every example, from all processes."""

    def __init__(self, labels: Sequence[str]):
        """``labels`` are the model's class names by index."""
        self._labels = labels
        self._batches: list[dict[str, np.ndarray]] = []

    def wants(self, batch: dict[str, np.ndarray]) -> bool:
        """True: every example is kept."""
        del batch
        return True

    def add(self, batch: dict[str, np.ndarray], examples: Mapping[str, np.ndarray]) -> None:
        """Takes a batch and what ``ClassificationTask.evaluate_batch`` keeps of it."""
        names = np.char.encode(batch["file_name"], "utf-8").astype(f"S{_NAME_BYTES}")
        self._batches.append(
            {
                "index": batch["index"].astype(np.int32),
                "file_name": names.view(np.uint8).reshape(len(names), _NAME_BYTES),
                **examples,
            }
        )

    def result(self) -> list[dict[str, Any]]:
        """A row per example in the order of the split, plain values for JSON; call it on every process."""
        from jax.experimental import multihost_utils

        mine = {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}
        rows = multihost_utils.process_allgather(mine, tiled=True)
        order = np.argsort(rows["index"], kind="stable")
        return [self._row(rows, at) for at in order if rows["index"][at] >= 0]

    def _row(self, rows: Mapping[str, np.ndarray], at: int) -> dict[str, Any]:
        label = int(rows["label"][at])
        best = zip(rows["top"][at], rows["probability"][at], strict=True)
        return {
            "file_name": rows["file_name"][at].tobytes().rstrip(b"\0").decode("utf-8", "replace"),
            "label": label,
            "label_name": self._labels[label],
            "top5": [
                {"label": int(index), "label_name": self._labels[index], "probability": float(f"{probability:.6g}")}
                for index, probability in best
            ],
        }


def format_table(metrics: ClassificationMetrics, labels: Sequence[str], *, per_class: bool) -> str:
    """The figures as an aligned table for a terminal; ``per_class`` puts a row above for each class that occurs.

    Classes have their index, because names repeat, and of several names the first.
    """
    figures = metrics.to_dict(tuple(labels), per_class=per_class)
    lines = []
    if per_class:
        rows = [(f"{row['id']:>4} {row['label'].split(',')[0]}", row) for row in figures["per_class"]]
        width = max(len("     class"), *(len(name) for name, _ in rows))
        lines = [f"{'     class':<{width}}  {'top-1':>6}  {'top-5':>6}  images", "-" * (width + 24)]
        lines += [f"{name:<{width}}  {r['top1']:6.4f}  {r['top5']:6.4f}  {r['num_examples']:6}" for name, r in rows]
        lines.append("-" * (width + 24))
    total = metrics.num_examples
    lines.append(f"top-1 accuracy  {metrics.top1:.4f}  ({figures['num_top1']} of {total} images)")
    lines.append(f"top-5 accuracy  {metrics.top5:.4f}  ({figures['num_top5']} of {total} images)")
    return "\n".join(lines)


def write_files(
    folder: pathlib.Path, matrix: np.ndarray | None, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, pathlib.Path]:
    """Writes ``predictions.jsonl`` and, given a matrix, ``confusion_matrix.png``; returns what and where."""
    written = {"predicted": folder / "predictions.jsonl"}
    with written["predicted"].open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if matrix is not None:
        from flax_mnv2.visualize import save_confusion_matrix

        written["confusion"] = folder / "confusion_matrix.png"
        save_confusion_matrix(written["confusion"], matrix, labels)
    return written
