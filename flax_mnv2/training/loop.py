"""The training loop, from top to bottom."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from flax_mnv2.errors import CheckpointError, UserError
from flax_mnv2.pretrained import from_pretrained, load_backbone
from flax_mnv2.tasks.jobs import check_trains, load_dataset
from flax_mnv2.tasks.segmentation import SegmentationTask, make_model_config
from flax_mnv2.training.checkpoint import FOLDER_NAME, Checkpoints
from flax_mnv2.training.evaluation import evaluate
from flax_mnv2.training.interrupt import Interrupted, StopRequest
from flax_mnv2.training.metrics_writer import METRICS_NAME, MetricsWriter
from flax_mnv2.training.optimizer import make_optimizer, make_schedule
from flax_mnv2.training.parallel import Parallel, check_divisible, make_parallel, prefetch
from flax_mnv2.training.progress import Progress
from flax_mnv2.training.run_config import check_config
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.steps import make_eval_step, make_train_step
from flax_mnv2.training.workdir import open_workdir


class NotFiniteError(UserError):
    """The loss became NaN or infinite."""


def train(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, *, parallel: Parallel | None = None
) -> TrainState:
    """Trains to ``config.num_steps``, going on from the newest checkpoint in ``workdir`` if there is one.

    Args:
      config: as ``run_config.default_config`` describes.
      workdir: gets checkpoints, metrics and the config; made if it is not there.
      parallel: devices and mode; None follows ``config.parallel`` on all devices.

    Returns:
      The final state.

    Raises:
      UserError: bad config, data or checkpoint; the loss stopped being finite.
      Interrupted: SIGINT or SIGTERM came; the state has been saved.
    """
    # ---- Check everything that can be checked before the first expensive step -----------------------------
    check_config(config)
    check_trains(config)
    parallel = parallel or make_parallel(config.parallel, per_device=not config.batch_norm.sync)
    check_divisible(parallel, config.batch_size, "batch_size")
    check_divisible(parallel, config.eval.batch_size, "eval.batch_size")
    workdir = open_workdir(workdir, config)
    dataset = load_dataset(config.task, config.data)
    train_source, eval_source = dataset.source(config.data.train_split), dataset.source(config.data.eval_split)

    # ---- Model, optimizer, steps ----------------------------------------------------------------------------
    task = SegmentationTask(config, make_model_config(config, dataset.labels), axis_name=parallel.axis_name)
    schedule = make_schedule(config.optimizer, config.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    train_step = parallel.compile_train_step(
        make_train_step(task, optimizer, schedule, seed=config.seed, axis_name=parallel.axis_name)
    )
    eval_step = parallel.compile_eval_step(make_eval_step(task, axis_name=parallel.axis_name))
    about = {"config": config.to_dict(), "model": task.model.config.to_dict()}

    with Checkpoints(
        workdir / FOLDER_NAME,
        best_metric=task.best_metric,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
    ) as checkpoints:
        # ---- State: from the newest checkpoint, else from pretrained weights, else random -------------------
        resume_step = checkpoints.latest_step()
        variables = task.init_variables(config.seed)
        if resume_step is None and config.init_from:
            variables = initial_variables(config, task, variables)
        state = parallel.put_state(TrainState.create(variables, optimizer))
        if resume_step is not None:
            state = checkpoints.restore(state, resume_step)
        step = int(state.step)

        say = print if jax.process_index() == 0 else (lambda *_, **__: None)
        say(
            f"{dataset.name}: {len(train_source)} training and {len(eval_source)} evaluation examples, "
            f"{len(dataset.labels)} classes"
        )
        say(_describe(task, state, parallel, config))
        say(
            f"{_origin(config, resume_step)}; {config.num_steps - step} steps to go, the first one compiles", flush=True
        )

        with (
            StopRequest() as stop,
            MetricsWriter(workdir, resume_step=step) as writer,
            Progress(config.num_steps, "training", config.batch_size, start=step) as progress,
            task.train_batches(dataset, start_step=step) as batches,
        ):
            log = TrainingLog(config.num_steps, writer, progress, workdir, checkpoints)

            def run_evaluation(state: TrainState) -> dict[str, float]:
                split = config.data.eval_split
                evaluation = evaluate(task, parallel, eval_step, state.variables, dataset, split=split)
                metrics = task.summarize(evaluation.sums)
                figures = {name: getattr(metrics, name) for name in task.figures}
                log.evaluated(int(state.step), split, figures, titles=task.figures)
                return figures

            # ---- The loop ---------------------------------------------------------------------------------------
            due = step == config.num_steps or (step > 0 and step % config.eval_every_steps == 0)
            if due and step not in writer.evaluated_steps:
                run_evaluation(state)  # the run was cut between the save and the evaluation of this step
            feed = prefetch(batches, lambda batch: parallel.put_batch({k: batch[k] for k in task.batch_fields}))
            while step < config.num_steps and stop.signal is None:
                state, metrics = train_step(state, next(feed))
                step += 1
                log.trained(step, metrics)
                if step == 1 or step % config.log_every_steps == 0:
                    log.flush()
                evaluates = step == config.num_steps or step % config.eval_every_steps == 0
                if evaluates or step % config.checkpoint.every_steps == 0:
                    began = time.perf_counter()
                    log.flush()  # never save a state whose loss has not been looked at
                    figures = run_evaluation(state) if evaluates and stop.signal is None else None
                    checkpoints.save(state, about, figures)
                    progress.exclude(time.perf_counter() - began)

            # ---- The end, asked for or reached ------------------------------------------------------------------
            if stop.signal is not None:
                log.flush()
                checkpoints.save(state, about)
            checkpoints.wait()
        best_step = checkpoints.best_step()

    if stop.signal is not None:
        say(f"{stop.signal.name}: saved step {step} in {workdir / FOLDER_NAME}; the same command goes on from there")
        raise Interrupted(stop.signal)
    best = f"best by {task.figures[task.best_metric]}: step {best_step}"
    say(f"checkpoints: {workdir / FOLDER_NAME} (last step {step}, {best})")
    say(f"metrics:     {workdir / METRICS_NAME}, and TensorBoard in {workdir / 'tensorboard'}")
    return state


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
        self._progress.write(
            f"step {step}/{self._num_steps}: loss {loss:.4f}, learning rate {newest['learning_rate']:.2e}, "
            f"gradient norm {newest['gradient_norm']:.2f}, {rate:.1f} images/s, {self._progress.time_left()} left"
        )


def initial_variables(config: ml_collections.ConfigDict, task: SegmentationTask, variables: Any) -> Any:
    """Variables from ``config.init_from``: the backbone alone, or everything."""
    if config.init_scope == "backbone":
        return load_backbone(config.init_from, variables)
    model, loaded = from_pretrained(config.init_from, task=config.task)
    if model.config.num_labels != task.model.config.num_labels:
        raise CheckpointError(
            f"{config.init_from} has {model.config.num_labels} classes and the data {task.model.config.num_labels}; "
            "use --config.init_scope=backbone to start with a new head."
        )
    if jax.tree.map(np.shape, loaded) != jax.tree.map(np.shape, dict(variables)):
        raise CheckpointError(
            f"{config.init_from} has layers of other widths than config.model describes; set config.model.* to "
            "the fields of its config.json."
        )
    return loaded


def _describe(task: SegmentationTask, state: TrainState, parallel: Parallel, config: ml_collections.ConfigDict) -> str:
    model, devices = task.model.config, parallel.devices
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return (
        f"MobileNetV2 {model.depth_multiplier:g}, output stride {model.output_stride}: {num_params:,} parameters "
        f"on {len(devices)} {devices[0].platform} device(s), {config.parallel}"
    )


def _origin(config: ml_collections.ConfigDict, resume_step: int | None) -> str:
    if resume_step is not None:
        return f"going on from step {resume_step}"
    if config.init_from:
        what = "backbone" if config.init_scope == "backbone" else "all weights"
        return f"{what} from {config.init_from}"
    return "random weights"


def _not_finite(step: int, loss: float, last_good: int | None, workdir: pathlib.Path) -> str:
    if last_good is None:
        saved = "No checkpoint has been saved yet"
    else:
        saved = f"The last good checkpoint is {workdir / FOLDER_NAME / str(last_good)}"
    return (
        f"The loss became {loss} at step {step}. {saved}. Lower config.optimizer.learning_rate, set "
        "config.optimizer.clip_norm, or freeze batch norm (config.freeze_batch_norm) at small batches."
    )
