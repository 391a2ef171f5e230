"""The training loop, from top to bottom."""

from __future__ import annotations

import pathlib
import time

import jax
import ml_collections

from flax_mnv2.data.loader.bad_examples import report
from flax_mnv2.errors import CheckpointError, ConfigError, DataError
from flax_mnv2.tasks.registry import Task, load_dataset, make_train_task
from flax_mnv2.training.config.checks import check_config, check_parts
from flax_mnv2.training.config.durations import in_steps
from flax_mnv2.training.configured import configured_train_step, make_update_rule
from flax_mnv2.training.evaluation import evaluate
from flax_mnv2.training.faults.interrupt import Interrupted, StopRequest
from flax_mnv2.training.faults.nan_search import Blame
from flax_mnv2.training.faults.run_lock import only_run
from flax_mnv2.training.initial_weights import initial_variables, origin_notes
from flax_mnv2.training.logging.metrics_writer import METRICS_NAME, MetricsWriter
from flax_mnv2.training.logging.progress import Progress
from flax_mnv2.training.logging.training_log import LOG, TrainingLog
from flax_mnv2.training.multihost import check_enough_examples, from_leader, leader_first
from flax_mnv2.training.parallel import Parallel, check_divisible, make_parallel, prefetch
from flax_mnv2.training.run_checkpoints import FOLDER_NAME, SCORE, Checkpoints
from flax_mnv2.training.state import TrainState
from flax_mnv2.training.step import make_eval_step
from flax_mnv2.training.workdir import open_workdir


