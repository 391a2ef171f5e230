"""Evaluates variables on a whole split, and writes the report on a checkpoint or pretrained weights."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from flax_mnv2.checkpoint.folder import EMA, FOLDER_NAME, VARIABLES, step_of
from flax_mnv2.checkpoint.run import Checkpoints
from flax_mnv2.config import MobileNetV2Config
from flax_mnv2.data.datasets.preparation import report_left_out
from flax_mnv2.data.datasets.records import Dataset
from flax_mnv2.data.loader.bad_examples import report
from flax_mnv2.errors import CheckpointError, ConfigError, DataError
from flax_mnv2.image_processing.processor import MobileNetV2ImageProcessor
from flax_mnv2.tasks.base import Evaluator, Task
from flax_mnv2.tasks.registry import get_task, task_for
from flax_mnv2.training.config.checks import check_config
from flax_mnv2.training.faults.watchdog import ends_within
from flax_mnv2.training.logging.progress import Progress
from flax_mnv2.training.multihost import from_leader, leader_first
from flax_mnv2.training.parallel import Parallel, check_divisible, make_parallel, prefetch, restore_target
from flax_mnv2.training.step import make_eval_step
from flax_mnv2.weights.pretrained import open_weights

WEIGHTS = ("auto", "raw", "ema")
_LISTED_CLASSES = 100  # up to so many have their metrics in metrics.json in any case


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation yields."""

    evaluator: Evaluator  # the task's, which has seen every example
    num_examples: int  # counted, on all hosts
    num_bad: int  # damaged ones left out, on all hosts (config.data.bad_examples)
    bad_examples: Mapping[int, str]  # those of this host, by position in the split; name and reason


