"""Metrics on disk: one JSON object per line, and TensorBoard event files."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import jax

from flax_mnv2.training.distributed import from_leader

METRICS_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and to event files in a folder. A context manager.

    A run that goes on from step k drops what an interrupted one wrote after k, so no line is doubled.
    """

    def __init__(self, folder: pathlib.Path, *, resume_step: int):
        """Opens the files; lines of steps above ``resume_step`` are dropped. Only process 0 writes."""
        kept = [line for line in read_metrics(folder) if line["step"] <= resume_step]
        # What shall be evaluated again, all must agree on, whatever a host's copy of the file says.
        self.evaluated_steps = set(
            from_leader(lambda: sorted({line["step"] for line in kept if line["split"] != "train"}))
        )
        self._leads = jax.process_index() == 0
        if not self._leads:
            return
        from tensorboardX import SummaryWriter

        self._path = folder / METRICS_NAME
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes the figures of one step; ``split`` is ``train`` or the evaluated split."""
        if not self._leads:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        if split != "train":
            self._events.flush()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_) -> None:
        if self._leads:
            self._file.close()
            self._events.close()


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics; a line cut short by a crash is left out."""
    path = folder / METRICS_NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