def train(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    parallel: Parallel | None = None,
    strict: bool = False,
) -> TrainState:
    """Trains to ``config.num_steps``, going on from the newest checkpoint in ``workdir`` if there is one.

    Args:
      config: as ``run_config.default_config`` describes.
      workdir: gets checkpoints, metrics and the config; made if it is not there.
      parallel: devices and mode; None follows ``config.parallel`` on all devices.
      strict: a damaged newest checkpoint is an error; else it is set aside and the one before is used.

    Returns:
      The final state.

    Raises:
      UserError: bad config, data or checkpoint; the loss stopped being finite. What was trained before bad data, or
        data that does not come, is saved.
      Interrupted: SIGINT or SIGTERM came; the state has been saved.
    """
    # ---- Check everything that can be checked before the first expensive step -----------------------------
    check_config(config)
    parallel = parallel or make_parallel(
        config.parallel, per_device=not config.batch_norm.sync, shard_optimizer=config.shard_optimizer_state
    )
    check_divisible(parallel, config.batch_size, "batch_size")
    check_divisible(parallel, config.eval.batch_size, "eval.batch_size")
    check_parts(config, len(parallel.devices))
    if config.checkpoint.on_error == "continue" and jax.process_count() > 1:
        raise ConfigError(
            "config.checkpoint.on_error='continue' is for runs of one process: several save together, and one that "
            "cannot would leave the others waiting. Use 'stop'; the run goes on with the same command."
        )
    workdir = open_workdir(workdir, config)
    with leader_first():  # what is not prepared yet is prepared once where hosts share a disk
        dataset = load_dataset(config.task, config.data)
        train_source, eval_source = dataset.source(config.data.train_split), dataset.source(config.data.eval_split)
    check_enough_examples(len(train_source), config.data.train_split)

    # ---- Model, optimizer, steps ----------------------------------------------------------------------------
    task = make_train_task(config, dataset.labels, axis_name=parallel.axis_name)
    about = {
        "config": config.to_dict(),
        "model": task.model.config.to_dict(),
        "processor": task.processor.to_dict(),
    }
    config = in_steps(config, len(train_source))
    schedule, optimizer = make_update_rule(config)
    train_step = parallel.compile_train_step(configured_train_step(config, task, schedule, optimizer, parallel))
    eval_step = parallel.compile_eval_step(make_eval_step(task, axis_name=parallel.axis_name))
    keeps_ema, tolerant = config.ema.decay > 0, config.checkpoint.on_error == "continue"

    with (
        only_run(workdir),
        Checkpoints(
            workdir / FOLDER_NAME,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
            tolerant=tolerant,
            timeout=config.checkpoint.timeout,
        ) as checkpoints,
    ):
        # ---- State: from the newest checkpoint, else from pretrained weights, else random -------------------
        resume_step = from_leader(lambda: checkpoints.newest_whole_step(strict=strict))
        variables = task.init_variables(config.seed)
        if resume_step is None and config.init_from:
            variables = initial_variables(config, task, variables)
        state = parallel.put_state(TrainState.create(variables, optimizer, ema=keeps_ema))
        if resume_step is not None:
            state = parallel.put_state(checkpoints.restore(parallel.global_view(state), resume_step))
        step = int(state.step)

        say = print if jax.process_index() == 0 else (lambda *_, **__: None)
        say(
            f"{dataset.name}: {len(train_source)} training and {len(eval_source)} evaluation examples, "
            f"{len(dataset.labels)} classes"
        )
        say(_describe(task, state, parallel, config))
        for note in origin_notes(config) if resume_step is None else ():
            say(note)
        say(
            f"{_origin(config, resume_step)}; {config.num_steps - step} steps to go, the first one compiles", flush=True
        )

        with (
            StopRequest() as stop,
            MetricsWriter(workdir, resume_step=step, tolerant=tolerant) as writer,
            Progress(config.num_steps, "training", config.batch_size, start=step) as progress,
            task.train_batches(dataset, start_step=step) as batches,
        ):
            blame = Blame(config, dataset, train_step, parallel, lambda: state)  # the state when it is asked
            saved = None if resume_step is None else checkpoints.about(resume_step).get(LOG)
            log = TrainingLog(config, writer, progress, workdir, checkpoints, explain=blame.explain, saved=saved)

            def save(state: TrainState) -> None:
                log.check()  # never save a state whose loss has not been looked at
                checkpoints.save(parallel.global_view(state), {**about, LOG: log.to_dict()})

            def run_evaluation(state: TrainState) -> None:
                """Evaluates what has just been saved; given up when a stop is asked for, to be made up for later."""
                split, figures, titles = config.data.eval_split, {}, {}
                for prefix, words, variables in (("", "", state.variables), ("ema_", "EMA ", state.ema)):
                    if variables is None:
                        continue
                    evaluation = evaluate(task, parallel, eval_step, variables, dataset, split=split, stop=stop.now)
                    if evaluation is None:
                        return
                    metrics = task.summarize(evaluation.sums)
                    figures |= {prefix + name: getattr(metrics, name) for name in task.figures}
                    titles |= {prefix + name: words + title for name, title in task.figures.items()}
                score = figures[f"ema_{task.best_metric}" if keeps_ema else task.best_metric]
                checkpoints.add_score(int(state.step), {**figures, SCORE: score})
                log.evaluated(int(state.step), split, figures, titles=titles)  # last: whoever reads it finds the score

            # ---- The loop ---------------------------------------------------------------------------------------
            due = step == config.num_steps or (step > 0 and step % config.eval_every_steps == 0)
            if due and step not in writer.evaluated_steps:
                run_evaluation(state)  # the run was cut between the save and the end of the evaluation
            feed = prefetch(batches, lambda batch: parallel.put_batch({k: batch[k] for k in task.batch_fields}))
            while step < config.num_steps and not stop.now():
                try:
                    batch = next(feed)
                except DataError:
                    if jax.process_count() == 1:  # else the others are elsewhere, and JAX ends them
                        save(state)
                        checkpoints.wait()
                    raise
                state, metrics = train_step(state, batch)
                stop.must_save()
                step += 1
                log.trained(step, metrics)
                evaluates = step == config.num_steps or step % config.eval_every_steps == 0
                if step == 1 or step % config.log_every_steps == 0 or evaluates:
                    log.flush(step)
                if evaluates or step % config.checkpoint.every_steps == 0:
                    began = time.perf_counter()
                    save(state)  # before the evaluation, so that an end in it loses nothing
                    if evaluates:
                        run_evaluation(state)
                    progress.exclude(time.perf_counter() - began)

            # ---- The end, asked for or reached ------------------------------------------------------------------
            if stop.signal is not None:
                save(state)
            checkpoints.wait()
            if step not in checkpoints.steps():
                raise CheckpointError(f"The run ended at step {step} without saving it. {checkpoints.failures[-1]}.")
        best_step = checkpoints.best_step()

    if checkpoints.failures:
        say(f"{len(checkpoints.failures)} save(s) failed on the way; the last: {checkpoints.failures[-1]}")
    if batches.bad_examples:
        print(report(batches.bad_examples))  # on every process, of its share
    if stop.signal is not None:
        say(f"{stop.signal.name}: saved step {step} in {workdir / FOLDER_NAME}; the same command goes on from there")
        raise Interrupted(stop.signal)
    best = f"best by {'EMA ' if keeps_ema else ''}{task.figures[task.best_metric]}: step {best_step}"
    say(f"checkpoints: {workdir / FOLDER_NAME} (last step {step}, {best})")
    say(f"metrics:     {workdir / METRICS_NAME}, and TensorBoard in {workdir / 'tensorboard'}")
    if log.skipped_steps:
        say(log.summary())
    return state


def _describe(task: Task, state: TrainState, parallel: Parallel, config: ml_collections.ConfigDict) -> str:
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
