"""The training loop, from top to bottom."""

import pathlib
import signal
import time

import jax
import ml_collections

from flax_mnv2.checkpoint.folder import FOLDER_NAME
from flax_mnv2.checkpoint.run import SCORE, Checkpoints
from flax_mnv2.data.datasets.preparation import report_left_out
from flax_mnv2.data.loader.bad_examples import report
from flax_mnv2.data.loader.batches import BatchIterator
from flax_mnv2.errors import CheckpointError, DataError
from flax_mnv2.training.evaluate import evaluate
from flax_mnv2.training.faults.interrupt import Interrupted, StopRequest
from flax_mnv2.training.faults.nan_search import NanSearch
from flax_mnv2.training.faults.run_lock import only_run
from flax_mnv2.training.faults.watchdog import ends_within
from flax_mnv2.training.initial_weights import initial_weights
from flax_mnv2.training.logging.early_stopping import EarlyStopping
from flax_mnv2.training.logging.learning_curve import save_curve
from flax_mnv2.training.logging.metrics_writer import METRICS_NAME, MetricsWriter
from flax_mnv2.training.logging.progress import Progress
from flax_mnv2.training.logging.run_record import record_start
from flax_mnv2.training.logging.training_log import LOG, TrainingLog
from flax_mnv2.training.multihost import from_leader
from flax_mnv2.training.parallel import Parallel, prefetch, restore_target
from flax_mnv2.training.run import Run, prepare_run
from flax_mnv2.training.state import TrainState


def train(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    parallel: Parallel | None = None,
    strict: bool = False,
) -> TrainState:
    """Trains to ``config.num_steps``, from the newest checkpoint in ``workdir`` if it has one; returns the last state.

    Args:
      config: of ``training.config.defaults.default_config``.
      workdir: gets checkpoints, metrics and the config; made if it is not there.
      parallel: devices and mode; None follows ``config.parallel`` on all devices.
      strict: a damaged newest checkpoint is an error; else it is set aside and the one before is used.

    Raises:
      UserError: bad config, data or checkpoint; the loss stopped being finite. What was trained before bad data, or
        data that does not come, is saved.
      Interrupted: SIGINT or SIGTERM came; the state has been saved.
    """
    run = prepare_run(config, workdir, parallel)
    with only_run(run.workdir), _open_checkpoints(run) as checkpoints:
        state, resume_step, notes = _first_state(run, checkpoints, strict=strict)
        _announce(run, state, resume_step, notes)
        record_start(run.workdir, run.dataset, step=int(state.step))
        loop = _Loop(run, checkpoints, state, resume_step)
        stopped_by = loop.train()
        best_step = checkpoints.best_step()

    if checkpoints.failures:
        _say(f"{len(checkpoints.failures)} save(s) failed on the way; the last: {checkpoints.failures[-1]}")
    if loop.bad_examples:
        print(report(loop.bad_examples))  # on every process, of its part
    folder = run.workdir / FOLDER_NAME
    if stopped_by is not None:
        _say(f"{stopped_by.name}: saved step {loop.step} in {folder}; the same command goes on from there")
        raise Interrupted(128 + stopped_by)
    if loop.early_stopping.now:
        best, at = loop.early_stopping.best, loop.early_stopping.best_step
        patience = run.config.early_stopping.patience
        _say(f"stopped at step {loop.step}: {patience} evaluations were no better than {best:.4f} of step {at}")
    title = run.task.titles[run.task.best_metric]
    best = f"best by {'EMA ' if run.config.ema.decay else ''}{title}: step {best_step}"
    _say(f"checkpoints: {folder} (last step {loop.step}, {best})")
    _say(f"metrics:     {run.workdir / METRICS_NAME}, and TensorBoard in {run.workdir / 'tensorboard'}")
    if curve := save_curve(run.workdir, loop.titles):
        _say(f"curve:       {curve}")
    if loop.log.skipped_steps:
        _say(f"skipped:     {loop.log.skipped_steps} of {run.config.num_steps} steps, which were not finite")
    return loop.state


