"""An evaluation of a classifier: counts, a line per image, and for few classes the confusion matrix."""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flax_mnv2.metrics import ClassificationMetrics
from flax_mnv2.tasks.base import Evaluator, HostBatch
from flax_mnv2.tasks.extremes import Extremes
from flax_mnv2.tasks.judgement import Judgement
from flax_mnv2.tasks.kept_examples import KeptExamples, file_name
from flax_mnv2.visualize.legend import percent
from flax_mnv2.visualize.plots import save_confusion_matrix
from flax_mnv2.visualize.sheets import Panel, save_panels

_PICTURES = 12  # of the best, and of the worst
ERROR_WORDS = "probability of the most probable wrong class, less that of the true one"


class ClassificationEvaluator(Evaluator):
    """Adds up the counts of ``ClassificationTask.evaluate_batch``.

    For a report it keeps the top classes of all images, and the images on which the model is best and worst.
    """

    def __init__(self, labels: Sequence[str], *, report: bool):
        """``labels`` are the model's class names by index."""
        self._labels, self._report = tuple(labels), report
        self._counts: dict[str, np.ndarray] = {}
        self._kept = KeptExamples()
        self._extremes: Extremes[Panel] = Extremes(_PICTURES if report else 0)

    def needs_examples(self, batch: HostBatch) -> bool:
        """Returns True for a report: every example is kept."""
        return self._report

    def add(self, batch: HostBatch, sums: Mapping[str, np.ndarray], examples: Mapping[str, np.ndarray] | None) -> None:
        """Takes one batch."""
        for name, counts in sums.items():
            self._counts[name] = self._counts.get(name, 0) + counts.astype(np.int64)
        if examples is None:
            return
        self._kept.add(batch, examples)
        right = examples["top"] == examples["label"][:, None]
        true, wrong = (np.where(hits, examples["probability"], 0.0).max(axis=1) for hits in (right, ~right))
        for at in np.flatnonzero(batch["mask"]):
            self._extremes.add(float(wrong[at] - true[at]), functools.partial(self._panel, batch, examples, at))

    def metrics(self) -> dict[str, float]:
        """Returns ``top1`` and ``top5``."""
        computed = self._computed()
        return {"top1": computed.top1, "top5": computed.top5}

    def to_dict(self, *, per_class: bool) -> dict[str, Any]:
        """Returns the metrics, with ``per_class`` those of every class too."""
        return self._computed().to_dict(self._labels, per_class=per_class)

    def format_table(self, *, per_class: bool) -> str:
        """Returns an aligned table; ``per_class`` puts a row above for each class that occurs or is predicted.

        Classes have their index, because names repeat, and of several names the first.
        """
        values, lines = self.to_dict(per_class=per_class), []
        if per_class:
            rows = [(f"{row['id']:>4} {row['label'].split(',')[0]}", row) for row in values["per_class"]]
            width = max(len("     class"), *(len(name) for name, _ in rows))
            columns = ("precision", "recall", "f1", "top5")
            head = f"{'     class':<{width}}  {'precision':>9}  {'recall':>9}  {'F1':>9}  {'top-5':>9}  images"
            lines = [head, "-" * len(head)]
            for name, row in rows:
                numbers = "  ".join(f"{'-':>9}" if row[key] is None else f"{row[key]:9.4f}" for key in columns)
                lines.append(f"{name:<{width}}  {numbers}  {row['num_examples']:6}")
            lines.append("-" * len(head))
        computed = self._computed()
        lines.append(f"top-1 accuracy  {computed.top1:.4f}  ({values['num_top1']} of {computed.num_examples} images)")
        lines.append(f"top-5 accuracy  {computed.top5:.4f}  ({values['num_top5']} of {computed.num_examples} images)")
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row per example in the order of the split, from all processes, which all call it."""
        rows = self._kept.gathered()
        return [self._row(rows, at) for at in range(len(rows["index"]))]

    def write_files(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """Writes ``predictions.jsonl``, for few classes ``confusion_matrix.png``, and ``best.png`` and ``worst.png``.

        These show images as the network gets them, of process 0's part of the split.
        """
        rows, written = self.rows(), {"predicted": folder / "predictions.jsonl"}
        if jax.process_index() != 0:
            return {}
        with written["predicted"].open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if "confusion" in self._counts:
            written["confusion"] = folder / "confusion_matrix.png"
            save_confusion_matrix(written["confusion"], self._counts["confusion"], self._labels)
        for name, panels in (("best", self._extremes.best), ("worst", self._extremes.worst)):
            if panels:
                written[name] = folder / f"{name}.png"
                save_panels(written[name], panels)
        return written

    def _computed(self) -> ClassificationMetrics:
        return ClassificationMetrics.from_counts(self._counts)

    def _panel(self, batch: HostBatch, examples: Mapping[str, np.ndarray], at: int) -> Panel:
        label, first = (self._labels[int(examples[name][at].flat[0])].split(",")[0] for name in ("label", "top"))
        said = f"said: {first} {percent(float(examples['probability'][at][0]))}"
        return Panel(batch["image"][at].copy(), (f"true: {label}", said))

    def _row(self, rows: Mapping[str, np.ndarray], at: int) -> dict[str, Any]:
        label = int(rows["label"][at])
        best = zip(rows["top"][at], rows["probability"][at], strict=True)
        return {
            "file_name": file_name(rows["file_name"][at]),
            "label": label,
            "label_name": self._labels[label],
            "top5": [
                {"label": int(index), "label_name": self._labels[index], "probability": float(f"{probability:.6g}")}
                for index, probability in best
            ],
        }


def judged(rows: Sequence[Mapping[str, Any]]) -> list[Judgement]:
    """Returns how right each row of ``predictions.jsonl`` is; the error is what ``ERROR_WORDS`` says."""
    found = []
    for row in rows:
        right = sum(one["probability"] for one in row["top5"] if one["label"] == row["label"])
        wrong = max((one["probability"] for one in row["top5"] if one["label"] != row["label"]), default=0.0)
        first = row["top5"][0]
        said = f"{first['label_name']}, {percent(first['probability'])}"
        found.append(Judgement(row["file_name"], row["label_name"], said, wrong - right))
    return found