def evaluate(
    task: Task,
    parallel: Parallel,
    eval_step: Any,
    variables: Any,
    dataset: Dataset,
    *,
    split: str,
    report: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluates replicated ``variables`` on a whole split with the task's compiled ``eval_step``.

    With ``report`` the evaluator keeps what a report says of single examples. ``stop`` is asked before every batch;
    once it says yes, the evaluation is given up and None returned.
    """
    evaluator, counted = task.evaluator(report=report), 0
    total = len(dataset.source(split))
    batch_size = task.eval_batch_size(dataset, split, num_devices=len(parallel.devices))
    with (
        task.eval_batches(dataset, split=split, batch_size=batch_size) as batches,
        Progress(-(-total // batch_size), f"evaluating {split}", batch_size) as progress,
    ):

        def put(batch):
            return batch, parallel.put_batch({name: batch[name] for name in (*task.batch_fields, "mask")})

        for host_batch, device_batch in prefetch(batches, put, depth=1):  # each is waited for, so one is enough
            if stop():
                return None
            sums, examples = eval_step(variables, device_batch)
            kept = parallel.fetch(examples) if evaluator.needs_examples(host_batch) else None
            evaluator.add(host_batch, jax.tree.map(np.asarray, sums), kept)
            counted += int(host_batch["mask"].sum())
            progress.advance()
    bad = len(batches.bad_examples)
    if jax.process_count() > 1:
        of_each = multihost_utils.process_allgather(np.array([counted, bad], np.int32))
        counted, bad = (int(number) for number in of_each.reshape(-1, 2).sum(axis=0))
    if counted + bad != total:
        raise RuntimeError(f"The evaluation saw {counted} examples of {total} in {split}, and {bad} bad ones.")
    return Evaluation(evaluator, counted, bad, batches.bad_examples)


@dataclasses.dataclass(frozen=True)
class _Subject:
    """The model that is evaluated."""

    name: str  # for messages and the report
    config: MobileNetV2Config
    processor: MobileNetV2ImageProcessor | None  # what prepares images for it; None where the run's config says
    report_folder: pathlib.Path  # unless told otherwise
    load: Callable[[Task], Any]  # the task → the model's variables


def evaluate_run(
    config: ml_collections.ConfigDict,
    *,
    workdir: str = "",
    checkpoint: str = "",
    pretrained: str = "",
    exported: str = "",
    step: str = "best",
    weights: str = "auto",
    split: str = "",
    output: str = "",
    per_class: bool = False,
) -> dict[str, Any]:
    """Evaluates one model on a whole split; prints a table, writes the report; returns what ``metrics.json`` has.

    A quantised model is computed in integers, as its exported file does; the evaluations of a training run round
    floating-point numbers, which differs by a step here and there.

    Args:
      config: the run's, or for ``pretrained`` any that names the data.
      workdir: of a training run; or
      checkpoint: one of its checkpoints, ``WORKDIR/checkpoints/step_N``; or
      pretrained: a hub id, a folder or a file of weights: whatever ``from_pretrained`` takes.
      exported: a file that ``flax_mnv2.export`` wrote of this model, computed by its runtime in the model's place.
      step: ``"best"``, ``"latest"`` or a number; of ``workdir`` only.
      weights: of a checkpoint, ``"ema"``, ``"raw"``, or ``"auto"`` for the average where the run keeps one.
      split: empty for ``config.data.eval_split``.
      output: folder for the report; empty chooses one beside the checkpoint, or ``./evaluation``.
      per_class: of a classifier, add the metrics of every class: to the table, and to the file where there are more
        than 100 (a segmentation model's are always there).
    """
    if sum(map(bool, (workdir, checkpoint, pretrained))) != 1:
        raise ConfigError("Give exactly one of --workdir, --checkpoint and --pretrained.")
    if weights not in WEIGHTS:
        raise ConfigError(f"--weights must be one of {', '.join(WEIGHTS)}; found {weights!r}.")
    if pretrained and weights != "auto":
        raise ConfigError(
            "--weights is for --workdir and --checkpoint; a run's checkpoint goes there, not --pretrained."
        )
    check_config(config)
    parallel = make_parallel(config.parallel)
    check_divisible(parallel, config.eval.batch_size, "eval.batch_size")
    split = split or config.data.eval_split
    job, data = get_task(config.task), dict(config.data)
    if split not in (data["train_split"], data["eval_split"]):
        data |= {"train_split": split, "eval_split": split}  # some data sets read only what these name
    with leader_first():  # what is not prepared yet is prepared once where hosts share a disk
        dataset = job.load_dataset(data)
        dataset.source(split)  # fails early on an unknown split
    run = (workdir, checkpoint, step, weights, split, parallel)
    subject = _pretrained(pretrained, job) if pretrained else _checkpoint(*run)
    task = job.for_evaluation(config, subject.config, dataset, processor=subject.processor)
    if exported:
        subject = _from_file(exported, subject, task, split, num_devices=len(parallel.devices))
    variables = parallel.put_state(_deployed(task, subject.load(task)))
    eval_step = parallel.compile_eval_step(make_eval_step(task, axis_name=parallel.axis_name))
    leads, left_out = jax.process_index() == 0, dataset.left_out.get(split, ())
    if leads:
        size = len(dataset.source(split))
        lines = [f"evaluating {subject.name} on {dataset.name}, {split}: {size} examples"]
        print("\n".join([*lines, *report_left_out({split: left_out} if left_out else {})]), flush=True)
    evaluation = evaluate(task, parallel, eval_step, variables, dataset, split=split, report=True)
    metrics = {
        "model": subject.name,
        "dataset": dataset.name,
        "split": split,
        "num_examples": evaluation.num_examples,
        "num_bad_examples": evaluation.num_bad + len(left_out),
        **task.settings(),
        **evaluation.evaluator.to_dict(per_class=per_class or len(task.labels) <= _LISTED_CLASSES),
    }
    if evaluation.bad_examples:
        print(report(evaluation.bad_examples))  # on every process, of its part
    if leads:
        print("\n".join([evaluation.evaluator.format_table(per_class=per_class), *evaluation.evaluator.remarks()]))
    _write_report(pathlib.Path(output or subject.report_folder), metrics, evaluation)
    return metrics


def _from_file(exported: str, subject: _Subject, task: Task, split: str, *, num_devices: int) -> _Subject:
    """Puts what runs an exported file in the place of the task's model, and returns it as the subject."""
    from flax_mnv2.export.evaluating import ExportedModule
    from flax_mnv2.export.network import ExportedNetwork

    network = ExportedNetwork(exported)
    if num_devices > 1:
        raise ConfigError("--exported is run by one process on one device; found several. Evaluate it on one.")
    found = task_for(network.task, network.config)
    if found != task.name:
        raise ConfigError(f"{exported} is for {found}, this evaluation for {task.name}. Export a model of this task.")
    labels = [label for _, label in sorted(network.config.id2label.items())]
    if labels != list(task.labels):
        pairs = itertools.zip_longest(labels, task.labels, fillvalue="nothing")
        at, (theirs, ours) = next((at, pair) for at, pair in enumerate(pairs) if pair[0] != pair[1])
        raise ConfigError(
            f"{exported} has other labels than what is evaluated: label {at} is {theirs!r} there, {ours!r} here. Name "
            "the run that it was exported from."
        )
    task.eval_model = ExportedModule(network)
    folder = subject.report_folder.parent / f"{split}_{pathlib.Path(exported).name}"
    return dataclasses.replace(subject, name=exported, report_folder=folder, load=lambda _: {})


def _deployed(task: Task, variables: Any) -> Any:
    """Puts a quantised model, as its exported file computes, in the place of the task's; returns its variables.

    One that cannot be exported so stays as it is trained, with rounded floating-point numbers.
    """
    if task.eval_model.config.quantization is None or not variables:
        return variables
    from flax_mnv2.export.evaluating import DeployedModule
    from flax_mnv2.export.graph.ranges import why_not_integers

    if why_not_integers(task.eval_model.config) is not None:
        return variables
    task.eval_model = DeployedModule(task.eval_model, variables)
    return task.eval_model.variables


def _pretrained(pretrained: str, job: type[Task]) -> _Subject:
    source = open_weights(pretrained)
    model, variables = job.load_pretrained(source)
    processor = source.processor() if job.uses_processor else None
    return _Subject(pretrained, model.config, processor, pathlib.Path("evaluation"), lambda _: variables)


def _checkpoint(workdir: str, checkpoint: str, step: str, weights: str, split: str, parallel: Parallel) -> _Subject:
    checkpoints, at, folder = _find_checkpoint(workdir, checkpoint, step)
    path = checkpoints.path_of(at)
    has_ema = (path / EMA).is_dir()
    if weights == "ema" and not has_ema:
        raise CheckpointError(f"{path} has no moving average; its run had config.ema.decay=0. Use --weights=raw.")
    item = EMA if has_ema and weights != "raw" else VARIABLES

    def load(task: Task) -> Any:
        shapes = jax.eval_shape(lambda: task.init_variables(0))
        with checkpoints:
            return checkpoints.restore(at, {item: restore_target(parallel, shapes)})[item]

    return _Subject(
        name=f"{path}{' (moving average)' if item == EMA else ''}",
        config=MobileNetV2Config.from_dict(checkpoints.about(at)["model"]),
        processor=None,
        report_folder=folder / "evaluation" / f"{split}_step_{at}{'_raw' if weights == 'raw' else ''}",
        load=load,
    )


def _find_checkpoint(workdir: str, checkpoint: str, step: str) -> tuple[Checkpoints, int, pathlib.Path]:
    """Returns the run's checkpoints, the chosen step, and the run's folder."""
    if checkpoint:
        path = pathlib.Path(checkpoint).expanduser()
        if step_of(path.name) is None or not path.parent.is_dir():
            raise CheckpointError(f"--checkpoint must be a folder WORKDIR/{FOLDER_NAME}/step_N; found {checkpoint}.")
        folder, step = path.parent, str(step_of(path.name))
    else:
        folder = pathlib.Path(workdir).expanduser() / FOLDER_NAME
        if not folder.is_dir():
            raise CheckpointError(f"No checkpoints in {workdir}; expected the --workdir of a training run.")
    checkpoints = Checkpoints(folder, read_only=True, limit=ends_within)
    steps = checkpoints.steps()
    choice = {"best": checkpoints.best_step, "latest": checkpoints.latest_step}.get(step)
    at = from_leader(choice) if choice else int(step) if step.isdigit() else None
    if at not in steps:
        raise CheckpointError(
            f"No complete checkpoint {step!r} in {folder}; there are {steps or 'none'}. "
            "--step takes best, latest or one of them."
        )
    return checkpoints, at, folder.parent


def _write_report(folder: pathlib.Path, metrics: dict[str, Any], evaluation: Evaluation) -> None:
    """Writes ``metrics.json`` and the evaluator's files; all processes call it, process 0 writes."""
    path, leads = folder / "metrics.json", jax.process_index() == 0
    try:
        if leads:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        written = {"metrics": path, **evaluation.evaluator.write_files(folder)}
    except OSError as error:
        raise DataError(f"Cannot write the report in {folder}: {error.strerror}. Choose another --output.") from None
    for what, where in {"model": metrics["model"], **written}.items() if leads else ():
        print(f"{what + ':':<10} {where}")