class _Loop:
    """Trains, saves, evaluates; ``bad_examples`` are the damaged ones that this process left out, by position."""

    def __init__(self, run: Run, checkpoints: Checkpoints, state: TrainState, resume_step: int | None):
        """Nothing runs yet; ``resume_step`` is that of the checkpoint which ``state`` comes from, if any."""
        self._run, self._checkpoints, self._resume_step = run, checkpoints, resume_step
        self.state, self.step = state, int(state.step)

    def train(self) -> signal.Signals | None:
        """Trains to the end, or until a signal asks to stop, which is returned; the last state is saved."""
        run, config = self._run, self._run.config
        tolerant = config.checkpoint.on_error == "continue"
        with (
            StopRequest() as stop,
            MetricsWriter(run.workdir, resume_step=self.step, tolerant=tolerant) as writer,
            Progress(config.num_steps, "training", config.batch_size, start=self.step) as progress,
            run.task.train_batches(run.dataset, start_step=self.step) as batches,
        ):
            self._stop, self._progress, self.bad_examples = stop, progress, batches.bad_examples
            self.log = self._open_log(writer, progress)
            settings, past = config.early_stopping, sorted(writer.evaluations.items())
            scores = [(step, metrics[self._scored]) for step, metrics in past if self._scored in metrics]
            self.early_stopping = EarlyStopping(settings.patience, settings.threshold, scores)
            if self.step and self._evaluates and self.step not in writer.evaluations:
                self._evaluate()  # the run was cut between the save and the end of the evaluation
            self._train_steps(batches)
            if stop.signal is not None:
                self._save()
            self._checkpoints.wait()
            if self.step not in self._checkpoints.steps():
                failure = self._checkpoints.failures[-1]
                raise CheckpointError(f"The run ended at step {self.step} without saving it. {failure}.")
        return stop.signal

    def _train_steps(self, batches: BatchIterator) -> None:
        run, config, stop = self._run, self._run.config, self._stop
        fields = run.task.batch_fields
        feed = prefetch(batches, lambda batch: run.parallel.put_batch({name: batch[name] for name in fields}))
        while self.step < config.num_steps and not self.early_stopping.now and not stop.now():
            try:
                batch = next(feed)
            except DataError:
                if jax.process_count() == 1:  # else the others are elsewhere, and JAX ends them
                    self._save()
                    self._checkpoints.wait()
                raise
            self.state, metrics = run.train_step(self.state, batch)
            stop.must_save()
            self.step += 1
            self.log.trained(self.step, metrics)
            if self.step == 1 or self.step % config.log_every_steps == 0 or self._evaluates:
                self.log.flush(self.step)
            if self._evaluates or self.step % config.checkpoint.every_steps == 0:
                began = time.perf_counter()
                self._save()  # before the evaluation, so that an end in it loses nothing
                if self._evaluates:
                    self._evaluate()
                self._progress.exclude(time.perf_counter() - began)

    @property
    def titles(self) -> dict[str, str]:
        """The metrics of an evaluation by name, with the words that a person reads."""
        titles = dict(self._run.task.titles)
        if self.state.ema is not None:
            titles |= {f"ema_{name}": f"EMA {title}" for name, title in self._run.task.titles.items()}
        return titles

    @property
    def _scored(self) -> str:
        """The metric that evaluations are compared by."""
        return f"{'' if self.state.ema is None else 'ema_'}{self._run.task.best_metric}"

    @property
    def _evaluates(self) -> bool:
        """Whether the state of this step is evaluated."""
        return self.step == self._run.config.num_steps or self.step % self._run.config.eval_every_steps == 0

    def _save(self) -> None:
        self.log.check()  # never save a state whose loss has not been looked at
        items = self._run.parallel.global_view(self.state).to_items()
        self._checkpoints.save(self.step, items, {**self._run.about, LOG: self.log.to_dict()})

    def _evaluate(self) -> None:
        """Evaluates what has just been saved; given up when a stop is asked for, to be made up for later."""
        run, task, split = self._run, self._run.task, self._run.config.data.eval_split
        metrics: dict[str, float] = {}
        remarks: list[str] = []
        for prefix, variables in (("", self.state.variables), ("ema_", self.state.ema)):
            if variables is None:
                continue
            evaluation = evaluate(
                task, run.parallel, run.eval_step, variables, run.dataset, split=split, stop=self._stop.now
            )
            if evaluation is None:
                return
            metrics |= {prefix + name: value for name, value in evaluation.evaluator.metrics().items()}
            remarks += [f"{remark}{' (EMA)' if prefix else ''}" for remark in evaluation.evaluator.remarks()]
        self._checkpoints.add_score(self.step, {**metrics, SCORE: metrics[self._scored]})
        self.log.evaluated(self.step, split, metrics, titles=self.titles)  # last: whoever reads it finds the score
        for remark in remarks:
            self._progress.write(remark)
        self.early_stopping.add(self.step, metrics[self._scored])

    def _open_log(self, writer: MetricsWriter, progress: Progress) -> TrainingLog:
        run, resume_step = self._run, self._resume_step
        search = NanSearch(run, lambda: self.state)  # the state when it is asked
        saved = None if resume_step is None else self._checkpoints.about(resume_step).get(LOG)
        return TrainingLog(run.config, writer, progress, self._checkpoints, explain=search.explain, saved=saved)


