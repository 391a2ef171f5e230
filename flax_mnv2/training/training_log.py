"""The metrics of training steps: fetched in batches, checked, written."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from flax_mnv2.errors import UserError
from flax_mnv2.training.checkpoint import FOLDER_NAME, Checkpoints
from flax_mnv2.training.metrics_writer import MetricsWriter
from flax_mnv2.training.progress import Progress


class NotFiniteError(UserError):
    """The loss became NaN or infinite."""


class TrainingLog:
    """Holds metrics on the device until they are wanted, then checks and writes them.

    Fetching a value waits for the step that makes it; fetching in batches lets the host run ahead.
    """

    def __init__(
        self,
        num_steps: int,
        writer: MetricsWriter,
        progress: Progress,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
    ):
        """Writes to ``writer`` and ``progress``; ``checkpoints`` names the last good one when a loss is not finite."""
        self._num_steps, self._writer, self._progress = num_steps, writer, progress
        self._workdir, self._checkpoints = workdir, checkpoints
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []

    def trained(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Notes the metrics of one step."""
        self._pending.append((step, metrics))
        self._progress.advance()

    def evaluated(self, step: int, split: str, figures: dict[str, float], *, titles: dict[str, str]) -> None:
        """Writes the figures of an evaluation; ``titles`` are their names for a person."""
        self._writer.write(step, split, figures)
        shown = ", ".join(f"{titles[name]} {value:.4f}" for name, value in figures.items())
        self._progress.write(f"step {step}: {shown} on {split}")

    def flush(self) -> None:
        """Writes the metrics since the last call: the newest, with the mean of the losses.

        Raises:
          NotFiniteError: a loss is NaN or infinite; the message names its step and the last good checkpoint.
        """
        if not self._pending:
            return
        fetched = [(step, jax.tree.map(float, metrics)) for step, metrics in self._pending]
        self._pending.clear()
        for step, metrics in fetched:
            if not np.isfinite(metrics["loss"]):
                raise NotFiniteError(_not_finite(step, metrics["loss"], self._checkpoints.latest_step(), self._workdir))
        step, newest = fetched[-1]
        loss = float(np.mean([metrics["loss"] for _, metrics in fetched]))
        rate = self._progress.examples_per_second()
        self._writer.write(step, "train", {**newest, "loss": loss, "images_per_second": rate})
        accuracy = f", accuracy {newest['accuracy']:.3f}" if "accuracy" in newest else ""
        self._progress.write(
            f"step {step}/{self._num_steps}: loss {loss:.4f}{accuracy}, learning rate {newest['learning_rate']:.2e}, "
            f"gradient norm {newest['gradient_norm']:.2f}, {rate:.1f} images/s, {self._progress.time_left()} left"
        )


def _not_finite(step: int, loss: float, last_good: int | None, workdir: pathlib.Path) -> str:
    if last_good is None:
        saved = "No checkpoint has been saved yet"
    else:
        saved = f"The last good checkpoint is {workdir / FOLDER_NAME / str(last_good)}"
    return (
        f"The loss became {loss} at step {step}. {saved}. Lower config.optimizer.learning_rate, set "
        "config.optimizer.clip_norm, or freeze batch norm (config.freeze_batch_norm) at small batches."
    )
