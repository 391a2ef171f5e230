"""The metrics of training steps: fetched in batches, checked, written."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.errors import UserError
from flax_mnv2.training.logging.metrics_writer import MetricsWriter
from flax_mnv2.training.logging.progress import Progress

SKIPPED = "skipped_steps"  # on lines of training, once there are any: steps of the run so far that were left out
LOG = "log"  # in what is noted beside a checkpoint: what to_dict gave


class NotFiniteError(UserError):
    """A loss, a gradient or an update is NaN or infinite, and the config does not allow to skip it."""


class TrainingLog:
    """Holds metrics on the device until they are wanted, then checks and writes them.

    Fetching a value waits for the step that makes it; fetching in batches lets the host run ahead. ``skipped_steps``
    were not finite and left out, in the run so far, resumptions included.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        writer: MetricsWriter,
        progress: Progress,
        checkpoints: Checkpoints,
        *,
        explain: Callable[[int], str],
        saved: Mapping[str, Any] | None = None,
    ):
        """Prepares to write; the config has durations in steps, ``checkpoints`` name the last good one.

        ``explain`` has sentences on the examples of a step that was not finite, by its number; ``saved`` is what
        ``to_dict`` gave when the state was saved from which the run goes on.
        """
        saved = saved or {}
        self._config, self._writer, self._progress, self._explain = config, writer, progress, explain
        self._checkpoints = checkpoints
        self._learning_rate = 0.0  # of the last step looked at
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._trained: list[dict[str, float]] = list(saved.get("trained", ()))  # since the last line
        self.skipped_steps = int(saved.get("skipped_steps", 0))

    def trained(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Notes the metrics of one step."""
        self._pending.append((step, metrics))
        self._progress.advance()

    def evaluated(self, step: int, split: str, metrics: dict[str, float], *, titles: dict[str, str]) -> None:
        """Writes the metrics of an evaluation; ``titles`` are their names for a person."""
        self._writer.write(step, split, metrics)
        shown = ", ".join(f"{titles[name]} {value:.4f}" for name, value in metrics.items())
        self._progress.write(f"step {step}: {shown} on {split}")

    def check(self) -> None:
        """Looks at the steps since the last call; to be done before a state is saved.

        A NotFiniteError names a step, its examples and the last good checkpoint, where ``config.non_finite`` allows no
        skip, or not so many.
        """
        pending, self._pending = self._pending, []
        for step, metrics in pending:
            metrics = {name: float(value) for name, value in metrics.items()}
            self._learning_rate = metrics["learning_rate"]
            if metrics.pop("skipped"):
                self._count_skip(step, metrics)
            else:
                self._trained.append(metrics)

    def flush(self, step: int) -> None:
        """Checks, and writes a line for the steps since the last one: the newest, with the mean of the losses.

        Steps that were skipped count as such and have no part in either; where all of them were, the line has the
        learning rate and the count alone.
        """
        self.check()
        trained, self._trained = self._trained, []
        metrics = dict(trained[-1]) if trained else {}
        rate = self._progress.examples_per_second()
        metrics |= {"learning_rate": self._learning_rate, "images_per_second": rate}
        if trained:
            metrics["loss"] = float(np.mean([metrics["loss"] for metrics in trained]))
        if self.skipped_steps:
            metrics[SKIPPED] = self.skipped_steps
        self._writer.write(step, "train", metrics)
        self._progress.write(f"step {step}/{self._config.num_steps}: {self._shown(metrics)}")

    def to_dict(self) -> dict[str, Any]:
        """Returns what a run that goes on from here has to know to write the same lines; JSON."""
        return {"trained": self._trained, "skipped_steps": self.skipped_steps}

    def _count_skip(self, step: int, metrics: dict[str, float]) -> None:
        limits = self._config.non_finite
        self.skipped_steps += 1
        happened, explained = _what_happened(step, metrics), self._explain(step)
        if limits.action == "skip" and self.skipped_steps <= limits.max_skips:
            self._progress.write(
                f"step {step}: skipped ({self.skipped_steps} of at most {limits.max_skips}). {happened} {explained}"
            )
            return
        last_good = self._checkpoints.latest_step()
        if last_good is None:
            saved = "No checkpoint has been saved yet."
        else:
            saved = f"The last good checkpoint is {self._checkpoints.path_of(last_good)}."
        if limits.action == "stop":
            choice = "--config.non_finite.action=skip leaves such steps out and goes on."
        else:
            choice = f"config.non_finite.max_skips = {limits.max_skips} is used up; a higher number goes on."
        raise NotFiniteError(f"{happened} {explained} {saved} {choice}")

    def _shown(self, metrics: dict[str, float]) -> str:
        parts = [f"loss {metrics['loss']:.4f}" if "loss" in metrics else "no finite loss"]
        if "accuracy" in metrics:
            parts.append(f"accuracy {metrics['accuracy']:.3f}")
        parts.append(f"learning rate {metrics['learning_rate']:.2e}")
        if "gradient_norm" in metrics:
            parts.append(f"gradient norm {metrics['gradient_norm']:.2f}")
        parts.append(f"{metrics['images_per_second']:.1f} images/s")
        parts.append(f"{self._progress.time_left()} left")
        return ", ".join(parts)


def _what_happened(step: int, metrics: dict[str, float]) -> str:
    loss, norm = metrics["loss"], metrics["gradient_norm"]
    if not np.isfinite(loss):
        return f"The loss became {loss} at step {step} (gradient norm {norm}); the step changed nothing."
    if not np.isfinite(norm):
        return f"The gradient norm became {norm} at step {step} (loss {loss:.4g}); the step changed nothing."
    return (
        f"Step {step} would have made weights or running statistics NaN or infinite (loss {loss:.4g}, gradient norm "
        f"{norm:.4g}); it changed nothing."
    )