def _open_checkpoints(run: Run) -> Checkpoints:
    settings = run.config.checkpoint
    return Checkpoints(
        run.workdir / FOLDER_NAME,
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
        tolerant=settings.on_error == "continue",
        timeout=settings.timeout,
        limit=ends_within,
    )


def _first_state(run: Run, checkpoints: Checkpoints, *, strict: bool) -> tuple[TrainState, int | None, list[str]]:
    """Returns the newest checkpoint's state, with its step; else one of pretrained weights, with notes; else random."""
    config, parallel = run.config, run.parallel
    resume_step = from_leader(lambda: checkpoints.newest_whole_step(strict=strict))
    # One program: of single operations there would be forty, each to be compiled.
    create = jax.jit(lambda variables: TrainState.create(variables, run.optimizer, ema=config.ema.decay > 0))
    if resume_step is not None:
        shapes = jax.eval_shape(lambda: create(run.task.init_variables(config.seed)))
        items = checkpoints.restore(resume_step, restore_target(parallel, shapes).to_items())
        return parallel.put_state(TrainState.from_items(items)), resume_step, []
    variables, notes = run.task.init_variables(config.seed), []
    if config.init_from:
        variables, notes = initial_weights(config, run.task, variables)
    return parallel.put_state(create(variables)), None, notes


def _announce(run: Run, state: TrainState, resume_step: int | None, notes: list[str]) -> None:
    config, dataset, model, devices = run.config, run.dataset, run.task.model.config, run.parallel.devices
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    _say(
        f"{dataset.name}: {run.sizes['train']} training and {run.sizes['eval']} evaluation examples, "
        f"{len(dataset.labels)} {dataset.targets}"
    )
    for note in dataset.notes():
        _say(f"  {note}")
    for line in report_left_out(dataset.left_out):
        _say(line)
    _say(
        f"MobileNetV2 {model.depth_multiplier:g}, output stride {model.output_stride}: {num_params:,} parameters "
        f"on {len(devices)} {devices[0].platform} device(s), {config.parallel}"
    )
    if resume_step is not None:
        origin = f"going on from step {resume_step}"
    elif config.init_from:
        origin = f"{'backbone' if config.init_scope == 'backbone' else 'all weights'} from {config.init_from}"
    else:
        origin = "random weights"
    for note in notes:
        _say(note)
    keeps = jax.config.jax_compilation_cache_dir and jax.config.jax_enable_compilation_cache
    if keeps:
        _say(f"compiled programs are kept in {jax.config.jax_compilation_cache_dir}")
    _say(
        f"{origin}; {config.num_steps - int(state.step)} steps to go, the first one compiles"
        + (" unless its program is kept" if keeps else "")
    )


def _say(line: str) -> None:
    """Prints a line once, whatever the number of processes."""
    if jax.process_index() == 0:
        print(line, flush=True)
